"""What a model loses on corrupted inputs: its loss, and the share of inputs whose class it finds."""

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

from torch import Tensor, nn

from muonlab.tasks.base import Task
from muonlab.train.batches import to_device
from muonlab.train.features import classes_of, evaluating

__all__ = ["SEVERITIES", "Score", "scores_under_corruption"]

SAMPLES = 128  # that are corrupted, in every way, at least
SEVERITIES = (1, 2, 3, 4, 5)


class Score(NamedTuple):
    """Of a model on some held-out inputs."""

    loss: float  # mean, nats
    accuracy: float | None  # share of inputs whose class has the largest output; None where inputs have no class


class _Corrupted(nn.Module):
    """The model on inputs that are corrupted on the way; targets are as they were, and outputs are kept."""

    def __init__(self, model: nn.Module, corrupt: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.model, self.corrupt = model, corrupt
        self.output: Any = None

    def forward(self, inputs: Tensor) -> Any:
        self.output = self.model(self.corrupt(inputs))
        return self.output


def scores_under_corruption(task: Task, model: nn.Module, count: int = SAMPLES) -> dict[tuple[str, int], Score]:
    """On the first held-out batches, by corruption and severity; ("clean", 0) is that without any.

    Corruptions are the task's: `corruptions` maps a name to a function of inputs, severity and seed.
    """
    batches, seen = [], 0
    for batch, weight in task.evaluation():
        batches.append((batch, weight))
        seen += weight
        if seen >= count * task.tokens_per_sample:
            break
    kinds: Mapping[str, Any] = getattr(task, "corruptions", {})

    def score(corrupt: Callable[[Tensor], Tensor]) -> Score:
        one = _Corrupted(model, corrupt).eval()
        losses, right = [], []
        for batch, weight in batches:
            moved = to_device(batch, device)
            losses.append(float(task.loss(one, moved)) * weight)
            right.append(_right(one.output, classes_of(moved)))
        known = [found for found in right if found is not None]
        samples = sum(len(batch[1]) for batch, _ in batches) if len(known) == len(right) else 0
        return Score(sum(losses) / sum(weight for _, weight in batches), sum(known) / samples if samples else None)

    with evaluating(model) as device:
        found = {("clean", 0): score(lambda x: x)}
        for name, corrupt in kinds.items():
            for severity in SEVERITIES:
                found[name, severity] = score(lambda x, f=corrupt, s=severity: f(x, s, 0))
    return found


def _right(output: Any, classes: Tensor | None) -> int | None:
    """How many inputs have their class found; None where outputs are not one for each class."""
    if classes is None or not isinstance(output, Tensor) or output.ndim != 2 or len(output) != len(classes):
        return None
    return int((output.argmax(-1) == classes).sum())
