"""The coordinate check's probe: how far every layer's output has moved, and how large the update of a matrix is."""

import math
from collections.abc import Callable, Collection, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from muonlab.errors import UsageError
from muonlab.optim.blocks import blocks_of
from muonlab.optim.engine import Engine
from muonlab.optim.routing import MATRIX_ROLES
from muonlab.records.watch import CHANGE, UPDATE
from muonlab.tasks.base import Task
from muonlab.train.batches import to_device
from muonlab.train.checkpoint import restore_rng, rng_state, seed_rng

__all__ = ["CoordinateProbe", "fixed_look"]

ROOT = "model"  # what the outermost module is called, whose own name is empty
ROWS = 512  # that are kept of an output, always the same, so that wide outputs cost little memory


class CoordinateProbe:
    """Outputs of the layers on one fixed batch against those before the first step, and updates in the RMS norm.

    Math     change.<module> = RMS(output now - output at initialisation), over ROWS vectors of it;
             update.<parameter> = |W_t - shrink W_{t-1}|_op sqrt(fan_in / fan_out), shrink what weight decay leaves of a
             weight: the most by which that step can change the RMS of the output for an input of RMS 1, in
             units of the output. Of several matrices in one parameter (heads, experts, fused projections) the largest
    Units    outputs are those of the last weights, not of averaged ones. "cautious" decay is left in the update: which
             weights it spared is not known afterwards
    Source   Yang et al. 2022 (2203.03466) for the check; Yang, Simon, Bernstein 2023 (2310.17813) for the norm
    Differs  from what the mup package plots, the mean absolute output: that hides a change behind what is there at
             initialisation
    """

    def __init__(self, model: nn.Module, optimizer: Engine, look: Callable[[], object], steps: Collection[int]) -> None:
        """`look` passes the fixed batch through the model, the same way each time. Made before the first step."""
        self.optimizer, self.look, self.steps = optimizer, look, frozenset(steps)
        owners = {name or ROOT: m for name, m in model.named_modules() if _owns_matrix(m)}
        self.modules = owners if self.steps else {}
        self.initial = self._outputs()
        self.before: dict[str, Tensor] = {}

    @torch.no_grad()
    def keep(self, step: int) -> None:
        """Remember the matrices before that step, if it is one to be measured."""
        if step in self.steps:
            self.before = {name: p.detach().clone() for name, p, _ in self._matrices()}

    @torch.no_grad()
    def measure(self, step: int) -> dict[str, float]:
        """By name, after the step; nothing where it is not one to be measured."""
        if step not in self.steps:
            return {}
        found = {f"{CHANGE}{name}": _rms(now - self.initial[name]) for name, now in self._outputs().items()}
        for name, p, group in self._matrices():
            moved = p.detach().double() - shrink(group) * self.before[name].double()
            found[f"{UPDATE}{name}"] = max(_gain(block.view_of(moved)) for block in blocks_of(p.shape, group))
        self.before = {}
        return found

    def _matrices(self) -> list[tuple[str, Tensor, Mapping[str, Any]]]:
        groups = [group for group in self.optimizer.param_groups if group["role"] in MATRIX_ROLES]
        return [(name, p, g) for g in groups for name, p in zip(g["param_names"], g["params"], strict=True)]

    def _outputs(self) -> dict[str, Tensor]:
        """(num_rows, features) of every module that was called, float32."""
        if not self.modules:
            return {}
        seen: dict[str, list[Tensor]] = {}
        hooks = [module.register_forward_hook(_keeper(seen, name)) for name, module in self.modules.items()]
        try:
            self.look()
        finally:
            for hook in hooks:
                hook.remove()
        return {name: torch.cat(seen[name]) for name in self.modules if name in seen}


def fixed_look(task: Task, model: nn.Module, device: str, autocast: Callable[[], Any]) -> Callable[[], None]:
    """Passes the first held-out batch, dropout off and with the same random numbers each time; a run keeps its own."""

    def look() -> None:
        before = rng_state(torch.device(device).type)
        seed_rng(0)
        first = next(iter(task.evaluation()), None)
        if first is None:
            raise UsageError("the coordinate check needs held-out data: evaluation() yielded nothing")
        model.eval()
        with torch.no_grad(), autocast():
            task.loss(model, to_device(first[0], device))
        restore_rng(before)

    return look


def shrink(group: Mapping[str, Any]) -> float:
    """The factor that the decay of a step has left of the weights of a group, as far as it is the same for all."""
    lr, peak = float(group["lr"]), group.get("peak_lr")
    if group["decay"] == "independent":
        return 1.0 - (lr / peak if peak else 0.0) * group["weight_decay"]
    return 1.0 - lr * group["weight_decay"] if group["decay"] == "decoupled" else 1.0


def _owns_matrix(module: nn.Module) -> bool:
    return any(p.ndim >= 2 for p in module.parameters(recurse=False))


def _keeper(seen: dict[str, list[Tensor]], name: str) -> Callable[..., None]:
    def keep(module: nn.Module, inputs: Any, output: Any) -> None:
        first = output[0] if isinstance(output, tuple | list) and output else output
        if isinstance(first, Tensor) and first.ndim:
            seen.setdefault(name, []).append(_rows(first.detach()))

    return keep


def _rows(output: Tensor) -> Tensor:
    """At most ROWS of its vectors, the same ones each time."""
    rows = output.reshape(-1, output.shape[-1])
    if len(rows) > ROWS:
        chosen = torch.randperm(len(rows), generator=torch.Generator().manual_seed(0))[:ROWS]
        rows = rows[chosen.to(rows.device)]
    return rows.float().clone()


def _rms(x: Tensor) -> float:
    return float(x.square().mean().sqrt())


def _gain(x: Tensor) -> float:
    """The largest RMS that an input of RMS 1 can come out with, of the matrices (..., fan_out, fan_in)."""
    x = x.reshape(-1, *x.shape[-2:])
    fan_out, fan_in = x.shape[-2:]
    finite = bool(torch.isfinite(x).all())  # else svdvals raises
    return float(torch.linalg.svdvals(x).max()) * math.sqrt(fan_in / fan_out) if finite else math.nan
