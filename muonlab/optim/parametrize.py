"""Apply a parametrization to a model: initial weights, output multipliers, and what its optimizer will need."""

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.parameter import UninitializedParameter

from muonlab.errors import UsageError, unknown
from muonlab.optim import catalog
from muonlab.optim.branches import ScaledInput, ScaledOutput, branch_factors
from muonlab.optim.counterparts import TABLES, Pair, growth_of, matched
from muonlab.optim.groups import routed_groups, rule_defaults
from muonlab.optim.parametrization import Growth, Parametrization, check_kind, init_power
from muonlab.optim.scaling import is_parametrized, mark, parametrization_of, scaling_of
from muonlab.optim.sharding import is_dtensor
from muonlab.roles import Role

__all__ = ["param_groups", "parametrize"]


@torch.no_grad()
def parametrize(
    model: nn.Module,
    *,
    base: nn.Module | None = None,
    kind: str = "spectral",
    branches: Iterable[str] = (),
    roles: Mapping[str, Role | str] | None = None,
) -> Parametrization:
    """Make a freshly initialised model one for which the hyperparameters of a smaller one are right.

    `base` is a model of the same class at the size where they were tuned, with real initial weights; only "standard"
    needs none. Parameters are matched by name; where there are more blocks, by the name without its numbers. `branches`
    names the modules whose output is added to a residual stream; only with them may depth differ. A `*` in them stands
    for one part of a name: "blocks.*" is every block and nothing inside. `roles` are those that the optimizer will be
    given.

    In place: initial weights get the root mean square of the base's times a power of growth (`init_power`), unless
    shape and number are the base's; zeros stay zero. The output of a branch is multiplied by base depth / depth, the
    input of a head that is tied to an embedding by 1 / growth of the width, for its weights are the embedding's. Then
    give the model itself to an optimizer, with the hyperparameters of the base (`Muon(model, lr=...)`): it finds out
    which to multiply by what (`muonlab.optim.parametrization.multipliers`), and its `explain()` shows it; what is
    returned says what has grown. "standard" does nothing.

    The two factors are hooks: copies of the model have them, its state dict has not, so a model that is built anew to
    load one is parametrized first. Wrap (torch.compile, FSDP2, tensor parallelism) after, not before.

    Raises   UsageError for another architecture, a base that is larger, parametrized or without weights, depth without
             `branches`, a branch within another or one that is never called, as `out_proj` of nn.MultiheadAttention
    Source   init: Qiu et al. 2025 (2512.05620) and Yang et al. 2022 (2203.03466), table 3, which agree; branches:
             CompleteP, alpha = 1, as in Qiu et al. Essential AI 2025 (2505.02222) scale width alone
    Differs  from a table that sets standard deviations: the base's own are kept, and only what grows is changed

    >>> import muonlab
    >>> small, large = (nn.Sequential(nn.Linear(8, n), nn.Linear(n, n), nn.Linear(n, 4)) for n in (16, 64))
    >>> print(muonlab.parametrize(large, base=small))
    parameter  role    fan_out  fan_in  number
    0.weight   hidden  x 4      x 1     x 1
    0.bias     vector  x 4      x 1     x 1
    1.weight   hidden  x 4      x 4     x 1
    1.bias     vector  x 4      x 1     x 1
    2.weight   head    x 1      x 4     x 1
    >>> optimizer = muonlab.AdamW(large, lr=0.01)
    >>> sorted({group["lr"] for group in optimizer.param_groups})
    [0.0025, 0.01]
    """
    check_kind(kind)
    _check_model(model)
    if kind == "standard":
        found = Parametrization(kind, {}, {})
        mark(model, found, (), ())
        return found
    _check_base(model, base)
    pairs, pattern_of = matched(model, base, roles)
    branches = [branches] if isinstance(branches, str) else list(branches)
    growths = {pair.name: growth_of(pair) for pair in pairs}
    for pair in pairs:
        if pair.depth < 1:
            raise UsageError(f"the base has more of {pattern_of(pair.name)} than the model: it must be the smaller one")
        if pair.depth > 1 and not branches:
            more = f"the model has more of {pattern_of(pair.name)} than its base"
            raise UsageError(f"{more}: name the modules that write to its residual stream in `branches`")
    inputs, outputs = _tied_heads(model, pairs, growths), branch_factors(model, base, branches, pattern_of)
    for pair in pairs:
        _rescale(pair, growths[pair.name])
    for path, factor in inputs.items():
        model.get_submodule(path).register_forward_pre_hook(ScaledInput(factor), with_kwargs=True)
    for path, factor in outputs.items():
        model.get_submodule(path).register_forward_hook(ScaledOutput(factor))
    found = Parametrization(kind, growths, inputs | outputs)
    grown = [pair for pair in pairs if not pair.is_alike]
    mark(model, found, [pair.param for pair in grown], [module for pair in grown for module in pair.modules])
    return found


def param_groups(
    model: nn.Module, *, rule: str = "adamw", roles: Mapping[str, Role | str] | None = None, **hyperparameters: Any
) -> list[dict[str, Any]]:
    """The groups of a parametrized model for an optimizer of torch, or another that is element-wise.

    `rule` is the one of ours that it equals ("adamw", "sgd", ...); `hyperparameters` (lr, eps, weight_decay) are those
    of the base, and win over those of the optimizer's constructor. Where one group needs an eps of its own all have
    one, from ours if it is not given; weight_decay is 0 unless given, and always of vectors.

    Raises   UsageError for a model that is not parametrized, for a rule for matrices or a form of decay that torch does
             not have: take our class for both

    >>> from muonlab import parametrize
    >>> small, large = (nn.Sequential(nn.Linear(8, n), nn.Linear(n, 4)) for n in (16, 64))
    >>> _ = parametrize(large, base=small, kind="mup")
    >>> optimizer = torch.optim.AdamW(param_groups(large, lr=0.01, weight_decay=0.1))
    >>> [(group["lr"], group["weight_decay"]) for group in optimizer.param_groups]
    [(0.01, 0.1), (0.0025, 0.1), (0.01, 0.0)]
    """
    cls, found = catalog.get(rule), parametrization_of(model)
    if found is None:
        raise UsageError("the model is not parametrized: call muonlab.parametrize(model, base=...) first")
    if cls.rule.is_matrix_rule():
        raise UsageError(f"{rule} is for matrices: use muonlab.{cls.__name__}(model), which does this itself")
    values = {**rule_defaults(cls.rule), "weight_decay": 0.0, **hyperparameters}
    for name in hyperparameters:
        if name not in rule_defaults(cls.rule):
            raise unknown(f"hyperparameter of {rule}", name, rule_defaults(cls.rule))
    if "lr" not in hyperparameters:
        raise UsageError("param_groups needs the lr of the base: lr=...")
    if values["decay"] != rule_defaults(cls.rule)["decay"]:
        decay = f'decay="{values["decay"]}"'
        raise UsageError(f"optimizers of torch have no {decay}: leave it out, or use muonlab.{cls.__name__}(model)")
    groups, _ = routed_groups(model, roles, cls.rule, scaling=scaling_of(model, cls.rule(**values), None))
    factors = [group.get("multipliers", {}) for group in groups]
    keys = {"lr": None, "weight_decay": None, **{key: None for of_group in factors for key in of_group}}
    shared = {key: value for key, value in hyperparameters.items() if key != "decay"}
    plain = []
    for group, of_group in zip(groups, factors, strict=True):
        own = {key: values[key] * of_group.get(key, 1.0) for key in keys}
        if group["role"] == Role.VECTOR:
            own["weight_decay"] = 0.0
        plain.append({"params": [param for _, param in group["params"]], **shared, **own})
    return plain


def _check_model(model: nn.Module) -> None:
    if not isinstance(model, nn.Module):
        raise UsageError(f"model must be a torch.nn.Module, got {type(model).__name__}")
    if is_parametrized(model):
        raise UsageError("the model was parametrized before: build it anew")


def _check_base(model: nn.Module, base: nn.Module | None) -> None:
    if not isinstance(base, nn.Module):
        raise UsageError(
            "base must be a torch.nn.Module of the model's class at the size where hyperparameters were tuned: "
            "parametrize(model, base=Net(width=64))"
        )
    if base is model:
        raise UsageError("base is the model itself: build the same class again, at the size where you tuned")
    if is_parametrized(base):
        raise UsageError("the base was parametrized itself: build it anew, as it was where you tuned")
    for what, module in (("model", model), ("base", base)):
        if any(isinstance(p, UninitializedParameter) for p in module.parameters()):
            raise UsageError(f"the {what} has lazy modules without shapes: pass it a batch first")
        if any(is_dtensor(p) for p in module.parameters()):
            raise UsageError(f"the {what} is spread over ranks: parametrize it before it is spread")
        if any(p.is_meta for p in module.parameters()):
            raise UsageError(f"the {what} has no weights (device meta): parametrize after they are initialised")


def _tied_heads(model: nn.Module, pairs: Sequence[Pair], growths: Mapping[str, Growth]) -> dict[str, float]:
    """Modules that share the weights of an embedding and are none, with the factor for their inputs."""
    paths, found = {module: path for path, module in model.named_modules()}, {}
    for pair in pairs:
        growth = growths[pair.name].fan_out
        if pair.role is Role.EMBEDDING and pair.has_table and growth != 1.0:
            found |= {paths[module]: 1 / growth for module in pair.modules if not isinstance(module, TABLES)}
    return found


def _rescale(pair: Pair, growth: Growth) -> None:
    actual = _rms([pair.param])
    if pair.is_alike or not actual:
        return
    factor = _rms(pair.of_base) * growth.fan_in ** init_power(pair.role) / actual
    if factor != 1.0:
        pair.param.mul_(factor)


def _rms(tensors: Sequence[Tensor]) -> float:
    """Root mean square over all of them, in float64 on the CPU, so that it does not depend on the device."""
    total = sum(float(tensor.detach().cpu().double().square().sum()) for tensor in tensors)
    return math.sqrt(total / max(1, sum(tensor.numel() for tensor in tensors)))
