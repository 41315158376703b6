"""doctor: what this machine offers, and whether anything stands in the way."""

import os
import platform
import sys
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import muonlab
from muonlab.cli import options as opt
from muonlab.cli.laboratory import print_json
from muonlab.errors import UsageError

__all__ = ["doctor"]

PACKAGES = ("torch", "numpy", "scipy", "sqlalchemy", "alembic", "pydantic", "typer", "rich", "matplotlib", "jinja2")
OPTIONAL = {"psycopg": "PostgreSQL stores", "triton": "torch.compile on CUDA"}


def doctor(store: opt.StoreUrl = opt.DEFAULT_STORE, json: opt.Json = False) -> None:
    """Check the installation, the devices, the embedded data and the store. Exit code 1 if something is broken."""
    checks = [*_packages(), _devices(), _data(), _synthetic(), _store(store)]
    broken = [check for check in checks if not check["ok"]]
    if json:
        print_json({"muonlab": muonlab.__version__, "checks": checks, "ok": not broken})
    else:
        print(f"muonlab {muonlab.__version__}, Python {platform.python_version()}, {platform.platform()}")
        for check in checks:
            print(f"{'ok    ' if check['ok'] else 'BROKEN'}  {check['name']:12} {check['detail']}")
    sys.exit(1 if broken else 0)


def _check(name: str, ok: bool, detail: str) -> dict[str, object]:
    return {"name": name, "ok": ok, "detail": detail}


def _packages() -> list[dict[str, object]]:
    found = []
    for name in (*PACKAGES, *OPTIONAL):
        try:
            found.append(_check(name, True, version(name)))
        except PackageNotFoundError:
            needed = name in PACKAGES
            hint = "missing: pip install 'muonlab[lab]'" if needed else f"not installed (for {OPTIONAL[name]})"
            found.append(_check(name, not needed, hint))
    return found


def _devices() -> dict[str, object]:
    try:
        import torch
    except (ImportError, OSError) as error:
        return _check("devices", False, f"torch can't be imported: {error}")
    gpus = [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())]
    return _check("devices", True, f"{os.cpu_count()} CPU cores, {', '.join(gpus) if gpus else 'no CUDA device'}")


def _data() -> dict[str, object]:
    try:
        from muonlab.tasks.corpus import load_corpus

        corpus = load_corpus(())
    except (UsageError, ImportError) as error:
        return _check("text", False, str(error))
    sizes = [sum(len(shard.tokens) for shard in split) for split in (corpus.train, corpus.heldout)]
    return _check(
        "text", True, f"embedded corpus: {sizes[0] / 1e6:.2f} MB training, {sizes[1] / 1e6:.2f} MB held out, "
        f"hash {corpus.fingerprint[:12]}",
    )  # fmt: skip


def _synthetic() -> dict[str, object]:
    """Whether this machine makes the same bytes as every other."""
    try:
        from muonlab.tasks.synthetic import generate

        corpus = generate()
    except (RuntimeError, ImportError) as error:
        return _check("text-synthetic", False, str(error))
    sizes = [sum(len(shard.tokens) for shard in split) for split in (corpus.train, corpus.heldout)]
    return _check(
        "text-synthetic", True, f"{sizes[0] / 1e6:.2f} MB training, {sizes[1] / 1e6:.2f} MB held out, "
        f"hash {corpus.fingerprint[:12]}",
    )  # fmt: skip


def _store(url: str) -> dict[str, object]:
    if "://" not in url and not Path(url).exists():
        return _check("store", True, f"{url} does not exist yet; the first study makes it")
    try:
        from muonlab.records.store import Store

        with Store(url) as store:
            damage = store.check()
            if damage:
                return _check("store", False, f"{store.name}: {damage[0]}")
            mode = "read-only, " if store.read_only else ""
            return _check("store", True, f"{store.name}: {mode}{store.count()} runs, {len(store.studies())} studies")
    except UsageError as error:
        return _check("store", False, str(error))
