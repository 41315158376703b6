"""What hidden states are like: by layer, on a fixed held-out sample.

All definitions are ours: those of the papers that speak of the same things are not known to us, or differ.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from muonlab.errors import UsageError, unknown
from muonlab.representations import margins, normalised_margins, ranks
from muonlab.tasks.base import Task
from muonlab.train.batches import to_device

__all__ = [
    "Probed", "Sample", "classes_of", "evaluating", "fit_probe", "fit_probe_is_possible", "hidden_states", "layers_of",
    "logistic", "measured_layers", "sample_of",
]  # fmt: skip

SAMPLES = 512  # labels of a sample, at most
L2 = 1e-2  # of a probe: beside its mean loss stands L2 / 2 |W|^2
LOW = 5  # percentile of the margins
IGNORED = -1  # a label of what is not looked at

Array = NDArray[np.float64]
States = Mapping[str, Array]  # layer -> (rows, features)


class Sample(NamedTuple):
    """Held-out inputs of a model, and what they are."""

    inputs: Any
    labels: Tensor | None  # (samples,), or (samples, positions); -1 where it is not to be looked at


def sample_of(task: Task, count: int = SAMPLES) -> Sample:
    """The same about `count` rows for every model of the task.

    What `task.labelled(count)` gives, else the first held-out samples, where a batch is (inputs, classes) or inputs
    alone.

    Raises   UsageError for a task with neither, or labels that are none
    """
    if hasattr(task, "labelled"):
        return _labelled(task, task.labelled(count))
    inputs, labels = [], []
    for batch, _ in task.evaluation():
        pair = batch if isinstance(batch, tuple | list) and len(batch) == 2 else (batch, None)
        if not isinstance(pair[0], Tensor) or not (pair[1] is None or isinstance(pair[1], Tensor)):
            raise UsageError(f"{type(task).__name__} needs a method labelled(count) that gives (inputs, labels)")
        inputs.append(pair[0])
        labels.append(classes_of(batch))
        if sum(map(len, inputs)) >= count:
            break
    if not inputs:
        raise UsageError("the task has no held-out data: evaluation() yielded nothing")
    known = [classes for classes in labels if classes is not None]
    return Sample(torch.cat(inputs)[:count], torch.cat(known)[:count] if len(known) == len(labels) else None)


def _labelled(task: Task, pair: Any) -> Sample:
    labels = pair[1] if isinstance(pair, tuple | list) and len(pair) == 2 else pair
    whole = isinstance(labels, Tensor) and labels.ndim in (1, 2) and not labels.is_floating_point()
    if labels is pair or not (labels is None or whole):
        got = f"{labels.dtype} {tuple(labels.shape)}" if isinstance(labels, Tensor) else f"a {type(labels).__name__}"
        where = "" if labels is pair else " for labels"
        raise UsageError(
            f"{type(task).__name__}.labelled(count) must give (inputs, labels), labels being whole numbers of shape "
            f"(samples,) or (samples, positions), or None, got {got}{where}"
        )
    return Sample(pair[0], labels)


def classes_of(batch: Any) -> Tensor | None:
    """Those of a batch of (inputs, classes), whole numbers (samples,); None of any other batch."""
    if not isinstance(batch, tuple | list) or len(batch) != 2 or not isinstance(batch[1], Tensor):
        return None
    return batch[1] if batch[1].ndim == 1 and not batch[1].is_floating_point() else None


def layers_of(model: nn.Module, names: Sequence[str] = ()) -> dict[str, nn.Module]:
    """The modules of those names; without names the elements of the outermost ModuleLists, else of Sequentials.

    >>> list(layers_of(nn.Sequential(nn.Linear(2, 3), nn.ReLU(), nn.Linear(3, 2))))
    ['0', '2']

    Raises   UsageError for a name that there is not, and where there is nothing to choose
    """
    modules = dict(model.named_modules())
    for name in names:
        if name not in modules:
            raise unknown("layer", name, [n for n in modules if n])
    if names:
        return {name: modules[name] for name in names}
    for kind in (nn.ModuleList, nn.Sequential):
        outer = [name for name, module in modules.items() if isinstance(module, kind)]
        outer = [name for name in outer if not any(o != name and f"{name}.".startswith(f"{o}.") for o in outer if o)]
        outer = [""] if "" in outer else outer
        found = {
            f"{name}.{child}".lstrip("."): module
            for name in outer
            for child, module in modules[name].named_children()
            if any(True for _ in module.parameters())
        }
        if found:
            return found
    raise UsageError(
        "the model has no ModuleList or Sequential whose elements were its layers: let build() keep them in one, or "
        "look at trained weights with features --checkpoint FILE.pt --layers NAME,..."
    )


def hidden_states(model: nn.Module, sample: Sample, names: Sequence[str] = ()) -> dict[str, Array]:
    """What comes out of each layer, a row for each label: (rows, features) float64.

    One label for a sample: the mean over its positions or pixels. One for each position: the state there.

    A layer that the model never calls is left out.

    Raises   UsageError as `layers_of` does, for an output that has no such rows, and a layer of `names` that is never
             called
    """
    found: dict[str, Tensor] = {}
    layers = layers_of(model, names)

    def keep(name: str) -> Callable[..., None]:
        def hook(module: nn.Module, inputs: Any, output: Any) -> None:
            found[name] = output[0] if isinstance(output, tuple) else output

        return hook

    hooks = [module.register_forward_hook(keep(name)) for name, module in layers.items()]
    try:
        with evaluating(model) as device:
            model(to_device(sample.inputs, device))
    finally:
        for hook in hooks:
            hook.remove()
    unused = [name for name in layers if name not in found]
    if unused and (names or not found):
        raise UsageError(f"layer {unused[0]} is never called by the model: it has no output to look at")
    return {name: _rows(name, found[name], sample.labels) for name in layers if name in found}


@contextmanager
def evaluating(model: nn.Module) -> Iterator[torch.device]:
    training = model.training
    model.eval()
    try:
        with torch.no_grad():
            yield next(model.parameters()).device
    finally:
        model.train(training)


def _rows(name: str, state: Any, labels: Tensor | None) -> Array:
    if not isinstance(state, Tensor) or state.ndim not in (2, 3, 4):
        what = f"shape {tuple(state.shape)}" if isinstance(state, Tensor) else f"a {type(state).__name__}"
        raise UsageError(f"layer {name} gives {what}: hidden states are (B, D), (B, T, D) or (B, C, Y, X)")
    if labels is not None and state.shape[: labels.ndim] != labels.shape:
        raise UsageError(
            f"layer {name} gives {tuple(state.shape)}, but there are {tuple(labels.shape)} labels: look at others"
        )
    if labels is not None and labels.ndim == 2:
        state = state[labels.to(state.device) != IGNORED]
    elif state.ndim > 2:
        state = state.mean((2, 3) if state.ndim == 4 else 1)
    return state.double().cpu().numpy()


class Probed(NamedTuple):
    """What a linear classifier finds in one layer, on rows that it was not fitted to."""

    accuracy: float
    margin: float  # mean
    margin_low: float  # 5th percentile
    margin_normalised: float  # mean


def fit_probe(x: Array, labels: NDArray[np.integer]) -> Probed:
    """A multinomial logistic probe, fitted to one half of the rows and tried on the other.

    Math     features standardised by the mean and deviation of the first half; mean cross-entropy + L2 / 2 |W|^2
    Shapes   x (rows, features), labels (rows,)
    Source   ours: one L2 for all, one split for all
    Raises   UsageError for one class, fewer rows than twice the classes, a class of one row, NaN, constant features
    """
    ranks(x)  # refuses NaN and constant features
    names, y = np.unique(labels, return_inverse=True)
    if len(names) < 2:
        raise UsageError(f"a probe needs at least two classes, got one in {len(y)} rows")
    if len(x) != len(y) or len(x) < 2 * len(names):
        raise UsageError(f"a probe of {len(names)} classes needs twice as many rows at least, got {len(x)}")
    if np.bincount(y).min() < 2:
        raise UsageError("a probe needs two rows of every class: leave the rarest classes out, or take more samples")
    order = np.random.default_rng(0).permutation(len(x))
    order = order[np.argsort(y[order], kind="stable")]
    first, second = order[::2], order[1::2]  # of every class one half each
    scaler, probe = logistic(x[first], y[first])
    tried = scaler.transform(x[second])
    logits, weights = probe.decision_function(tried), probe.coef_
    if logits.ndim == 1:  # of two classes it has the second alone
        logits, weights = np.stack([0 * logits, logits], 1), np.concatenate([0 * weights, weights])
    own = margins(logits, y[second])
    normalised = normalised_margins(logits, y[second], weights, tried)
    return Probed(
        accuracy=float((own > 0).mean()),
        margin=float(own.mean()),
        margin_low=float(np.percentile(own, LOW)),
        margin_normalised=float(normalised.mean()),
    )


def logistic(x: Array, labels: NDArray[np.integer]) -> tuple[Any, Any]:
    """What standardises features, and the multinomial logistic regression of scikit-learn on those that it has."""
    from sklearn.linear_model import LogisticRegression
    from sklearn.preprocessing import StandardScaler

    scaler = StandardScaler().fit(x)
    probe = LogisticRegression(C=1 / (L2 * len(x)), max_iter=2000, tol=1e-3)
    return scaler, probe.fit(scaler.transform(x), labels)


def measured_layers(states: States, labels: Tensor | None) -> dict[str, dict[str, float]]:
    """Ranks by layer, and where there are labels what a probe finds; a layer that neither is defined of has nothing."""
    y = None if labels is None else labels[labels != IGNORED].cpu().numpy()
    found: dict[str, dict[str, float]] = {}
    for name, x in states.items():
        try:
            own = {f"rank_{kind}": value for kind, value in ranks(x)._asdict().items()}
            found[name] = own if y is None else own | fit_probe(x, y)._asdict()
        except UsageError:  # it has collapsed, or overflowed
            found[name] = {}
    return found


def fit_probe_is_possible(labels: Tensor | None) -> None:
    """Raises   UsageError as `fit_probe` does, whatever the hidden states will be"""
    if labels is not None:
        y = labels[labels != IGNORED].numpy()
        fit_probe(np.random.default_rng(0).standard_normal((len(y), 2)), y)
