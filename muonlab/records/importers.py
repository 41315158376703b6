"""Records out of the store and into it again (JSON lines), and files that appear whole or not at all."""

import json
import logging
import os
import stat
import sys
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TextIO

from muonlab.errors import UsageError
from muonlab.records.record import Record, json_text

__all__ = ["atomic_write", "export_jsonl", "first_line", "import_jsonl", "read_bytes"]

log = logging.getLogger(__name__)


def export_jsonl(records: Iterable[Record], path: str | os.PathLike[str]) -> int:
    """Write one record per line, "-" for standard output; how many there were."""
    count = 0
    with atomic_write(path) as file:
        for count, record in enumerate(records, 1):  # noqa: B007 (the count is the result)
            file.write(json_text(record.to_dict()) + "\n")
    return count


def import_jsonl(path: str | os.PathLike[str]) -> list[Record]:
    """Read what `export_jsonl` wrote. A last line that was torn by a crash is left out, with a warning.

    Raises   UsageError naming file and line for anything else that is not a record
    """
    lines = read_bytes(path).removeprefix(b"\xef\xbb\xbf").split(b"\n")
    records = []
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        try:
            values = json.loads(line)
        except (ValueError, RecursionError) as error:
            if number == len(lines) and records:
                log.warning("%s line %d is incomplete and left out: the writer was interrupted", path, number)
                break
            raise UsageError(f"{path} line {number} is not JSON ({first_line(error)})") from None
        try:
            records.append(Record.from_dict(values))
        except UsageError as error:
            raise UsageError(f"{path} line {number}: {error}") from None
    return records


@contextmanager
def atomic_write(path: str | os.PathLike[str]) -> Iterator[TextIO]:
    """A text file that appears under its name complete or not at all; "-" is standard output.

    The data go to a temporary file beside it, reach the disk, and only then take the name.

    Raises   UsageError if the place cannot be written or is full; an earlier file stays as it was
    """
    if os.fspath(path) == "-":
        yield sys.stdout
        sys.stdout.flush()
        return
    target = Path(os.path.realpath(Path(path).expanduser()))  # through a link, so that the link stays one
    try:
        with _opened(target) as file:
            yield file
    except BrokenPipeError:
        raise
    except OSError as error:
        reason = f"directory {target.parent} does not exist" if not target.parent.is_dir() else error.strerror or error
        raise UsageError(f"cannot write {path}: {reason}") from error


@contextmanager
def _opened(target: Path) -> Iterator[TextIO]:
    if target.exists() and not stat.S_ISREG(target.stat().st_mode) and not target.is_dir():
        with open(target, "w", encoding="utf-8", newline="") as file:  # a device or a pipe: renaming would replace it
            yield file
        return
    if target.is_dir():
        raise IsADirectoryError(0, "it is a directory")
    partial = target.with_name(f".{target.name[:200]}.{os.getpid()}.part")
    try:
        with open(partial, "w", encoding="utf-8", newline="") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        os.replace(partial, target)
    finally:
        partial.unlink(missing_ok=True)


def read_bytes(path: str | os.PathLike[str]) -> bytes:
    """What is in a file; "-" is standard input.

    Raises   UsageError if it cannot be read
    """
    try:
        return sys.stdin.buffer.read() if os.fspath(path) == "-" else Path(path).expanduser().read_bytes()
    except (OSError, ValueError) as error:
        raise UsageError(f"cannot read {path}: {getattr(error, 'strerror', None) or error}") from None


def first_line(error: BaseException) -> str:
    """What an exception says, without its details."""
    return str(error).partition("\n")[0]
