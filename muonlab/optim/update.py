"""One update of parameters that share a rule: directions from gradients, then their application.

Everything here is tensor work without side effects on the optimizer, so that it can be traced as one graph. `live` is
a 0-d truth value on the device: where it is given and false, neither weights nor state change.
"""

from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from muonlab.kernels.normalise import normalise
from muonlab.kernels.rounding import stochastic_round
from muonlab.optim.blocks import Block
from muonlab.optim.rule import Rule, Shape, Stage
from muonlab.optim.state import state_key

__all__ = ["WORKSPACE_BYTES", "Job", "MatrixState", "Piece", "apply", "directions", "gradients", "on_sphere", "update"]

WORKSPACE_BYTES = 256 * 2**20  # bound on what a step allocates at a time on a CPU, one larger matrix excepted
DEVICE_WORKSPACE_BYTES = 2**32  # and on an accelerator, which many small launches would starve
COPIES = 10  # directions, their stack, and what the polar factor holds at its widest
CACHE_ELEMENTS = 2**16  # per thread, of what a CPU passes over again and again before it goes on to the next
STACK_MAX_SIDE = 256  # a batched product beats a loop up to about this shorter side on CPU; on an accelerator always
FUSED_DEVICES = ("cpu", "cuda")

State = Mapping[str, Tensor]
GUARDED_ELSEWHERE = ("step", "master")  # by the engine, and together with the weight


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

    @property
    def is_plain(self) -> bool:
        """Whether new weights are the old ones scaled and moved, in their own dtype, by plain numbers."""
        rule, scheduled = self.rule, isinstance(self.rule.lr, Tensor)
        straight = rule.application == "additive" and rule.decay != "cautious"
        return straight and self.rounding == "nearest" and not scheduled

    def part(self, indices: Sequence[int]) -> "Job":
        chosen = {name: [getattr(self, name)[i] for i in indices] for name in ("ws", "gs", "states")}
        return replace(self, **chosen, blocks=[self.blocks[i] for i in indices] if self.blocks else [])

    def traced(self) -> "Job":
        """Scheduled numbers as tensors, so that a compiled update outlives their change."""
        t, fraction = (torch.tensor(value, dtype=torch.float64) for value in (self.t, self.lr_fraction))
        return replace(self, rule=self.rule.traced(), t=t, lr_fraction=fraction)


@dataclass(frozen=True)
class Piece:
    """A parameter, or consecutive rows of one, with the direction it is about to move."""

    w: Tensor
    master: Tensor | None  # float32 copy of w
    u: Tensor
    scale: float  # of the step
    shape: Shape = ()  # as a matrix
    radius: Tensor | None = None  # of the sphere on which the matrix stays


def update(job: Job, live: Tensor | None = None) -> None:
    """Move weights and state of a job by one step, a bounded amount of memory at a time.

    A parameter without elements is left alone: no rule has to think of it.
    """
    if not all(w.numel() for w in job.ws):
        job = job.part([i for i, w in enumerate(job.ws) if w.numel()])
    fused, rest = _fusible(job)
    if fused:
        _update_fused(job.part(fused) if rest else job, live)
    for wave in _waves(_in_rows(job.part(rest) if fused else job)) if rest else ():
        before = [_kept(state) for state in wave.states] if live is not None else []
        apply(wave, _pieces(wave, gradients(wave, live)), live)
        for state, kept in zip(wave.states, before, strict=False):
            for name, value in kept.items():
                torch.where(live, state[name], value, out=state[name])


def _kept(state: State) -> dict[str, Tensor]:
    return {name: value.clone() for name, value in state.items() if name not in GUARDED_ELSEWHERE}


def _fusible(job: Job) -> tuple[list[int], list[int]]:
    """Indices of what the rule's fused kernel takes, and of the rest; state is laid out as its parameter."""
    fused = []
    if job.rule.fused is not None and job.is_plain and job.rule.lr:
        fused = [
            i
            for i, (w, g, state) in enumerate(zip(job.ws, job.gs, job.states, strict=True))
            if w.device.type in FUSED_DEVICES
            and g.dtype == w.dtype
            and all(x.stride() == w.stride() for x in (g, *(state[name] for name in job.rule.active_state())))
        ]
    taken = set(fused)
    return fused, [i for i in range(len(job.ws)) if i not in taken]


def _update_fused(job: Job, live: Tensor | None) -> None:
    rule = job.rule
    gs = gradients(job, None)  # the kernel looks at `live` itself
    if rule.decay == "independent":
        _scale(job.ws, _shrink(job), live)
    decay = rule.weight_decay if rule.decay == "decoupled" else 0.0
    type(rule).fused(rule, job.ws, gs, job.states, job.t, rule.lr, decay, live)


def _cache_elements(job: Job) -> int | None:
    """How much of a parameter goes through all operations at a time where it pays, which is on a CPU and eagerly."""
    helps = not job.blocks and job.ws[0].is_cpu and not torch.compiler.is_compiling()
    return CACHE_ELEMENTS * torch.get_num_threads() if helps else None


def _in_rows(job: Job) -> Job:
    """The same job, with parameters that a cache cannot hold as runs of rows where the rule cannot tell."""
    limit = _cache_elements(job)
    if limit is None or job.rounding != "nearest" or all(w.numel() <= limit for w in job.ws):
        return job
    fields = job.rule.active_state()
    if job.rule.sees != "elements" or any(field.layout != "param" for field in fields.values()):
        return job
    ws, gs, states = [], [], []
    for w, g, state in zip(job.ws, job.gs, job.states, strict=True):
        ws += _runs(w, limit)
        gs += _runs(g, limit)
        runs = {name: _runs(state[name], limit) for name in fields}
        states += [{name: run[k] for name, run in runs.items()} for k in range(len(ws) - len(states))]
    return replace(job, ws=ws, gs=gs, states=states)


def _runs(x: Tensor, limit: int) -> Sequence[Tensor]:
    """Rows of x, as many at a time as have that many elements between them."""
    return [x] if x.numel() <= limit else x.split(max(1, limit // x[0].numel()))


def _waves(job: Job) -> Iterator[Job]:
    """Parameters that are updated together; matrices of one shorter side are next to each other."""
    order = list(range(len(job.ws)))
    if job.blocks:
        order.sort(key=lambda i: (min(job.blocks[i][0].shape[-2:]), job.blocks[i][0].shape))
    waves: list[list[int]] = []
    limit = _cache_elements(job)
    budget = 0
    for i in order:
        numel = job.ws[i].numel()
        size = COPIES * numel * max(4, job.ws[i].element_size()) if limit is None else numel
        if not waves or size > budget:
            waves.append([])
            budget = limit or (WORKSPACE_BYTES if job.ws[0].is_cpu else DEVICE_WORKSPACE_BYTES)
        waves[-1].append(i)
        budget -= size
    return map(job.part, waves)


def gradients(job: Job, live: Tensor | None) -> list[Tensor]:
    """What the rule sees as gradient: sign, L2 term, the state's dtype, and zero instead of what is not finite."""
    gs, rule = job.gs, job.rule
    if job.rounding != "nearest":
        gs = [g.to(torch.float32) for g in gs]
    if live is not None:
        gs = _where(live, gs)
    if job.maximize:
        gs = torch._foreach_neg(gs)
    if rule.decay == "coupled":
        if isinstance(rule.weight_decay, Tensor):
            gs = [g + rule.weight_decay * w for g, w in zip(gs, _weights(job), strict=True)]
        elif rule.weight_decay:
            gs = torch._foreach_add(gs, _weights(job), alpha=rule.weight_decay)
    return list(gs)


def _where(live: Tensor, xs: Sequence[Tensor]) -> list[Tensor]:
    """Each x, or zeros of its shape."""
    zero = torch.zeros((), dtype=xs[0].dtype, device=live.device)  # a number would be sent to the device for each x
    return [torch.where(live, x, zero) for x in xs]


def _weights(job: Job) -> list[Tensor]:
    """The weights as exactly as they are known, in the dtype of the state."""
    exact = [_exact(w, state.get("master")) for w, state in zip(job.ws, job.states, strict=True)]
    return exact if job.rounding == "nearest" else [w.to(torch.float32) for w in exact]


def _exact(w: Tensor, master: Tensor | None) -> Tensor:
    """The float32 copy of a weight, where it has one; it yields to a weight that somebody else has changed."""
    return w if master is None else torch.where(master.to(w.dtype) == w, master, w)


def _pieces(job: Job, gs: Sequence[Tensor]) -> list[Piece]:
    us = job.rule.local_each(gs, job.ws, job.states, job.t)
    masters = [state.get("master") for state in job.states]
    if not job.blocks:
        return [Piece(w, master, u, 1.0) for w, master, u in zip(job.ws, masters, us, strict=True)]
    pieces = []
    scales = {block.shape: job.rule.scale(block.shape) for blocks in job.blocks for block in blocks}
    for i, k, block, u in directions(job, us):
        w, master = block.of(job.ws[i]), masters[i] if masters[i] is None else block.of(masters[i])
        radius = job.states[i][state_key("radius", k)] if job.rule.application == "sphere" else None
        u = u if u.shape == w.shape else u.reshape(w.shape)
        pieces.append(Piece(w, master, u, scales[block.shape], block.shape, radius))
    return pieces


def directions(job: Job, us: Sequence[Tensor]) -> list[tuple[int, int, Block, Tensor]]:
    """What `matrix` and `finish` make of what `local` made: number of the parameter and of the block, block, direction.

    Directions have the shape of their block.
    """
    owners = [(i, k, block) for i, blocks in enumerate(job.blocks) for k, block in enumerate(blocks)]
    views = [block.view_of(us[i]) for i, _, block in owners]
    found = []
    for (i, k, block), u in zip(owners, _matrix_stage(job, owners, views), strict=True):
        if not job.rule.finishes():
            found.append((i, k, block, u))
            continue
        state = MatrixState(job.rule, job.states[i], k, block, "finish")
        u = job.rule.finish(u, block.view_of(job.ws[i]), state.views, job.t)
        state.write_back()
        found.append((i, k, block, u))
    return found


class MatrixState:
    """What a stage after `local` sees of the state of a parameter: that of block number `k`, in its shape."""

    def __init__(self, rule: Rule, state: State, k: int, block: Block, stage: Stage) -> None:
        self._targets: dict[str, Tensor] = {}
        self.views: dict[str, Tensor] = {}
        for name, field in rule.active_state().items():
            if field.stage != stage:
                continue
            own = field.layout == "param"
            target = block.of(state[name]) if own else state[state_key(name, k)]
            self.views[name] = block.view_of(state[name]) if own else target
            if self.views[name].shape != target.shape and not target.is_contiguous():
                self._targets[name] = target  # the view may be a copy

    def write_back(self) -> None:
        for name, target in self._targets.items():
            target.copy_(self.views[name].reshape(target.shape))


def _matrix_stage(job: Job, owners: Sequence[tuple[int, int, Block]], us: Sequence[Tensor]) -> list[Tensor]:
    """`matrix` of every view: those of one shape as a stack, and their own state stacked into a workspace."""
    fields = job.rule.active_state().values()
    kept = any(field.stage == "matrix" for field in fields)
    states = [MatrixState(job.rule, job.states[i], k, block, "matrix") for i, k, block in owners] if kept else []
    keeps_squares = any(field.layout == "matrix" for field in fields)
    decisive = max if keeps_squares else min  # the longer side is that of a square in the state, which is copied, too
    stacks: dict[tuple[int, ...], list[int]] = defaultdict(list)
    for n, u in enumerate(us):
        shape = tuple(u.shape)
        stacks[shape if decisive(shape[-2:]) <= STACK_MAX_SIDE or not u.is_cpu else (n,)].append(n)
    groups = list(stacks.values())
    inputs = [us[ns[0]] if len(ns) == 1 else torch.stack([us[n] for n in ns]) for ns in groups]
    workspaces = [_stacked([states[n].views for n in ns]) if kept else {} for ns in groups]
    outputs = job.rule.matrix_each(inputs, workspaces, job.t)
    found: dict[int, Tensor] = {}
    for ns, output, workspace in zip(groups, outputs, workspaces, strict=True):
        for n, direction in zip(ns, [output] if len(ns) == 1 else output.unbind(0), strict=True):
            found[n] = direction
        if len(ns) > 1:
            for name, stacked in workspace.items():
                if _was_written(stacked):
                    torch._foreach_copy_([states[n].views[name] for n in ns], list(stacked.unbind(0)))
    for state in states:
        state.write_back()
    return [found[n] for n in range(len(us))]


def _stacked(states: Sequence[State]) -> State:
    if len(states) == 1:
        return states[0]
    return {name: torch.stack([state[name] for state in states]) for name in states[0]}


def _was_written(fresh: Tensor) -> bool:
    """Whether anybody wrote a tensor since it was made; a traced graph cannot tell."""
    return torch.compiler.is_compiling() or fresh._version > 0


def _shrink(job: Job) -> float | Tensor:
    """The factor that decay leaves of a weight."""
    rule = job.rule
    if rule.decay == "independent":
        return 1 - job.lr_fraction * rule.weight_decay
    return 1.0 if rule.decay == "coupled" else 1 - rule.lr * rule.weight_decay


def _scale(ws: Sequence[Tensor], factor: float | Tensor, live: Tensor | None = None) -> None:
    """w <- factor w, where `live` is not false."""
    if live is not None:  # float32 is what single weights are multiplied in, and goes the fast way
        exact = torch.float32 if ws[0].dtype == torch.float32 else torch.float64
        factor = torch.where(live, torch.full((), factor, dtype=exact, device=live.device), 1.0)
    if ws[0].is_cpu:  # _foreach_mul_ rounds the factor to the weights' dtype there (torch 2.13), and gains nothing
        for w in ws:
            w.mul_(factor)
    else:
        torch._foreach_mul_(ws, factor)


def apply(job: Job, pieces: Sequence[Piece], live: Tensor | None) -> None:
    """w <- shrink w - lr scale u; at lr = 0 not even a sign bit changes."""
    rule = job.rule
    if not isinstance(rule.lr, Tensor) and not rule.lr:
        return
    if not job.is_plain:
        for piece in pieces:
            _replace(job, piece, live)
        return
    if (shrink := _shrink(job)) != 1.0:
        _scale([piece.w for piece in pieces], shrink, live)
    for scale in {piece.scale for piece in pieces}:
        alike = [piece for piece in pieces if piece.scale == scale]
        us = [piece.u for piece in alike]
        us = us if live is None else _where(live, us)
        torch._foreach_add_([piece.w for piece in alike], us, alpha=-rule.lr * scale)


def _replace(job: Job, piece: Piece, live: Tensor | None) -> None:
    rule = job.rule
    old = _exact(piece.w, piece.master)
    new = _moved(job, old if job.rounding == "nearest" else old.to(torch.float32), piece)
    t = job.t.to(torch.int64) if isinstance(job.t, Tensor) else job.t
    rounded = stochastic_round(new, t) if job.rounding == "stochastic" else new
    moves = rule.lr != 0 if isinstance(rule.lr, Tensor) else True
    guard = moves if live is None else live & moves
    for target, value in ((piece.w, rounded), (piece.master, new)):
        if target is not None:
            value = value.to(target.dtype)
            target.copy_(torch.where(guard, value, target) if isinstance(guard, Tensor) else value)


def _moved(job: Job, w: Tensor, piece: Piece) -> Tensor:
    rule, u, scale = job.rule, piece.u, piece.scale
    if piece.radius is not None:
        return on_sphere(w.reshape(piece.shape), u.reshape(piece.shape), piece.radius, rule.lr * scale).reshape(w.shape)
    if rule.decay != "cautious":
        shrink = _shrink(job)
        if isinstance(rule.lr, Tensor):
            return w * shrink - (rule.lr * scale) * u
        return torch.add(w if shrink == 1.0 else w * shrink, u, alpha=-rule.lr * scale)  # as apply, to the bit
    along = (torch.signbit(u) == torch.signbit(w)) | (u == 0)  # a product of the two could underflow
    return w - (rule.lr * rule.weight_decay) * w * along - (rule.lr * scale) * u


def on_sphere(w: Tensor, u: Tensor, radius: Tensor, angle: float | Tensor) -> Tensor:
    """w turned against u, by arctan(angle) where the two are orthogonal, on the sphere of that radius."""
    moved = w.to(radius.dtype) - angle * radius * normalise(u.to(radius.dtype))
    turns = (moved != w).any(dim=(-2, -1), keepdim=True)  # else only rounding would move it
    return torch.where(turns, radius * normalise(moved), w).to(w.dtype)
