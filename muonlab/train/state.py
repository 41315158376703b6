"""The tensors of a run by name, wherever they lie: parameters and buffers, and what the optimizer keeps of them."""

from collections import defaultdict
from collections.abc import Callable, Mapping
from typing import Any

from torch import Tensor, nn

from muonlab.optim.engine import Engine
from muonlab.optim.sharding import local_of, moved_to, spread_as

__all__ = ["AVERAGE", "load_tensors", "place_for", "tensors_of"]

MODEL, OPTIMIZER, AVERAGE = "model", "optimizer", "average"  # first part of a name

Tensors = dict[str, Tensor]


def tensors_of(model: nn.Module, optimizer: Engine) -> tuple[Tensors, list[dict[str, Any]]]:
    """Every tensor by name, and the param groups without their parameters; a collective.

    State is "optimizer", the name of its parameter, and its own after a slash: "optimizer/blocks.0.weight/exp_avg".
    """
    state = optimizer.state_dict()
    found = {f"{MODEL}/{name}": tensor for name, tensor in model.state_dict().items()}
    for index, name in _names(optimizer).items():
        for key, value in state["state"].get(index, {}).items():
            found[f"{OPTIMIZER}/{name}/{key}"] = value
    return found, [{k: v for k, v in group.items() if k != "params"} for group in state["param_groups"]]


def load_tensors(model: nn.Module, optimizer: Engine, tensors: Mapping[str, Tensor], groups: list[dict]) -> None:
    """The opposite; tensors lie as `place_for` lays them."""
    own: Tensors = {}
    state: dict[int, Tensors] = defaultdict(dict)
    indices = {name: index for index, name in _names(optimizer).items()}
    for key, tensor in tensors.items():
        part, _, rest = key.partition("/")
        if part == MODEL:
            own[rest] = tensor
        else:
            name, _, field = rest.rpartition("/")
            state[indices[name]][field] = tensor
    model.load_state_dict(own)
    numbered = [
        {**group, "params": [indices[name] for name in mine["param_names"]]}
        for group, mine in zip(groups, optimizer.param_groups, strict=True)
    ]
    optimizer.load_state_dict({"state": dict(state), "param_groups": numbered})


def place_for(model: nn.Module) -> Callable[[str, Tensor], Tensor]:
    """What lays a whole tensor, by its name, over ranks as this model wants it."""
    own = model.state_dict()

    def place(key: str, whole: Tensor) -> Tensor:
        part, _, rest = key.partition("/")
        if part in (MODEL, AVERAGE):
            return moved_to(own[rest], whole)
        p = own[rest.rpartition("/")[0]]
        return spread_as(p, whole.to(local_of(p).device)) if whole.ndim else whole

    return place


def _names(optimizer: Engine) -> dict[int, str]:
    """Of parameters, by their number in a state dict."""
    names = [name for group in optimizer.param_groups for name in group["param_names"]]
    return dict(enumerate(names))
