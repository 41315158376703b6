"""Engine: the only torch.optim.Optimizer here. Applies rules; owns everything that is not an algorithm."""

import inspect
from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from muonlab.optim.groups import (
    COMPANION_DEFAULTS,
    FLAGS,
    FOLLOW,
    adopt_group,
    complete_group,
    needs_routing,
    refuse_unsupported,
    routed_groups,
    rule_defaults,
)
from muonlab.optim.rule import Rule, declarations
from muonlab.optim.state import adopt_state, advance, matrix_shape

__all__ = ["Engine"]

STACK_MAX_SIDE = 256  # a batched product beats a loop up to about this shorter side, on CPU
WORKSPACE_BYTES = 256 * 2**20  # per stacked call
FUSED_DEVICES = ("cpu", "cuda")


def signature_of(rule: type[Rule], companion: type[Rule] | None) -> inspect.Signature:
    """torch's names in torch's order, then what is ours, by keyword only."""
    positional, keyword = inspect.Parameter.POSITIONAL_OR_KEYWORD, inspect.Parameter.KEYWORD_ONLY
    parameters = [inspect.Parameter("params", positional)]
    late: dict[str, Any] = {}
    for name, declaration in declarations(rule).items():
        if declaration.keyword:
            late[name] = rule_defaults(rule)[name]
        else:
            parameters.append(inspect.Parameter(name, positional, default=rule_defaults(rule)[name]))
    if "amsgrad" in rule.unsupported:
        parameters.append(inspect.Parameter("amsgrad", positional, default=False))
    late |= FLAGS
    late |= {name: False for name in rule.unsupported if name != "amsgrad"}
    late |= {"roles": None} | (COMPANION_DEFAULTS if companion else {}) | {"skip_nonfinite": True}
    parameters += [inspect.Parameter(name, keyword, default=value) for name, value in late.items()]
    return inspect.Signature(parameters)


class Engine(torch.optim.Optimizer):
    """Base of the drop-in classes; a class names its `rule`, and a `companion` for what the rule cannot take.

    Every hyperparameter is read from its param group at each step. A step whose gradients are not all finite is
    skipped as a whole and counted in `num_skipped`, unless `skip_nonfinite=False`. Gradients are never written.
    Whatever has to survive `deepcopy`, pickle and `state_dict` lives in `defaults`, `param_groups` and `state`.
    """

    rule: ClassVar[type[Rule]]
    companion: ClassVar[type[Rule] | None] = None

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        cls.__signature__ = signature_of(cls.rule, cls.companion)

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        bound = type(self).__signature__.bind(*args, **kwargs)
        bound.apply_defaults()
        settings = dict(bound.arguments)
        params, roles = settings.pop("params"), settings.pop("roles")
        refuse_unsupported(settings, self.rule)
        self.rule.from_group(settings)
        if self.companion is not None:
            given = {key: settings[key] for key in COMPANION_DEFAULTS if settings[key] is not None or key not in FOLLOW}
            self.companion(**{key.removeprefix("aux_"): value for key, value in given.items()})
        self._reasons: dict[str, str] = {}
        if isinstance(params, set | frozenset | Mapping):
            raise TypeError(f"params must be an ordered iterable of tensors or groups, got {type(params).__name__}")
        if roles is not None or isinstance(params, nn.Module):
            params, self._reasons = routed_groups(params, roles, self.rule)
        super().__init__(params, settings)

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        """As in torch; entries that are not 2-D are routed, unless `algorithm`, `use_muon` or `role` says it all."""
        if not isinstance(param_group, dict):
            raise TypeError(f"param_group must be a dict, but got {type(param_group)}")
        if "params" not in param_group:
            raise ValueError("a parameter group needs the key 'params'")
        params = param_group["params"]
        if isinstance(params, set):
            raise TypeError("parameters of a group need an order that does not change between runs: use a list")
        group = {**param_group, "params": [params] if isinstance(params, Tensor) else list(params)}
        groups = [group]
        told = {"algorithm", "use_muon", "use_fallback", "role"} & set(group)
        if self.companion is not None and not told and needs_routing(group["params"]):
            found, reasons = routed_groups(group["params"], None, self.rule)
            groups = [{**group, **part} for part in found]
            self._reasons |= reasons
        before = len(self.param_groups)
        try:
            for part in groups:
                self._add_complete(part)
        except Exception:
            del self.param_groups[before:]
            raise

    def _add_complete(self, group: dict[str, Any]) -> None:
        plain = all(isinstance(item[1] if isinstance(item, tuple) else item, Tensor) for item in group["params"])
        complete = complete_group(group, self.defaults, self.rule, self.companion) if plain else group
        keys = {*complete, "param_names"}
        super().add_param_group(complete)
        for key in set(complete) - keys:  # torch adds every default to every group, also those of the other rule
            del complete[key]

    def _rule(self, group: Mapping[str, Any]) -> type[Rule]:
        return self.rule if group["algorithm"] == self.rule.name else self.companion

    @property
    def num_skipped(self) -> int:
        """Steps that were skipped because a gradient was not finite."""
        return max(group["num_skipped"] for group in self.param_groups)

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """One update of every parameter that has a gradient.

        Raises   RuntimeError for sparse, complex, integer or meta gradients, before any parameter changes
        """
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        work = [
            (
                self._rule(group).from_group(group),
                group,
                [p for p in dict.fromkeys(group["params"]) if p.grad is not None],
            )
            for group in self.param_groups
        ]
        live = [p for _, _, params in work for p in params]
        self._check_supported(live)
        if self.defaults["skip_nonfinite"] and not all_finite(p.grad for p in live):
            for group in self.param_groups:
                group["num_skipped"] += 1
            return loss
        for rule, group, params in work:
            self._update_group(rule, group, params)
        return loss

    def _check_supported(self, params: Sequence[Tensor]) -> None:
        name = type(self).__name__
        for p in params:
            if p.is_complex() or p.grad.is_complex():
                raise RuntimeError(f"{name} does not support complex parameters")
            if p.grad.layout is not torch.strided:
                raise RuntimeError(f"{name} does not support sparse gradients")
            if not p.grad.is_floating_point() or not p.is_floating_point():
                raise RuntimeError(f"{name} does not support {p.grad.dtype} gradients")
            if p.grad.is_meta:
                raise RuntimeError(f"{name} cannot step on meta tensors: materialise the model first")

    def _update_group(self, rule: Rule, group: Mapping[str, Any], params: Sequence[Tensor]) -> None:
        role, lr = group.get("role"), rule.lr
        buckets: dict[tuple, list[Tensor]] = defaultdict(list)
        for w in params:
            t = advance(rule, w, self.state[w], role)
            shape = tuple(w.shape) if rule.is_matrix_rule() else ()
            buckets[w.device, w.dtype, t, shape].append(w)
        for (_, _, t, _), ws in buckets.items():
            if rule.is_matrix_rule():
                self._update_matrices(rule, group, ws, t)
                continue
            together = []
            for w in ws:
                g, state = _gradient(rule, w, group["maximize"]), self.state[w]
                if lr and rule.fused is not None and _laid_out_alike(w, g, state):
                    together.append((w, g, state))
                else:
                    _apply(rule, w, rule.local(g, w, state, t))
            if together:
                type(rule).fused(rule, *zip(*together, strict=True), t, lr, rule.weight_decay)

    def _update_matrices(self, rule: Rule, group: Mapping[str, Any], ws: Sequence[Tensor], t: int) -> None:
        shape = matrix_shape(tuple(ws[0].shape), group.get("role"))
        for chunk in _chunks(ws, shape):
            states = [self.state[w] for w in chunk]
            us = [
                rule.local(_gradient(rule, w, group["maximize"]), w, state, t).reshape(shape)
                for w, state in zip(chunk, states, strict=True)
            ]
            directions = _matrix_stage(rule, us, states, t)
            for w, u, state in zip(chunk, directions, states, strict=True):
                _apply(rule, w, rule.finish(u, w.reshape(shape), state, t).reshape(w.shape))

    def __setstate__(self, state: dict[str, Any]) -> None:
        """Also the last act of `load_state_dict`: everything is checked before anything is replaced."""
        if "param_groups" in state:
            loading = "defaults" not in state
            current = self.param_groups if loading else [None] * len(state["param_groups"])
            groups = [
                adopt_group(group, now, self.rule, self.companion)
                for group, now in zip(state["param_groups"], current, strict=True)
            ]
            tensors = defaultdict(dict, state["state"])
            for group in groups:
                rule = self._rule(group).from_group(group)
                for p in group["params"]:
                    if p in tensors:
                        adopted = adopt_state(rule, p, tensors.pop(p), group.get("role"), copy=loading)
                        tensors |= {p: adopted} if adopted else {}
            state = {**state, "param_groups": groups, "state": tensors}
        super().__setstate__(state)

    def __getstate__(self) -> dict[str, Any]:
        return {**super().__getstate__(), "_reasons": self._reasons}

    def explain(self) -> str:
        """A table of every parameter: its role, the rule that updates it, why, and the size of a step."""
        rows = [("parameter", "shape", "role", "rule", "why", "step size")]
        for group in self.param_groups:
            rule = self._rule(group).from_group(group)
            names = group.get("param_names") or [f"parameter {i}" for i in range(len(group["params"]))]
            for name, p in zip(names, group["params"], strict=True):
                rows.append((name, *self._explain_one(rule, group, name, p)))
        widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
        lines = ("  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)) for row in rows)
        return "\n".join(line.rstrip() for line in lines)

    def _explain_one(self, rule: Rule, group: Mapping[str, Any], name: str, p: Tensor) -> tuple[str, ...]:
        default = "an iterable of matrices means in torch: all of them" if rule.is_matrix_rule() else "all of the group"
        why = self._reasons.get(name, f"param group of role {group['role']}" if "role" in group else default)
        step_size = rule.lr * rule.scale(matrix_shape(tuple(p.shape), group.get("role")))
        unit = "spectral norm" if rule.is_matrix_rule() else "per element"
        shape = " x ".join(map(str, p.shape)) or "scalar"
        return shape, group.get("role", "-"), rule.name, why, f"{step_size:.4g} {unit}"


def all_finite(grads: Iterable[Tensor]) -> bool:
    """Whether every element is finite.

    A finite norm proves it, at an eighth of the price of looking at each element; a norm that is not may only have
    overflowed, and is looked into.
    """
    buckets: dict[tuple, list[Tensor]] = defaultdict(list)
    for g in grads:
        buckets[g.device, g.dtype].append(g)
    suspects = (gs for gs in buckets.values() if not torch.stack(torch._foreach_norm(gs, 2)).isfinite().all())
    return all(bool(g.isfinite().all()) for gs in suspects for g in gs)


def _gradient(rule: Rule, w: Tensor, maximize: bool) -> Tensor:
    g = -w.grad if maximize else w.grad
    if rule.decay == "coupled" and rule.weight_decay:
        g = g.add(w, alpha=rule.weight_decay)
    return g


def _apply(rule: Rule, w: Tensor, u: Tensor) -> None:
    """w <- w - lr (u + decay); at lr = 0 not even a sign bit changes."""
    if not rule.lr:
        return
    if rule.decay == "decoupled" and rule.weight_decay:
        w.mul_(1 - rule.lr * rule.weight_decay)
    w.add_(u, alpha=-rule.lr)


def _laid_out_alike(w: Tensor, g: Tensor, state: Mapping[str, Tensor]) -> bool:
    moments = [value for name, value in state.items() if name != "step"]
    return (
        w.device.type in FUSED_DEVICES
        and g.dtype == w.dtype
        and all(item.stride() == w.stride() for item in (g, *moments))
    )


def _chunks(ws: Sequence[Tensor], shape: tuple[int, ...]) -> Iterable[Sequence[Tensor]]:
    """Parameters of one shape, in the batches that the matrix stage takes at once."""
    size = 1
    if min(shape[-2:]) <= STACK_MAX_SIDE:
        size = max(1, WORKSPACE_BYTES // max(1, ws[0].numel() * ws[0].element_size()))
    return (ws[i : i + size] for i in range(0, len(ws), size))


def _matrix_stage(rule: Rule, us: Sequence[Tensor], states: Sequence[Mapping[str, Tensor]], t: int) -> Sequence[Tensor]:
    """`matrix` on a stack; its own state tensors are stacked into a workspace and copied back."""
    if len(us) == 1:
        return [rule.matrix(us[0], states[0], t)]
    mine = [name for name in rule.active_state() if rule.state[name].stage == "matrix"]
    workspace = {name: torch.stack([state[name] for state in states]) for name in mine}
    directions = rule.matrix(torch.stack(us), workspace, t)
    for name, stacked in workspace.items():
        torch._foreach_copy_([state[name] for state in states], list(stacked))
    return list(directions)
