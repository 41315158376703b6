"""The protocol between a task (model, data, loss) and the trainer; ours and the user's alike."""

from collections.abc import Iterable, Mapping
from typing import Any, Protocol, runtime_checkable

from torch import Tensor, nn

from muonlab.roles import Role

__all__ = ["PublishesRoles", "Task"]


@runtime_checkable
class Task(Protocol):
    """A model, its data and its loss. The constructor takes the options of the task (`task.width=64` on the command
    line is `width=64` here) and, if it reads data from disk, `data: tuple[str, ...]`.

    A *sample* is the unit that batches are counted in (a sequence, an image); `tokens_per_sample` converts to tokens
    (1 for images). Loss is in nats per token.

    Below in this file are the methods that a task may have besides, among them `labelled(count)`, which gives inputs
    and labels of shape (samples,) or (samples, positions) for probes of layers.
    """

    tokens_per_sample: int

    def build(self) -> nn.Module:
        """A freshly initialised model. All randomness comes from torch's global generator, seeded by the trainer."""
        ...

    def batch(self, seed: int, start: int, count: int) -> Any:
        """Training samples start ... start + count - 1 of the stream that `seed` names, as CPU tensors.

        A pure function: sample i is the same whatever the batch that contains it, so ranks, gradient accumulation and
        batch size only slice the stream.
        """
        ...

    def loss(self, model: nn.Module, batch: Any) -> Tensor:
        """Mean loss over the batch, a scalar that can be differentiated."""
        ...

    def evaluation(self) -> Iterable[tuple[Any, int]]:
        """Held-out batches with their weights (tokens), always the same ones in the same order."""
        ...


@runtime_checkable
class PublishesRoles(Protocol):
    """A task may also say what its parameters are; routing finds it out otherwise."""

    def roles(self, model: nn.Module) -> Mapping[str, Role]:
        """Parameter name -> role, for every parameter of the model."""
        ...


# Optional, looked up by name:
# `flops_per_token(model) -> float`: forward and backward; 6 x parameters otherwise.
# `curvature_loss(model, batch) -> Tensor`: the mean loss against labels drawn from the model's own predictions, which
#     optimizers that observe curvature (Sophia) ask for now and then.
# `branches(model) -> list[str]`: the modules whose output is added to a residual stream, so that depth may differ from
#     that of a parametrization's base model.
# `measures(model) -> dict[str, float]`: what else to know of the model, name -> number, taken when the held-out loss
#     is during a run and kept in the record's probes. It must not change the model.
# `labelled(count) -> (inputs, labels)`: about `count` held-out labels, always the same, with what the model takes to
#     give them, for probes of its layers: whole numbers, (samples,) or (samples, positions), -1 for none, two rows
#     or more of every class; or None. Where held-out batches are (inputs, classes) it is not needed.
# `corruptions -> Mapping[str, function]`: name -> function of (inputs, severity from 1 to 5, seed) that gives inputs,
#     which stand for what `loss` calls the model with.
# `fingerprint() -> str`: hash of the data; the options and the hash of the source identify it otherwise.
# `check(batch_samples: int) -> None`: raises UsageError where a batch exceeds the data.
# `tensor_parallel_plan(model, size: int) -> dict`: module name -> ParallelStyle, as parallelize_module of
#     torch.distributed.tensor.parallel takes it, for `--parallel tp=SIZE`.
# `roles` may give plain strings ("hidden") instead of `Role`, so that a task need not import muonlab.
