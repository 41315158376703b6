"""Hugging Face transformers: an optimizer for `Trainer` that is routed by the model."""

import fnmatch
from collections.abc import Iterable, Iterator, Mapping
from typing import TYPE_CHECKING, Any

from muonlab.errors import UsageError
from muonlab.optim import Engine, Rule, catalog

if TYPE_CHECKING:
    from torch import nn

__all__ = ["OptimizerFactory", "fused_parts"]

BY_NAME = ("roles", "split_sizes", "num_heads")  # arguments that speak of parameters by name or glob


class OptimizerFactory:
    """What `Trainer(optimizer_cls_and_kwargs=(OptimizerFactory, {...}))` takes: it is made, then called with the model.

    Calling  model       its parameters are routed by module type, tying, name and shape, as by `muonlab.Muon(model)`
             optimizer   a name as in `muonlab optimizers`, "file.py:Class", an optimizer class or a rule
             the rest    arguments of that optimizer: lr, weight_decay, aux_lr, roles, ...
    Decay    none of vectors (biases, gains of norms), as in Trainer; of all the rest, embeddings included
    Fused    projections that `fused_parts` knows are taken apart, but for those that `roles`, `split_sizes` or
             `num_heads` names
    Differs  from a class in the same place, which gets groups without names: nothing there tells a head from a hidden
             matrix. The training arguments learning_rate, weight_decay, adam_*, optim and optim_args are not used
    Raises   UsageError for an optimizer that does not exist; TypeError for an argument that it does not have

    >>> from torch import nn
    >>> OptimizerFactory()(nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 2)), optimizer="normuon", lr=0.02).rule.name
    'normuon'
    """

    def __call__(
        self, model: "nn.Module", *, optimizer: str | type[Engine] | type[Rule] = "muon", **arguments: Any
    ) -> Engine:
        cls = _class_of(optimizer)
        given = arguments.get("split_sizes") or {}
        if cls.rule.is_matrix_rule() and isinstance(given, Mapping):
            told = [str(glob) for key in BY_NAME if isinstance(arguments.get(key), Mapping) for glob in arguments[key]]
            found = {name: sizes for name, sizes in fused_parts(model).items() if not _is_told(name, told)}
            arguments["split_sizes"] = {**found, **given} or None
        return cls(model, **arguments)


def _class_of(optimizer: str | type[Engine] | type[Rule]) -> type[Engine]:
    if isinstance(optimizer, str):
        return catalog.locate(optimizer).cls
    if not isinstance(optimizer, type) or not issubclass(optimizer, Engine | Rule) or optimizer is Engine:
        raise UsageError(f"optimizer must be a name, or a class of muonlab.optim, got {optimizer!r}")
    return catalog.optimizer_class(optimizer)


def _is_told(name: str, globs: Iterable[str]) -> bool:
    return any(fnmatch.fnmatchcase(name, glob) for glob in globs)


def fused_parts(model: "nn.Module") -> dict[str, tuple[int, ...]]:
    """Outputs of the matrices that modules of transformers stack into one, by the name of the weight.

    Query, key and value of GPT-2's `c_attn` (and its relatives') and of Phi-3's `qkv_proj`; the halves of a dense
    `gate_up_proj`. Not told: `query_key_value`, which in GPT-NeoX alternates by head, and experts.
    """
    return {f"{path}.weight": sizes for path, sizes in _fused(model)}


def _fused(model: "nn.Module") -> Iterator[tuple[str, tuple[int, ...]]]:
    for path, module in model.named_modules():
        kinds = {name: type(child).__name__ for name, child in module.named_children()}
        start = f"{path}." if path else ""
        if kinds.get("c_attn") == "Conv1D" and hasattr(module, "split_size"):
            yield f"{start}c_attn", (module.split_size,) * (module.c_attn.nf // module.split_size)
        if kinds.get("gate_up_proj") == "Linear":
            yield f"{start}gate_up_proj", (module.gate_up_proj.out_features // 2,) * 2
        if kinds.get("qkv_proj") == "Linear" and type(module).__name__ == "Phi3Attention":
            config = module.config
            heads = (config.num_attention_heads, config.num_key_value_heads, config.num_key_value_heads)
            yield f"{start}qkv_proj", tuple(count * module.head_dim for count in heads)
