"""Checkpoints of one run: written atomically, checked by hash, the previous good one kept."""

import hashlib
import io
import os
import random
import shutil
import warnings
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from muonlab.errors import UsageError
from muonlab.train.ranks import Alone

__all__ = [
    "Checkpoints", "DamagedError", "Saved", "read_checked", "restore_rng", "rng_state", "seed_rng", "write_checked",
]  # fmt: skip

KEEP = 2
FORMAT = 2  # of what is in a state; 1 had no names of parameters
VALUES = "run.pt"  # in a folder: what is no tensor, and the hashes of all other files

Values = dict[str, Any]
Tensors = dict[str, Tensor]


@dataclass(frozen=True)
class Saved:
    """A checkpoint whose hashes are right; `whole` are its tensors, where they are not in shards."""

    path: Path
    values: Values
    whole: Tensors | None


@dataclass(frozen=True)
class Checkpoints:
    """The checkpoint folder of one run. `seconds` is the time between two checkpoints; short runs write none.

    A process alone writes a file, ranks a folder, by torch.distributed.checkpoint. Either gets its name when it is
    complete, and either can be loaded by any number of ranks. All methods are collectives.
    """

    folder: Path
    seconds: float = 60.0
    ranks: Alone = field(default_factory=Alone)

    def save(self, step: int, values: Values, tensors: Tensors) -> None:
        """Write the state as of `step`; older ones beyond the last two are removed afterwards.

        Raises   UsageError if the disk is full or the folder can't be written; earlier checkpoints stay
        """
        alone = self.ranks.world_size == 1
        path = self.folder / f"step-{step:09d}{'.pt' if alone else ''}"
        temporary = path.with_suffix(f".{self.ranks.gathered(os.getpid())[0]}.tmp")
        values = {**values, "format": FORMAT}
        trouble = self._trouble_with(
            lambda: (
                write_checked(temporary, {**values, "tensors": tensors})
                if alone
                else self._write_shards(temporary, values, tensors)
            )
        ) or self._trouble_with(lambda: self._publish(temporary, path))
        if trouble:
            if self.ranks.rank == 0:
                _remove(temporary)
            raise UsageError(f"cannot write checkpoint {path}: {trouble}")

    def _trouble_with(self, action: Callable[[], None]) -> str:
        """What went wrong with it on any rank."""
        trouble = ""
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            action()
        except OSError as error:
            trouble = error.strerror or str(error)
        return next(filter(None, self.ranks.gathered(trouble)), "")

    def _publish(self, temporary: Path, path: Path) -> None:
        """Give what is complete its name, and remove what is older than the last ones."""
        if self.ranks.rank:
            return
        if path.is_dir():  # of the same step: a folder can't be replaced at once
            os.replace(path, displaced := path.with_suffix(".old.tmp"))
            os.replace(temporary, path)
            _remove(displaced)
        else:
            os.replace(temporary, path)
        for old in self._paths()[:-KEEP]:
            _remove(old)

    def _write_shards(self, folder: Path, values: Values, tensors: Tensors) -> None:
        from torch.distributed.checkpoint import save
        from torch.distributed.checkpoint.api import CheckpointException

        try:
            save(tensors, checkpoint_id=folder)
        except CheckpointException as error:  # not an Exception
            raise OSError(_first_line(error)) from error
        if self.ranks.rank == 0:
            write_checked(folder / VALUES, {**values, "files": {path.name: _digest(path) for path in folder.iterdir()}})

    def newest(self) -> Saved | None:
        """The newest checkpoint that is as it was written; a damaged one is passed over with a warning."""
        for path in reversed(self.ranks.gathered(self._paths())[0]):
            values: Values = {}
            reason = ""
            try:
                values = self._checked(path)
                reason = "" if values.get("format") == FORMAT else "has the format of another version"
            except OSError as error:
                reason = f"can't be read ({error.strerror or error})"
            except DamagedError:
                reason = "is damaged"
            except Exception as error:  # torch.load has many: the hash is right, so somebody else wrote it
                reason = f"is none of ours ({type(error).__name__})"
            reason = next(filter(None, self.ranks.gathered(reason)), "")
            if not reason:
                return Saved(path, values, values.pop("tensors", None))
            if self.ranks.rank == 0:
                warnings.warn(f"checkpoint {path} {reason}; using the one before it", stacklevel=2)
        return None

    def _checked(self, path: Path) -> Values:
        """What is in a file; of a folder every rank checks the hashes of some shards."""
        if not path.is_dir():
            return read_checked(path)
        values = read_checked(path / VALUES)
        files = values.pop("files")
        for name in sorted(files)[self.ranks.rank :: self.ranks.world_size]:
            if _digest(path / name) != files[name]:
                raise DamagedError
        return values

    def tensors(self, saved: Saved, place: Callable[[str, Tensor], Tensor]) -> Tensors:
        """Those of a checkpoint by name; `place` lays a whole one as it is wanted here.

        Raises   UsageError if torch can't read what it has written
        """
        if saved.whole is not None:
            return {name: place(name, whole) for name, whole in saved.whole.items()}
        from torch.distributed.checkpoint import FileSystemReader, load
        from torch.distributed.checkpoint.api import CheckpointException

        written = FileSystemReader(saved.path).read_metadata().state_dict_metadata
        found = {name: place(name, torch.empty(one.size, dtype=one.properties.dtype)) for name, one in written.items()}
        try:
            with warnings.catch_warnings():
                warnings.filterwarnings("ignore", "torch.distributed is disabled")
                load(found, checkpoint_id=saved.path, no_dist=self.ranks.world_size == 1)
        except CheckpointException as error:  # not an Exception
            raise UsageError(f"cannot load checkpoint {saved.path}: {_first_line(error)}") from error
        return found

    def clear(self) -> None:
        if self.ranks.rank == 0:
            shutil.rmtree(self.folder, ignore_errors=True)

    def _paths(self) -> list[Path]:
        return sorted(path for path in self.folder.glob("step-*") if path.suffix != ".tmp")


class DamagedError(Exception):
    """A file that is not as it was written."""


def write_checked(path: Path, state: Values) -> None:
    """A file that begins with the hash of the rest."""
    buffer = io.BytesIO()
    torch.save(state, buffer)
    content = buffer.getvalue()
    with open(path, "wb") as file:
        file.write(hashlib.sha256(content).digest() + content)
        file.flush()
        os.fsync(file.fileno())


def read_checked(path: Path) -> Values:
    """What `write_checked` wrote.

    Raises   OSError; DamagedError if the hash is wrong
    """
    content = path.read_bytes()
    if hashlib.sha256(content[32:]).digest() != content[:32]:
        raise DamagedError
    return torch.load(io.BytesIO(content[32:]), weights_only=True)


def _digest(path: Path) -> str:
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _remove(path: Path) -> None:
    shutil.rmtree(path, ignore_errors=True)
    with suppress(OSError):
        path.unlink(missing_ok=True)


def _first_line(error: BaseException) -> str:
    return f"{type(error).__name__}: {error}".splitlines()[0]


def seed_rng(seed: int) -> None:
    """Seed every global generator that a task may draw from."""
    torch.manual_seed(seed)
    np.random.seed(seed % 2**32)
    random.seed(seed)


def rng_state(device: str) -> dict[str, Any]:
    """Values of every global generator that a task may draw from, as values that load with weights_only."""
    name, words, position, has_gauss, gauss = np.random.get_state(legacy=True)
    version, internal, gauss_next = random.getstate()
    state: dict[str, Any] = {
        "torch": torch.get_rng_state(),
        "numpy": [name, words.tolist(), position, has_gauss, gauss],
        "python": [version, list(internal), gauss_next],
    }
    if device == "cuda":
        state["cuda"] = torch.cuda.get_rng_state()
    return state


def restore_rng(state: dict[str, Any]) -> None:
    """Inverse of `rng_state`."""
    torch.set_rng_state(state["torch"])
    name, words, position, has_gauss, gauss = state["numpy"]
    np.random.set_state((name, np.array(words, dtype=np.uint32), position, has_gauss, gauss))
    version, internal, gauss_next = state["python"]
    random.setstate((version, tuple(internal), gauss_next))
    if "cuda" in state:
        torch.cuda.set_rng_state(state["cuda"])
