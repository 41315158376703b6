"""Guard and updates of a whole step in one function, plain or as one graph."""

import itertools
import types
import warnings
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from muonlab.optim.guard import finite_flag
from muonlab.optim.update import Job, update

__all__ = ["CompiledUpdate", "guarded_update"]

NUMBERS = itertools.count()


def guarded_update(jobs: Sequence[Job], grads: Sequence[Tensor] | None) -> Tensor | None:
    """Update every job, unless one of `grads` (None: nobody asks) is not finite; the answer stays on the device."""
    live = None if grads is None else finite_flag(grads)
    for job in jobs:
        home = job.ws[0].device
        update(job, None if live is None else live.to(home, non_blocking=home.type != "cpu"))  # a CPU must wait for it
    return live


class CompiledUpdate:
    """`guarded_update` through torch.compile; plain where compiling is switched off, or would never end."""

    def __init__(self, backend: Callable[[], bool | str]) -> None:
        self._backend = backend
        self._call: Callable[..., Tensor | None] | None = None

    def __call__(self, jobs: Sequence[Job], grads: Sequence[Tensor] | None) -> Tensor | None:
        from torch import _dynamo as dynamo  # slow to import, and only needed here

        if self._call is None:
            self._call = guarded_update if dynamo.config.disable else _compiled(self._backend())
        if self._call is guarded_update:
            return guarded_update(jobs, grads)
        try:
            return self._call([job.traced() for job in jobs], grads)
        except dynamo.exc.FailOnRecompileLimitHit:
            warnings.warn(
                "the parameters with a gradient change too often to compile a step for each: not compiled any more",
                UserWarning,
                stacklevel=5,
            )
            self._call = guarded_update
            return guarded_update(jobs, grads)


def _compiled(backend: bool | str) -> Callable[..., Any]:
    """A copy of the function, since torch.compile gives up on one after eight graphs, of all optimizers together."""
    name = f"guarded_update_{next(NUMBERS)}"
    own = types.FunctionType(guarded_update.__code__.replace(co_name=name), guarded_update.__globals__, name)
    options = {} if backend is True else {"backend": backend}
    return torch.compile(own, fullgraph=True, dynamic=False, **options)
