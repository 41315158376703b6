"""Where tokens come from: this Python's own sources, text files, token shards; and which of them are held out."""

import hashlib
import os
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property, lru_cache
from pathlib import Path

import numpy as np

from muonlab.errors import UsageError

__all__ = ["Corpus", "Shard", "load_corpus"]

# Packages whose sources read like programs and exist in every Python since 3.11; not tests, not character tables.
PACKAGES = (
    *("asyncio", "collections", "concurrent", "ctypes", "curses", "dbm", "email", "html", "http", "importlib"),
    *("json", "logging", "multiprocessing", "re", "sqlite3", "tkinter", "tomllib", "unittest", "urllib", "venv"),
    *("wsgiref", "xml", "xmlrpc", "zoneinfo"),
)
SPLIT_RULE = "1: names, else 7 % of the files in the order of the SHA-256 of their names, else 10 % tails"
HELDOUT_NAMES = frozenset({"val", "valid", "validation", "test", "heldout"})
HELDOUT_FILES = 0.07  # of the files; ours
HELDOUT_TAIL = 0.1  # of each file, where there are fewer than MIN_FILES; ours
MIN_FILES = 10
SHARD_MAGIC, SHARD_VERSION, SHARD_HEADER_BYTES = 20240520, 1, 1024  # modded-nanogpt and llm.c: 256 int32, then uint16
RAW_NAMES = ("train.bin", "val.bin")  # nanoGPT: uint16 from the first byte
SNIFF_BYTES = 8192
SIDES = ("train", "heldout")
HASH_WHOLE_BYTES, HASH_BLOCK_BYTES, HASH_NUM_BLOCKS = 64 << 20, 64 << 10, 64

Part = tuple[str, np.ndarray]  # name, tokens


@dataclass(frozen=True, eq=False)
class Shard:
    """A run of tokens that samples are cut from; never written."""

    name: str
    tokens: np.ndarray  # (num_tokens,) uint8 or uint16, possibly a memmap


@dataclass(frozen=True, eq=False)
class Corpus:
    """Training and held-out shards that share no byte of any file."""

    kind: str  # "bytes" or "shards"
    train: tuple[Shard, ...]
    heldout: tuple[Shard, ...]

    @cached_property
    def fingerprint(self) -> str:
        """SHA-256 over the split rule and the tokens of both splits in order; names and places are not part of it.

        A token shard above 64 MiB counts by its length and 64 evenly spaced blocks of 64 KiB: an edit between the
        blocks goes unseen. Text counts whole.
        """
        digest = hashlib.sha256(SPLIT_RULE.encode())
        for label, shards in (("train", self.train), ("heldout", self.heldout)):
            for shard in shards:
                data = np.ascontiguousarray(shard.tokens).view(np.uint8)
                digest.update(f"|{label} {shard.tokens.dtype.str} {len(shard.tokens)}|".encode())
                if self.kind == "bytes" or len(data) <= HASH_WHOLE_BYTES:
                    digest.update(data)
                    continue
                for at in np.linspace(0, len(data) - HASH_BLOCK_BYTES, HASH_NUM_BLOCKS).astype(np.int64):
                    digest.update(data[at : at + HASH_BLOCK_BYTES])
        return digest.hexdigest()


def load_corpus(data: tuple[str, ...] = (), *, raw_bin: bool = False) -> Corpus:
    """The corpus of some files and directories, or of this Python's sources; read once per process and content.

    A directory stands for its `.bin` files if it has any, else for all its text files, at any depth, hidden ones
    left out, in the order of their names.

    Raises   UsageError for a path that does not exist, holds no text, or is no token shard
    """
    if not data:
        return _load_embedded()
    # By resolved path, each file once: a second copy would leak into the other split.
    found = {path.resolve(): (path, name) for item in data for path, name in _expand(Path(item).expanduser())}
    files = list(found.values())
    num_bin = sum(path.suffix == ".bin" for path, _ in files)
    if num_bin not in (0, len(files)):
        raise UsageError(f"data mixes {num_bin} .bin shards with {len(files) - num_bin} text files: give one kind")
    stats = [path.stat() for path, _ in files]
    key = tuple((str(p.absolute()), n, s.st_mtime_ns, s.st_size) for (p, n), s in zip(files, stats, strict=True))
    return _load_files(key, raw_bin and num_bin > 0)


@lru_cache(maxsize=1)
def _load_embedded() -> Corpus:
    root = Path(os.__file__).parent
    paths = [path for path in root.glob("*.py") if not path.name.startswith("_sysconfigdata")]  # that one names paths
    for package in PACKAGES:
        paths += (root / package).rglob("*.py")
    named = sorted((path.relative_to(root).as_posix(), path) for path in paths)
    named = [(name, path) for name, path in named if not {"test", "tests"} & set(name.split("/"))]
    if len(named) < MIN_FILES:
        raise UsageError(f"this Python ships no library sources in {root}: name text files with --data")
    return _byte_corpus([(name, path.read_bytes()) for name, path in named])


@lru_cache(maxsize=4)
def _load_files(key: tuple[tuple[str, str, int, int], ...], raw_bin: bool) -> Corpus:
    if key[0][0].endswith(".bin"):
        shards = [(name, _map_shard(Path(path), raw_bin)) for path, name, _, _ in key]
        train, heldout = _split(shards)
        return Corpus("shards", tuple(Shard(*s) for s in train), tuple(Shard(*s) for s in heldout))
    contents = [(name, _read(Path(path))) for path, name, _, _ in key]
    if not any(content for _, content in contents):
        raise UsageError(f"{key[0][0]}: the text is empty")
    return _byte_corpus(contents)


def _byte_corpus(contents: Sequence[tuple[str, bytes]]) -> Corpus:
    parts = [(name, np.frombuffer(content, dtype=np.uint8)) for name, content in contents if content]
    return Corpus("bytes", *((Shard(side, _join(part)),) for side, part in zip(SIDES, _split(parts), strict=True)))


def _join(parts: Iterable[Part]) -> np.ndarray:
    """One array, a zero byte between files."""
    pieces = [np.empty(0, np.uint8)]
    for _, tokens in parts:
        pieces += [tokens, np.zeros(1, np.uint8)]
    return np.concatenate(pieces[:-1] or pieces)


def _split(parts: Sequence[Part]) -> tuple[list[Part], list[Part]]:
    """(training parts, held-out parts), by the first rule that applies.

    1. Some names, not all, say so: `val`, `valid`, `validation`, `test` or `heldout` between separators.
    2. Of 10 files or more, the last 7 % in the order of the SHA-256 of their names.
    3. The last tenth of every file.
    """
    held = {i for i, (name, _) in enumerate(parts) if HELDOUT_NAMES & set(re.split(r"[^a-z0-9]+", name.lower()))}
    if not 0 < len(held) < len(parts):
        if len(parts) < MIN_FILES:
            cuts = [len(tokens) - int(len(tokens) * HELDOUT_TAIL) for _, tokens in parts]
            both = list(zip(parts, cuts, strict=True))
            return [(n, t[:cut]) for (n, t), cut in both], [(n, t[cut:]) for (n, t), cut in both if cut < len(t)]
        order = sorted(range(len(parts)), key=lambda i: (hashlib.sha256(parts[i][0].encode()).digest(), i))
        held = set(order[-max(1, round(HELDOUT_FILES * len(parts))) :])
    train = [part for i, part in enumerate(parts) if i not in held]
    return train, [part for i, part in enumerate(parts) if i in held]


def _expand(path: Path) -> list[tuple[Path, str]]:
    """The files that a path stands for, with the names that decide the split."""
    if path.is_file():
        return [(path, path.name)]
    if not path.exists():
        raise UsageError(f"no such file or directory: {path}")
    found = sorted(
        (file.relative_to(path).as_posix(), file)
        for file in path.rglob("*")
        if file.is_file() and not any(part.startswith(".") for part in file.relative_to(path).parts)
    )
    chosen = [(file, name) for name, file in found if name.endswith(".bin")]
    chosen = chosen or [(file, name) for name, file in found if _is_text(file)]
    if not chosen:
        raise UsageError(f"{path}: the directory holds neither text files nor .bin token shards")
    return chosen


def _is_text(path: Path) -> bool:
    """Whether a file is not empty and its beginning holds no zero byte."""
    try:
        with path.open("rb") as file:
            start = file.read(SNIFF_BYTES)
    except OSError as error:
        raise UsageError(f"{path}: {error.strerror}") from None
    return bool(start) and b"\0" not in start


def _read(path: Path) -> bytes:
    try:
        content = path.read_bytes()
    except OSError as error:
        raise UsageError(f"{path}: {error.strerror}") from None
    if b"\0" in content[:SNIFF_BYTES]:
        raise UsageError(f"{path}: not a text file (it holds zero bytes); token shards must be named .bin")
    return content


def _map_shard(path: Path, raw_bin: bool) -> np.ndarray:
    """The tokens of one shard as a read-only memmap.

    Raises   UsageError if the file is empty, of odd size, truncated, of another version, or says nothing of its layout
    """
    try:
        num_bytes = path.stat().st_size
        with path.open("rb") as file:
            header = np.frombuffer(file.read(SHARD_HEADER_BYTES)[: num_bytes // 4 * 4], dtype="<i4")
    except OSError as error:
        raise UsageError(f"{path}: {error.strerror}") from None
    if num_bytes == 0:
        raise UsageError(f"{path}: the token shard is empty")
    if num_bytes % 2:
        raise UsageError(f"{path}: {num_bytes} bytes is an odd size, tokens have two: truncated or no shard")
    if not len(header) or header[0] != SHARD_MAGIC:
        if raw_bin or path.name in RAW_NAMES:
            return np.memmap(path, dtype="<u2", mode="r")
        magic = header[0] if len(header) else "none"
        raise UsageError(f"{path}: wrong magic {magic}, want {SHARD_MAGIC}; plain uint16 tokens need task.raw_bin=true")
    if num_bytes < SHARD_HEADER_BYTES:
        raise UsageError(f"{path}: truncated inside its header of {SHARD_HEADER_BYTES} bytes")
    if header[1] != SHARD_VERSION:
        raise UsageError(f"{path}: shard version {header[1]}, this muonlab reads version {SHARD_VERSION}")
    promised, held = int(header[2]), (num_bytes - SHARD_HEADER_BYTES) // 2
    if promised != held:
        state = "truncated" if promised > held else "longer than its header says"
        raise UsageError(f"{path}: {state}: the header counts {promised} tokens, the file holds {held}")
    if not held:
        raise UsageError(f"{path}: the token shard is empty")
    return np.memmap(path, dtype="<u2", mode="r", offset=SHARD_HEADER_BYTES)
