"""Engine: the only torch.optim.Optimizer here. Applies rules; owns everything that is not an algorithm."""

import math
import numbers
import warnings
from collections import defaultdict
from collections.abc import Callable, Mapping
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from muonlab.optim.compiled import CompiledUpdate, guarded_update
from muonlab.optim.groups import (
    FOLLOW,
    SPLITS,
    check_flags,
    companion_arguments,
    complete_group,
    needs_routing,
    refuse_unsupported,
    routed_groups,
)
from muonlab.optim.guard import Pending, all_finite, check_supported, no_autocast, waits_for_host
from muonlab.optim.inspection import diagnostics_of, explain_table
from muonlab.optim.jobs import jobs_of
from muonlab.optim.loading import adopted, check_state_dict, restore_dtypes
from muonlab.optim.rule import Rule, declarations
from muonlab.optim.scaling import Vigil, scaling_of
from muonlab.optim.sharded import Sharding
from muonlab.optim.sharding import gradient_of, local_of, refuse_flattened
from muonlab.optim.signature import bound_to, signature_of
from muonlab.optim.state import create

__all__ = ["Engine"]


class Engine(torch.optim.Optimizer):
    """Base of the drop-in classes; a class names its `rule`, and a `companion` for what the rule cannot take.

    Every hyperparameter is read from its param group at each step. A step whose gradients are not all finite is
    skipped as a whole and counted in `num_skipped`, unless `skip_nonfinite=False`; where the host cannot look, as in a
    compiled step, writes are masked. Gradients are never written. `compile` (True or the name of a
    torch.compile backend) makes guard and updates one graph, which is not traced again when a scheduled hyperparameter
    changes. `rounding` says how new weights in half precision are rounded: "nearest", "stochastic" (bfloat16 only) or
    from a float32 "master" copy; the last two keep all state in float32. Whatever has to survive `deepcopy`, pickle
    and `state_dict` lives in `defaults`, `param_groups` and `state`.
    """

    rule: ClassVar[type[Rule]]
    companion: ClassVar[type[Rule] | None] = None
    companion_defaults: ClassVar[Mapping[str, Any]] = {}  # where they differ from the companion's own
    _replicas: Any = None  # process group of a DDP module, over which plain parameters are equal

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        cls.aux_arguments = companion_arguments(cls.companion, cls.companion_defaults) if cls.companion else {}
        cls.__signature__ = signature_of(cls.rule, cls.aux_arguments)

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        settings = bound_to(type(self).__signature__, type(self).__name__, args, kwargs)
        params, roles = settings.pop("params"), settings.pop("roles")
        splits = {key: settings.pop(key) for key in SPLITS if settings.get(key) is not None}
        settings = {key: value for key, value in settings.items() if key not in SPLITS}
        check_flags(settings)
        refuse_unsupported(settings, self.rule)
        main, other = self.rule.from_group(settings), None
        if self.companion is not None:
            given = {key: settings[key] for key in self.aux_arguments if settings[key] is not None or key not in FOLLOW}
            other = self.companion(**{key.removeprefix("aux_"): value for key, value in given.items()})
        self._reasons: dict[str, str] = {}
        inner = getattr(params, "_orig_mod", params)  # of a compiled module
        if isinstance(inner, nn.parallel.DistributedDataParallel):
            self._replicas, params = inner.process_group, inner.module
        self._fresh()
        if isinstance(params, nn.Module) and self.rule.is_matrix_rule():
            refuse_flattened([params])
        if isinstance(params, set | frozenset | Mapping):
            raise TypeError(f"params must be an ordered iterable of tensors or groups, got {type(params).__name__}")
        if params is None or isinstance(params, type | torch.optim.Optimizer):
            raise TypeError(f"params must be a module, or an iterable of tensors or groups, got {params!r:.60}")
        if roles is not None or splits or isinstance(params, nn.Module):
            scaling = scaling_of(params, main, other)
            params, self._reasons = routed_groups(params, roles, self.rule, scaling=scaling, **splits)
        super().__init__(params, settings)

    def _fresh(self) -> None:
        """What a copy starts without."""
        self._pending = Pending()
        self._traced = CompiledUpdate(lambda: self.defaults["compile"])
        self._rules: dict[int, tuple[list[Any], Rule]] = {}
        self._sharding = Sharding(self._replicas)
        self._vigil = Vigil()

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        """As in torch; entries that are not 2-D are routed, unless `algorithm`, `use_muon` or `role` says it all.

        To an optimizer of a model, or of pairs, give (name, parameter) pairs.
        """
        if not isinstance(param_group, dict):
            raise TypeError(f"param_group must be a dict, but got {type(param_group)}")
        if "params" not in param_group:
            raise ValueError("a parameter group needs the key 'params'")
        params = param_group["params"]
        if isinstance(params, set):
            raise TypeError("parameters of a group need an order that does not change between runs: use a list")
        group = {**param_group, "params": [params] if isinstance(params, Tensor) else list(params)}
        groups = [group]
        if self.rule.is_matrix_rule():
            refuse_flattened(item[1] if isinstance(item, tuple) else item for item in group["params"])
        self._check_named(group)
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

    def _check_named(self, group: Mapping[str, Any]) -> None:
        named = "param_names" in group or any(isinstance(item, tuple) for item in group["params"])
        if any(("param_names" in other) != named for other in self.param_groups):
            given, wanted = ("with", "parameters alone") if named else ("without", "(name, parameter) pairs as params")
            late = "; what comes later is not scaled" if any("multipliers" in g for g in self.param_groups) else ""
            raise ValueError(  # in torch's words
                "all optimizer param groups should be with/without names. "
                f"cannot add param group {given} names to the optimizer: pass {wanted}{late}"
            )

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
        self._settle(wait=True)
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
        if torch.compiler.is_compiling():  # what is worth compiling is compiled inside, see `compile`
            torch.compiler.disable(self._update)()
        else:
            self._update()
        return loss

    def wants_observation(self) -> bool:
        """Whether a rule wants an observation before the next step: see `observe`."""
        for group in self.param_groups:
            if self._rule(group).observes:
                self._settle(wait=True)  # a step that was skipped does not count
                rule = self._built(group)
                ages = (int(self.state.get(p, {}).get("step", 0)) for p in group["params"])
                return any(rule.wants_observation(age + 1) for age in ages)
        return False

    @torch.no_grad()
    def observe(self, num_samples: float) -> None:
        """Take the gradients as they stand for an observation instead of a step: what kind, its rule says (`observes`).

        `num_samples` is the number of samples (tokens) over which the loss behind them was averaged. An observation
        that is not finite is dropped. Rules that observe nothing are left alone.

        Raises   ValueError if `num_samples` is not a number above 0; RuntimeError where there is no gradient to take
        """
        if isinstance(num_samples, bool) or not isinstance(num_samples, numbers.Real) or not 0 < num_samples < math.inf:
            raise ValueError(f"num_samples must be a number above 0, got {num_samples!r}")
        work = [
            (self._built(group), group, [p for p in group["params"] if p.grad is not None])
            for group in self.param_groups
            if self._rule(group).observes
        ]
        if work and not any(params for _, _, params in work):
            raise RuntimeError("there are no gradients to observe: call backward before, and zero_grad after it")
        check_supported(type(self).__name__, [p for _, _, params in work for p in params])
        grads = {p: gradient_of(p) for _, _, params in work for p in params}
        spread = self._sharding.is_spread(self.param_groups)
        if not self._all_finite(grads, guarded=True, spread=spread, at_once=True):
            return
        for rule, group, params in work:
            states = [self.state[p] for p in params]
            create(rule, params, states, group)
            for p, state in zip(params, states, strict=True):
                rule.observe(grads[p], {name: local_of(value) for name, value in state.items()}, num_samples)

    def _update(self) -> None:
        self._vigil(self.param_groups)
        work = [
            (self._built(group), group, [p for p in dict.fromkeys(group["params"]) if p.grad is not None])
            for group in self.param_groups
        ]
        params = [p for _, _, members in work for p in members]
        check_supported(type(self).__name__, params)
        if any(rule.observes and ps and not any(self.state.get(p) for p in ps) for rule, _, ps in work):
            warnings.warn(
                f"{type(self).__name__} takes its first step without an observation: "
                "call `observe` before each step for which `wants_observation()` is true",
                UserWarning,
                stacklevel=5,
            )
        spread = self._sharding.is_spread(self.param_groups)
        grads = {p: gradient_of(p) for p in params} if spread else {p: p.grad for p in params}
        compiled, guarded = self.defaults["compile"], self.defaults["skip_nonfinite"] and bool(params)
        at_once = spread or (guarded and not compiled and waits_for_host(list(grads.values())))
        if not self._all_finite(grads, guarded=guarded, spread=spread, at_once=at_once):
            self._count_skipped(1)
            return
        counting = (rule.step_count != "none" or group["rounding"] == "stochastic" for rule, group, ps in work if ps)
        self._settle(wait=any(counting))
        jobs, owned = [], []
        for rule, group, members in work:
            alone, away = self._sharding.parted(rule, group, members, self.state) if spread else (members, [])
            jobs += jobs_of(rule, group, alone, [self.state[p] for p in alone], grads)
            owned.append((rule, group, away))
        flagged = list(grads.values()) if guarded and not at_once else None
        with no_autocast({g.device.type for g in grads.values()}):
            live = self._traced(jobs, flagged) if compiled and jobs else guarded_update(jobs, flagged)
            if spread:
                self._sharding.update(owned, grads)
        if live is not None:
            counters = [state["step"] for job in jobs for state in job.states if "step" in state]
            self._pending.add(live, counters)

    def _all_finite(self, grads: Mapping[Tensor, Tensor], *, guarded: bool, spread: bool, at_once: bool) -> bool:
        """Whether the step may be made, as far as that is known now; where parameters are spread, ranks agree."""
        finite = not (guarded and at_once) or all_finite(grads.values())
        return self._sharding.agree(self._named_params(), self.param_groups, is_finite=finite) if spread else finite

    def _named_params(self) -> dict[Tensor, str]:
        """Every parameter, and what to call it."""
        named: dict[Tensor, str] = {}
        for k, group in enumerate(self.param_groups):
            names = group.get("param_names") or [f"parameter {i} of group {k}" for i in range(len(group["params"]))]
            named |= dict(zip(group["params"], names, strict=True))
        return named

    def _count_skipped(self, count: int) -> None:
        for group in self.param_groups:
            group["num_skipped"] += count

    def _settle(self, *, wait: bool) -> None:
        self._count_skipped(self._pending.settle(wait=wait))

    def _built(self, group: Mapping[str, Any]) -> Rule:
        """The rule of a group as its values now stand; validated again only where one of them has changed."""
        values = [group[name] for name in declarations(self._rule(group))]
        fixed = all(map(is_fixed, values))
        known = self._rules.get(id(group)) if fixed else None
        if known is not None and type(known[1]) is self._rule(group) and known[0] == values:
            return known[1]
        built = self._rule(group).from_group(group)
        if fixed:
            self._rules[id(group)] = (values, built)
        return built

    def state_dict(self) -> dict[str, Any]:
        """As in torch, after every skipped step has been counted.

        Where parameters are spread over ranks, all of them have to call it: what is on one alone becomes complete.
        """
        self._settle(wait=True)
        live = self.state
        self.state = self._complete_state()
        try:
            return super().state_dict()
        finally:
            self.state = live

    def _complete_state(self) -> Mapping[Tensor, dict[str, Any]]:
        """The state with what other ranks keep; a collective where parameters are spread."""
        if not self._sharding.is_spread(self.param_groups):
            return self.state
        complete = self._sharding.complete(self._all_params(), self.state)
        merged = {p: {**state, **complete.get(p, {})} for p, state in self.state.items()}
        return defaultdict(dict, {p: state for p, state in merged.items() if state})

    def _all_params(self) -> list[tuple[Rule, dict[str, Any], list[Tensor]]]:
        return [(self._built(group), group, list(dict.fromkeys(group["params"]))) for group in self.param_groups]

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """As in torch; float32 state of half-precision parameters keeps its dtype, where torch rounds it.

        torch's own name no optimizer: of its Adams another is refused by the keys of its groups, but a state of
        torch.optim.Muon is taken by any optimizer with the same settings and a `momentum_buffer` alone.

        Raises   ValueError for what is no state dict of this optimizer, before anything changes
        """
        check_state_dict(state_dict, self.param_groups)
        self._settle(wait=True)
        seen: list[dict[str, Any]] = [state_dict]
        hook = self.register_load_state_dict_pre_hook(lambda _, found: seen.append(found))
        try:
            super().load_state_dict(state_dict)
        finally:
            hook.remove()
        restore_dtypes(seen[-1], [(self._rule(group), group) for group in self.param_groups], self.state)
        if self._sharding.is_spread(self.param_groups):
            self._sharding.keep_owned(self._all_params(), self.state)

    def __setstate__(self, state: dict[str, Any]) -> None:
        """Also the last act of `load_state_dict`: everything is checked before anything is replaced."""
        if "param_groups" in state:
            loading = "defaults" not in state
            state = adopted(state, self.param_groups if loading else None, self.rule, self.companion)
        self._fresh()
        super().__setstate__(state)

    def __getstate__(self) -> dict[str, Any]:
        self._settle(wait=True)
        if self._sharding.has_owners:
            raise RuntimeError(
                f"{type(self).__name__} of parameters that are spread over ranks can't be copied or pickled: "
                "use state_dict"
            )
        return {**super().__getstate__(), "_reasons": self._reasons}

    def explain(self) -> str:
        """A table of every parameter: its role, the rule that updates it, why, and the size of a step.

        Below it a warning where decoupled decay does not bound the weights: lr x weight_decay above 1, or a weight
        whose spectral norm is beyond scale / weight_decay.
        """
        return explain_table(
            [(self._rule(group).from_group(group), group) for group in self.param_groups], self._reasons
        )

    def diagnostics(self) -> dict[str, float]:
        """Health of every matrix under tags that TensorBoard takes, computed on demand from weights and momentum.

        See `muonlab.optim.inspection.diagnostics_of` for the quantities and their units.
        """
        pairs = [(self._rule(group).from_group(group), group) for group in self.param_groups]
        return diagnostics_of(pairs, self._complete_state())


def is_fixed(value: Any) -> bool:
    """Whether a value cannot change in place, as tensors and lists do."""
    return all(map(is_fixed, value)) if isinstance(value, tuple) else not isinstance(value, Tensor | list)
