"""One update of parameters that share a rule: directions from gradients, then their application.

Everything here is tensor work without side effects on the optimizer, so that it can be traced as one graph. `live` is
a 0-d truth value on the device: where it is given and false, neither weights nor state change.
"""

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from muonlab.kernels.rounding import stochastic_round
from muonlab.optim.blocks import Block
from muonlab.optim.rule import Rule

__all__ = ["WORKSPACE_BYTES", "Job", "update"]

WORKSPACE_BYTES = 256 * 2**20  # bound on what a step allocates at a time, one larger matrix excepted
COPIES = 6  # directions, their stack, and what the polar factor holds at its widest
STACK_MAX_SIDE = 256  # a batched product beats a loop up to about this shorter side, on CPU
FUSED_DEVICES = ("cpu", "cuda")

State = Mapping[str, Tensor]


@dataclass(frozen=True)
class Job:
    """Parameters of one rule, device, dtype and age, with everything that their update needs."""

    rule: Rule
    ws: list[Tensor]
    gs: list[Tensor]
    states: list[State]
    blocks: list[tuple[Block, ...]]  # per parameter; empty for an element-wise rule
    t: int | Tensor
    lr_fraction: float | Tensor = 1.0  # lr over what it was before any schedule
    maximize: bool = False
    rounding: str = "nearest"

    def part(self, indices: Sequence[int]) -> "Job":
        chosen = {name: [getattr(self, name)[i] for i in indices] for name in ("ws", "gs", "states")}
        return replace(self, **chosen, blocks=[self.blocks[i] for i in indices] if self.blocks else [])

    def traced(self) -> "Job":
        """Scheduled numbers as tensors, so that a compiled update outlives their change."""
        t, fraction = (torch.tensor(value, dtype=torch.float64) for value in (self.t, self.lr_fraction))
        return replace(self, rule=self.rule.traced(), t=t, lr_fraction=fraction)


def update(job: Job, live: Tensor | None = None) -> None:
    """Move weights and state of a job by one step, a bounded amount of memory at a time."""
    for indices in _waves(job):
        wave = job.part(indices) if len(indices) < len(job.ws) or job.blocks else job
        before = (
            [{name: value.clone() for name, value in state.items()} for state in wave.states]
            if live is not None
            else []
        )
        if job.blocks:
            _update_matrices(wave, _gradients(wave, live), live)
        else:
            _update_elements(wave, _gradients(wave, live), live)
        for state, old in zip(wave.states, before, strict=False):
            for name, value in old.items():
                if name not in ("step", "master"):  # step is the engine's; the master copy is guarded with the weight
                    state[name].copy_(torch.where(live, state[name], value))


def _waves(job: Job) -> Iterable[list[int]]:
    """Indices of parameters that are updated together; matrices of one shorter side next to each other."""
    order = list(range(len(job.ws)))
    if not job.blocks:
        return [order]
    order.sort(key=lambda i: (min(job.blocks[i][0].shape[-2:]), job.blocks[i][0].shape))
    waves: list[list[int]] = []
    budget = 0
    for i in order:
        size = COPIES * job.ws[i].numel() * max(4, job.ws[i].element_size())
        if not waves or size > budget:
            waves.append([])
            budget = WORKSPACE_BYTES
        waves[-1].append(i)
        budget -= size
    return waves


def _gradients(job: Job, live: Tensor | None) -> list[Tensor]:
    """What the rule sees as gradient: sign, L2 term, the state's dtype, and zero instead of what is not finite."""
    gs, rule = job.gs, job.rule
    if job.rounding != "nearest":
        gs = [g.to(torch.float32) for g in gs]
    if live is not None:
        gs = [torch.where(live, g, 0.0) for g in gs]
    if job.maximize:
        gs = torch._foreach_neg(gs)
    if rule.decay == "coupled":
        if isinstance(rule.weight_decay, Tensor):
            gs = [g + rule.weight_decay * _weight(job, i).to(g.dtype) for i, g in enumerate(gs)]
        elif rule.weight_decay:
            gs = torch._foreach_add(
                gs, [_weight(job, i).to(g.dtype) for i, g in enumerate(gs)], alpha=rule.weight_decay
            )
    return list(gs)


def _weight(job: Job, i: int) -> Tensor:
    return job.states[i].get("master", job.ws[i])


def _update_elements(job: Job, gs: Sequence[Tensor], live: Tensor | None) -> None:
    rule, together, alone = job.rule, [], []
    plain = rule.decay != "cautious" and job.rounding == "nearest" and not torch.compiler.is_compiling()
    fused = rule.fused is not None and plain and rule.lr
    for i, (w, g) in enumerate(zip(job.ws, gs, strict=True)):
        (together if fused and _laid_out_alike(w, g) else alone).append(i)
    if together:
        part = job.part(together) if alone else job
        if rule.decay == "independent":
            shrink = _shrink(job)
            torch._foreach_mul_(part.ws, shrink if live is None else torch.where(live, shrink, 1.0))
        decay = rule.weight_decay if rule.decay == "decoupled" else 0.0
        type(rule).fused(rule, part.ws, [gs[i] for i in together], part.states, job.t, rule.lr, decay, live)
    if alone:
        part = job.part(alone)
        us = rule.local_each([gs[i] for i in alone], part.ws, part.states, job.t)
        _apply(part, part.ws, us, range(len(alone)), 1.0, live)


def _laid_out_alike(w: Tensor, g: Tensor) -> bool:
    """Whether the fused kernel may have them; state is laid out as its parameter when it is created or loaded."""
    return w.device.type in FUSED_DEVICES and g.dtype == w.dtype and g.stride() == w.stride()


def _update_matrices(job: Job, gs: Sequence[Tensor], live: Tensor | None) -> None:
    rule, t = job.rule, job.t
    us = rule.local_each(gs, job.ws, job.states, t)
    owners = [(i, block) for i, blocks in enumerate(job.blocks) for block in blocks]
    views = [block.of(us[i]).reshape(block.shape) for i, block in owners]
    directions = _matrix_stage(rule, views, [job.states[i] for i, _ in owners], t)
    alike: dict[float, list[int]] = defaultdict(list)
    for k, (i, block) in enumerate(owners):
        w = block.of(job.ws[i])
        finished = rule.finish(directions[k], w.reshape(block.shape), job.states[i], t)
        directions[k] = finished.reshape(w.shape)
        alike[rule.scale(block.shape)].append(k)
    for scale, ks in alike.items():
        targets = [owners[k][1].of(job.ws[owners[k][0]]) for k in ks]
        _apply(job, targets, [directions[k] for k in ks], [owners[k] for k in ks], scale, live)


def _matrix_stage(rule: Rule, us: Sequence[Tensor], states: Sequence[State], t: int | Tensor) -> list[Tensor]:
    """`matrix` of every view: those of one shape as a stack, and their own state stacked into a workspace."""
    mine = [name for name in rule.active_state() if rule.state[name].stage == "matrix"]
    stacks: dict[tuple[int, ...], list[int]] = defaultdict(list)
    for k, u in enumerate(us):
        shape = tuple(u.shape)
        stacks[shape if min(shape[-2:]) <= STACK_MAX_SIDE else (k,)].append(k)
    groups = list(stacks.values())
    inputs = [us[ks[0]] if len(ks) == 1 else torch.stack([us[k] for k in ks]) for ks in groups]
    workspaces = [
        {name: states[ks[0]][name] if len(ks) == 1 else torch.stack([states[k][name] for k in ks]) for name in mine}
        for ks in groups
    ]
    outputs = rule.matrix_each(inputs, workspaces, t)
    found: list[Tensor] = [None] * len(us)  # type: ignore[list-item]
    for ks, output, workspace in zip(groups, outputs, workspaces, strict=True):
        for k, direction in zip(ks, [output] if len(ks) == 1 else output.unbind(0), strict=True):
            found[k] = direction
        if len(ks) > 1:
            for name, stacked in workspace.items():
                torch._foreach_copy_([states[k][name] for k in ks], list(stacked.unbind(0)))
    return found


def _shrink(job: Job) -> float | Tensor:
    """The factor that decay leaves of a weight."""
    rule = job.rule
    if rule.decay == "independent":
        return 1 - job.lr_fraction * rule.weight_decay
    return 1.0 if rule.decay == "coupled" else 1 - rule.lr * rule.weight_decay


def _apply(
    job: Job,
    ws: Sequence[Tensor],
    us: Sequence[Tensor],
    owners: Sequence[int | tuple[int, Block]],
    scale: float,
    live: Tensor | None,
) -> None:
    """w <- shrink w - lr scale u; at lr = 0 not even a sign bit changes. `owners` say whose rows these are."""
    rule = job.rule
    if not isinstance(rule.lr, Tensor) and not rule.lr:
        return
    if live is None and job.rounding == "nearest" and rule.decay != "cautious" and not isinstance(rule.lr, Tensor):
        shrink = _shrink(job)
        if shrink != 1.0:
            torch._foreach_mul_(ws, shrink)
        torch._foreach_add_(ws, us, alpha=-rule.lr * scale)
        return
    for w, u, owner in zip(ws, us, owners, strict=True):
        i, block = owner if isinstance(owner, tuple) else (owner, None)
        master = job.states[i].get("master")
        exact = w if master is None else master if block is None else block.of(master)
        new = _moved(job, exact if job.rounding == "nearest" else exact.to(torch.float32), u, scale)
        moves = rule.lr != 0 if isinstance(rule.lr, Tensor) else True
        guard = moves if live is None else live & moves
        rounded = stochastic_round(new, job.t) if job.rounding == "stochastic" and w.dtype == torch.bfloat16 else new
        for target, value in ((w, rounded), (master if master is None else exact, new)):
            if target is not None:
                value = value.to(target.dtype)
                target.copy_(torch.where(guard, value, target) if isinstance(guard, Tensor) else value)


def _moved(job: Job, w: Tensor, u: Tensor, scale: float) -> Tensor:
    rule = job.rule
    if rule.decay != "cautious":
        return w * _shrink(job) - (rule.lr * scale) * u
    return w - (rule.lr * rule.weight_decay) * w * (u * w >= 0) - (rule.lr * scale) * u
