"""What an optimizer does, for people: the table of who gets which rule, and the health of every matrix."""

import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from muonlab.optim.blocks import Block, blocks_of
from muonlab.optim.orthogonal import OrthogonalRule
from muonlab.optim.rule import Rule, Shape
from muonlab.optim.sharding import is_dtensor, whole_of
from muonlab.optim.state import lr_fraction, state_key
from muonlab.optim.update import MatrixState, on_sphere

__all__ = ["diagnostics_of", "explain_table"]

Pairs = Sequence[tuple[Rule, Mapping[str, Any]]]
POWER_STEPS = 12
BEYOND = 1.02  # times the bound: bfloat16 adds about 0.01 to a direction


def explain_table(pairs: Pairs, reasons: Mapping[str, str]) -> str:
    """One line per parameter: name, shape, role, rule, why, and the size of a step. Then warnings."""
    rows = [("parameter", "shape", "role", "rule", "why", "step size")]
    for rule, group, members in _named(pairs):
        for name, p in members:
            rows.append((name, *_explain(rule, group, reasons.get(name), p)))
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = ("  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)) for row in rows)
    return "\n".join([*(line.rstrip() for line in lines), *_warnings(pairs)])


def _warnings(pairs: Pairs) -> Iterator[str]:
    """Groups whose decoupled decay does not bound their weights: lr x weight_decay is above 1, or a weight beyond."""
    for rule, group, members in _named(pairs):
        shrink = rule.lr * rule.weight_decay
        if not (rule.application == "additive" and rule.decay == "decoupled" and shrink):
            continue
        if shrink > 1 and members:
            whom = members[0][0] + (f" and {len(members) - 1} more" if len(members) > 1 else "")
            what = "from 2 on the weights diverge" if shrink >= 2 else "above 1 decay overshoots, and bounds them less"
            yield f"warning: lr x weight_decay is {shrink:.4g} for {whom}: {what}"
        elif not rule.is_matrix_rule():
            continue
        elif beyond := [(*found, name) for name, p in members if (found := _over_bound(rule, group, p))[0] > BEYOND]:
            ratio, bound, name = max(beyond)
            more = f" (and of {len(beyond) - 1} more)" if len(beyond) > 1 else ""
            norm = f"the spectral norm of {name}{more} is {ratio:.3g} times {bound:.4g}"
            yield f"warning: {norm}, to which decay shrinks it in the long run"


@torch.no_grad()
def _over_bound(rule: Rule, group: Mapping[str, Any], p: Tensor) -> tuple[float, float]:
    """Spectral norm over its bound, and the bound, of the worst matrix of a weight; 0, 0 if all are within theirs.

    Of weights that are spread over ranks nothing is known here. Power iteration only where Frobenius' norm is beyond.
    """
    bounded = isinstance(rule, OrthogonalRule) and _whitens_momentum(rule) and rule.step_unit == "spectral norm"
    worst = 0.0, 0.0
    if not bounded or is_dtensor(p) or p.is_meta or not p.numel():
        return worst
    for block in blocks_of(p.shape, group):
        w = block.of(p).reshape(block.shape).to(torch.float32)
        bound = rule.scale(block.shape) * rule.ceiling(block.shape, p.device.type) / rule.weight_decay
        if float(torch.linalg.matrix_norm(w).max()) > bound > 0:
            worst = max(worst, (float(_spectral_norm(w).max()) / bound, bound))
    return worst


def _named(pairs: Pairs) -> Iterator[tuple[Rule, Mapping[str, Any], list[tuple[str, Tensor]]]]:
    """Each group with its parameters by name; those without are numbered through all groups."""
    start = 0
    for rule, group in pairs:
        names = group.get("param_names") or [f"parameter {start + i}" for i in range(len(group["params"]))]
        start += len(group["params"])
        yield rule, group, list(zip(names, group["params"], strict=True))


def _explain(rule: Rule, group: Mapping[str, Any], reason: str | None, p: Tensor) -> tuple[str, ...]:
    default = "an iterable of matrices means in torch: all of them" if rule.is_matrix_rule() else "all of the group"
    why = reason or (f"param group of role {group['role']}" if group.get("role") else default)
    why += "" if p.requires_grad else "; frozen"
    why += "".join(f"; {key} x {factor:.4g}" for key, factor in group.get("multipliers", {}).items())
    shape = " x ".join(map(str, p.shape)) or "scalar"
    if not rule.is_matrix_rule():
        return shape, group.get("role") or "-", rule.name, why, _step_size(rule, [tuple(p.shape)])
    blocks = blocks_of(p.shape, group)
    matrices = [(" x ".join(map(str, block.shape[-2:])), math.prod(block.shape[:-2])) for block in blocks]
    if group.get("transposed"):
        why += "; stored as fan_in x fan_out"
    if len(blocks) > 1 or len(blocks[0].shape) > 2:
        why += "; as " + ", ".join(f"{count} of {matrix}" for matrix, count in matrices)
    return shape, group.get("role") or "-", rule.name, why, _step_size(rule, [block.shape for block in blocks])


def _step_size(rule: Rule, shapes: Sequence[Shape]) -> str:
    sizes, units = zip(*(rule.step_size(shape) for shape in shapes), strict=True)
    return f"{' to '.join(dict.fromkeys(f'{size:.4g}' for size in sorted(sizes)))} {units[0]}"


@torch.no_grad()
def diagnostics_of(pairs: Pairs, state: Mapping[Tensor, Mapping[str, Tensor]]) -> dict[str, float]:
    """Per matrix parameter whose momentum is what its rule orthogonalises or whitens, under "<parameter>/<quantity>":

    update_rms           root mean square of the elements of an update, learning rate and scale included, decay not
    update_norm          spectral norm of an update, likewise
    orthogonality_error  |O O^T - I|_F / sqrt(n) of the direction O (n its shorter side), before the scale
    effective_rank       of the momentum M: |M|_F^4 / |M M^T|_F^2, from 1 to n (the participation ratio of its
                         squared singular values)
    weight_norm          spectral norm of the weight
    decay_per_step       the fraction of the weight that decay takes in a step: lr x weight_decay where decoupled
    norm_over_bound      weight_norm x weight_decay / scale, at most about 1 in the long run where decay is decoupled
                         and the direction orthogonal

    The direction is that of the momentum as it stands, without the look-ahead of the next gradient. Spectral norms are
    by power iteration, so lower bounds that are near the truth. Of a parameter with several matrices, the worst
    (largest) counts, for effective_rank the smallest. Costs about one step; changes nothing. Where parameters are
    spread over ranks, all of them have to ask, and each gets the whole answer.

    Source   ours; the bound is |W|_2 <= scale / weight_decay, from lr weight_decay <= 1 and |O|_2 <= 1
    """
    found: dict[str, float] = {}
    for rule, group, members in _named(pairs):
        for name, p in members:
            if _whitens_momentum(rule) and "momentum_buffer" in state.get(p, {}) and p.numel():
                blocks = enumerate(blocks_of(p.shape, group))
                w, whole = whole_of(p), {key: whole_of(value) for key, value in state[p].items()}
                measured = [_measure(rule, group, k, block, w, whole) for k, block in blocks]
                for key in measured[0]:
                    worst = min if key == "effective_rank" else max
                    found[f"{name}/{key}"] = worst(item[key] for item in measured)
    return found


def _whitens_momentum(rule: Rule) -> bool:
    """Whether the momentum buffer is what goes into the matrix stage."""
    field = rule.active_state().get("momentum_buffer")
    return rule.is_matrix_rule() and field is not None and field.stage == "local"


def _measure(
    rule: Rule, group: Mapping[str, Any], k: int, block: Block, w: Tensor, state: Mapping[str, Tensor]
) -> dict[str, float]:
    w = block.of(w).reshape(block.shape).to(torch.float32)
    m = block.of(state["momentum_buffer"]).reshape(block.shape)
    copied = {name: view.clone() for name, view in MatrixState(rule, state, k, block, "matrix").views.items()}
    t = int(state.get("step", 0)) + 1
    o = rule.at(t).matrix(m, copied, t).to(torch.float32)
    scale = rule.scale(block.shape)
    update = o * (rule.lr * scale)
    if rule.application == "sphere":
        update = w - on_sphere(w, o, state[state_key("radius", k)], rule.lr * scale)
    decay = rule.weight_decay * (lr_fraction(rule, group) if rule.decay == "independent" else rule.lr)
    norm = float(_spectral_norm(w).max())
    wide = o if o.shape[-2] <= o.shape[-1] else o.mT
    error = wide @ wide.mT - torch.eye(wide.shape[-2], device=o.device)
    return {
        "update_rms": float(update.square().mean((-2, -1)).sqrt().max()),
        "update_norm": float(_spectral_norm(update).max()),
        "orthogonality_error": float(torch.linalg.matrix_norm(error).max()) / math.sqrt(wide.shape[-2]),
        "effective_rank": float(_effective_rank(m).min()),
        "weight_norm": norm,
        "decay_per_step": decay,
        "norm_over_bound": norm * rule.weight_decay / scale,
    }


def _spectral_norm(x: Tensor) -> Tensor:
    generator = torch.Generator(device=x.device).manual_seed(0)
    v = torch.randn(*x.shape[:-2], x.shape[-1], 1, generator=generator, device=x.device)
    for _ in range(POWER_STEPS):
        v = torch.nn.functional.normalize(x.mT @ (x @ v), dim=-2)
    return torch.linalg.vector_norm(x @ v, dim=(-2, -1))


def _effective_rank(m: Tensor) -> Tensor:
    m = m.to(torch.float32)
    m = m / torch.linalg.vector_norm(m, dim=(-2, -1), keepdim=True).clamp(min=torch.finfo(m.dtype).tiny)
    wide = m if m.shape[-2] <= m.shape[-1] else m.mT
    gram = torch.linalg.vector_norm(wide @ wide.mT, dim=(-2, -1))
    return torch.linalg.vector_norm(m, dim=(-2, -1)) ** 4 / gram.square().clamp(min=torch.finfo(m.dtype).tiny)
