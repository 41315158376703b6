"""`python -m muonlab.tasks.downloads cifar10`: fetch a published data set, each file held to its hash."""

import argparse
import sys
from pathlib import Path

from muonlab.errors import UsageError, unknown
from muonlab.tasks.images import DATASETS, FOLDER_VARIABLE, data_folder

__all__ = ["fetch", "main"]


def fetch(name: str, folder: Path | None = None) -> Path:
    """The folder with the files of a data set, where `muonlab train NAME` looks for them; what is there is kept.

    Raises   UsageError for a data set that is not known, without pooch, and for a download that fails
    """
    if name not in DATASETS:
        raise unknown("data set", name, DATASETS)
    try:
        import pooch
    except ImportError:
        raise UsageError("downloads need pooch: pip install pooch") from None
    known, folder = DATASETS[name], folder or data_folder(name)
    for file, digest in known.sha256.items():
        try:
            pooch.retrieve(known.url + file, f"sha256:{digest}", fname=file, path=folder)
        except (OSError, ValueError) as error:  # no network, no space, another hash
            reason = " ".join(str(error).split())
            raise UsageError(f"{known.url}{file} could not be fetched into {folder}: {reason}") from None
    return folder


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m muonlab.tasks.downloads", description=__doc__)
    parser.add_argument("name", help=", ".join(DATASETS))
    parser.add_argument("folder", nargs="?", type=Path, help=f"default: ${FOLDER_VARIABLE}/NAME, or the user's cache")
    chosen = parser.parse_args(arguments)
    try:
        print(fetch(chosen.name, chosen.folder))
    except UsageError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
