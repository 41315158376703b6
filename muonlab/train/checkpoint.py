"""Checkpoints of one run: written atomically, checked by hash, the previous good one kept."""

import hashlib
import io
import os
import random
import shutil
import warnings
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from muonlab.errors import UsageError

__all__ = ["Checkpoints", "restore_rng", "rng_state"]

KEEP = 2


@dataclass(frozen=True)
class Checkpoints:
    """The checkpoint folder of one run. `seconds` is the time between two checkpoints; short runs write none."""

    folder: Path
    seconds: float = 60.0

    def save(self, step: int, state: dict[str, Any]) -> None:
        """Write `state` as of `step`; older ones beyond the last two are removed afterwards.

        Raises   UsageError if the disk is full or the folder can't be written; earlier checkpoints stay
        """
        buffer = io.BytesIO()
        torch.save(state, buffer)
        content = buffer.getvalue()
        path = self.folder / f"step-{step:09d}.pt"
        temporary = path.with_suffix(f".{os.getpid()}.tmp")
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            with open(temporary, "wb") as file:
                file.write(hashlib.sha256(content).digest() + content)
                file.flush()
                os.fsync(file.fileno())
            os.replace(temporary, path)
        except OSError as error:
            with suppress(OSError):
                temporary.unlink()
            raise UsageError(f"cannot write checkpoint {path}: {error.strerror or error}") from error
        for old in self._paths()[:-KEEP]:
            old.unlink(missing_ok=True)

    def load(self) -> dict[str, Any] | None:
        """The newest checkpoint whose hash is right, or None. A damaged one is passed over with a warning."""
        for path in reversed(self._paths()):
            try:
                content = path.read_bytes()
                if hashlib.sha256(content[32:]).digest() == content[:32]:
                    return torch.load(io.BytesIO(content[32:]), weights_only=True)
                reason = "is damaged"
            except OSError as error:
                reason = f"can't be read ({error.strerror})"
            except Exception as error:  # torch.load has many: the hash is right, so somebody else wrote it
                reason = f"is none of ours ({type(error).__name__})"
            warnings.warn(f"checkpoint {path} {reason}; using the one before it", stacklevel=2)
        return None

    def clear(self) -> None:
        shutil.rmtree(self.folder, ignore_errors=True)

    def _paths(self) -> list[Path]:
        return sorted(self.folder.glob("step-*.pt"))


def rng_state(device: str) -> dict[str, Any]:
    """State of every global generator that a task may draw from, as values that load with weights_only."""
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
