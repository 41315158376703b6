"""What a reviewer would object to in how the optimizers of a table were tuned."""

import math
from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

from muonlab.analyze.audit_rows import Configuration, Evidence, Finding, Line, Point, Severity, Slice
from muonlab.analyze.cells import Key

__all__ = [
    "Result",
    "enumerated",
    "grid_edge",
    "is_batch",
    "is_lr",
    "threshold_below_noise",
    "unequal_tuning",
    "union",
    "untuned_baseline",
]

Result = list[Finding] | str  # text: why the table does not allow the rule to be checked

MAX_RATIO = 2.0  # of the numbers of configurations tried; half as many is what the verdicts of `compare` demand too
FAR_NATS = 0.5  # a neighbour that much worse blew up, and its loss says nothing about a slope
DEFAULTS = {  # of AdamW in torch, GPT-3, Llama and their descendants
    "lr": (1e-3, 3e-4, 6e-4),
    "beta1": (0.9,),
    "beta2": (0.999,),
    "betas": ((0.9, 0.999), "(0.9, 0.999)", "[0.9, 0.999]"),
    "weight_decay": (0.01, 0.1),
}
SHOWN = 3  # places that a sentence names


def grid_edge(evidence: Evidence) -> Result:
    """The optimum of a numeric setting lies on an edge of the values tried, and the edge is no natural bound.

    A gain over its neighbour within the noise is a flat optimum, a note. An open edge of a challenger can only hurt the
    challenger: a warning. One of the baseline is an error if it is that of a learning rate, or if the last step gained
    as much as the best challenger is ahead: by convexity a further one may gain as much again.
    """
    if not evidence.slices:
        return "no setting has two values around a best configuration: rows of the tuning would allow it"
    groups: dict[tuple[Severity, str, str, str], list[_Edge]] = defaultdict(list)
    for one in evidence.slices:
        if edge := _edge(evidence, one):
            about = "" if edge.severity == "note" else one.name  # notes are many, and one for each optimizer
            groups[edge.severity, edge.kind, one.optimizer, about].append(edge)
    return [
        Finding(
            rule="grid_edge",
            severity=severity,
            detail=f"{' '.join(filter(None, (optimizer, name)))} {kind}: "
            + enumerated([edge.text.removeprefix(f"{name} ") for edge in found]),
            rows=union(edge.lines for edge in found),
        )
        for (severity, kind, optimizer, name), found in groups.items()
    ]


@dataclass(frozen=True)
class _Edge:
    severity: Severity
    kind: str
    text: str
    lines: tuple[Line, ...]


def _edge(evidence: Evidence, one: Slice) -> _Edge | None:
    """None where the optimum is interior, or nothing lies beyond."""
    points = sorted(one.points, key=lambda point: _order(one.name, point.value))
    lines = union(point.lines for point in points)
    if one.best is None:
        return _unknown_edge(evidence, one, points, lines)
    index = points.index(one.best)
    if 0 < index < len(points) - 1 or _is_natural(one.name, one.best.value, index == 0):
        return None
    neighbour = points[1] if index == 0 else points[-2]
    gain = None if neighbour.loss is None else neighbour.loss - one.loss
    tried = f"{one.name} {one.best.value:g} of {', '.join(f'{point.value:g}' for point in points)}"
    lost = gain is None or gain > FAR_NATS
    text = tried if lost else f"{tried}, last step {gain:.4f} nats"
    text += f" ({evidence.at(one.place)})"
    if gain is not None and gain <= evidence.threshold:
        return _Edge("note", f"is flat at an edge, within {evidence.threshold:.2g} nats", text, lines)
    if is_batch(one.name):
        return _Edge("note", "is at an edge of the batch, which may be that of the hardware", text, lines)
    if gain is None or lost:
        return _Edge("warning", "is at an edge beside runs that blew up or have no loss", text, lines)
    return _Edge(_severity(evidence, one, gain), "is at an open edge", text, lines)


def _severity(evidence: Evidence, one: Slice, gain: float) -> Severity:
    here = evidence.places[one.place]
    ahead = [here[one.optimizer].loss or 0.0, *(best.loss or 0.0 for best in here.values())]
    decides = is_lr(one.name) or gain >= ahead[0] - min(ahead) > 0
    return "error" if one.optimizer == evidence.baseline and decides else "warning"


def _unknown_edge(evidence: Evidence, one: Slice, points: Sequence[Point], lines: tuple[Line, ...]) -> _Edge | None:
    """Of ablations whose tuned point is not in the table. A single other value makes an edge of it for certain."""
    lowest = min(points, key=lambda p: math.inf if p.loss is None else p.loss)
    gain = None if lowest.loss is None else lowest.loss - one.loss
    place = evidence.at(one.place)
    if len(points) == 1:
        kind = "has one value beside the tuned one, which is not in the table (--tuned) but must be at an edge"
        if gain is not None and gain <= evidence.threshold:
            return None  # the tuned loss is not in the table either: it may be flat
        worse = (
            f"worse by {gain:.4f} nats or more" if gain is not None and gain <= FAR_NATS else "without a usable loss"
        )
        text = f"{one.name} {lowest.value:g}, {worse} ({place})"
        return _Edge("note" if is_batch(one.name) else "warning", kind, text, lines)
    if lowest.loss is None or points.index(lowest) not in (0, len(points) - 1):
        return None
    kind = "has its lowest loss at an edge, unless the tuned value, which is not in the table (--tuned), lies inside"
    values = ", ".join(f"{point.value:g}" for point in points)
    text = f"{one.name} {lowest.value:g} of {values} ({place})"
    return _Edge("warning" if is_lr(one.name) else "note", kind, text, lines)


def _order(name: str, value: float) -> float:
    """Of a bound on gradients 0 means none, so that it comes last."""
    return math.inf if value == 0 and _is_clip(name) else value


def _is_natural(name: str, value: float, is_lower: bool) -> bool:
    """Whether nothing lies beyond: 0, no clipping, all of a fraction, every step."""
    leaf = name.rpartition(".")[2]
    if value == 0:
        return not is_lr(name)
    if value == 1 and is_lower:
        return any(part in leaf for part in ("frequency", "every", "interval", "num_", "steps"))
    fraction = leaf == "decay" or any(part in leaf for part in ("fraction", "ratio", "beta", "momentum"))
    return value == 1 and not is_lower and fraction and "lr" not in leaf.split("_")


def _is_clip(name: str) -> bool:
    return "clip" in name or "grad_norm" in name


def is_lr(name: str) -> bool:
    """
    >>> [is_lr(name) for name in ("opt.lr", "learning_rate", "min_lr_ratio")]
    [True, True, False]
    """
    return name.rpartition(".")[2] in ("lr", "learning_rate", "peak_lr", "max_lr")


def is_batch(name: str) -> bool:
    return name.rpartition(".")[2] in ("batch_tokens", "batch_size", "train_batch_size", "global_batch_size")


def unequal_tuning(evidence: Evidence) -> Result:
    """The numbers of configurations tried at one place differ by more than a factor of 2."""
    if not any(len(tried) > 1 for tried in evidence.cells.values()):
        return "one configuration for each optimizer, size and length: rows of the tuning would allow it"
    groups: dict[Severity, list[tuple[str, list[Line]]]] = defaultdict(list)
    for place, here in evidence.places.items():
        tried = {name: evidence.cells[name, *place] for name in here}
        counts = {name: len(found) for name, found in tried.items()}
        most, least = max(counts.values()), min(counts.values())
        if most <= MAX_RATIO * least:
            continue
        behind = evidence.baseline in counts and counts[evidence.baseline] * MAX_RATIO < most
        text = ", ".join(f"{name} {count}" for name, count in counts.items())
        lines = [line for name, found in tried.items() if counts[name] == least for one in found for line in one.lines]
        groups["error" if behind else "warning"].append((f"{text} ({evidence.at(place)})", lines))
    return [
        Finding(
            rule="unequal_tuning",
            severity=severity,
            detail=f"configurations tried differ by more than a factor of {MAX_RATIO:g}"
            + (f", and {evidence.baseline} has the fewer: " if severity == "error" else ": ")
            + enumerated([text for text, _ in found]),
            rows=union(lines for _, lines in found),
        )
        for severity, found in groups.items()
    ]


def untuned_baseline(evidence: Evidence) -> Result:
    """The baseline has one configuration where a challenger has several, no sweep of its lr, or a default's lr."""
    cells = {key: tried for key, tried in evidence.cells.items() if key[0] == evidence.baseline}
    if not cells:
        return f"{evidence.baseline} is not in the table: say what is the baseline with --baseline"
    reasons: dict[tuple[Severity, str], list[tuple[Key, list[Line]]]] = defaultdict(list)
    for key, tried in cells.items():
        for severity, reason in _untuned(evidence, key, tried):
            reasons[severity, reason].append((key, [line for one in tried for line in one.lines]))
    found = [
        Finding(
            rule="untuned_baseline",
            severity=severity,
            detail=f"{evidence.baseline} {reason}: " + enumerated([evidence.at(key[1:]) for key, _ in where]),
            rows=union(lines for _, lines in where),
        )
        for (severity, reason), where in reasons.items()
    ]
    found += _defaults_only(evidence, cells)
    several = any(len(tried) > 1 for tried in evidence.cells.values())
    if not found and not several and not any(is_lr(name) for name in evidence.columns):
        return "neither a learning rate nor more than one configuration of any optimizer: a column lr would allow it"
    return found


def _untuned(evidence: Evidence, key: Key, tried: Sequence[Configuration]) -> Iterator[tuple[Severity, str]]:
    others = {
        name: evidence.cells[name, *key[1:]]
        for name in {other[0] for other in evidence.cells if other[1:] == key[1:]} - {evidence.baseline}
    }
    rates = {value for one in tried for name, value in one.settings.items() if is_lr(name)}
    most = max((len(found) for found in others.values()), default=0)
    if len(tried) == 1 and most > 1:
        yield "error", "has one configuration where a challenger has several"
    elif len(rates) == 1 and not evidence.is_ablation:
        swept = any(
            len({value for one in found for name, value in one.settings.items() if is_lr(name)}) > 1
            for found in others.values()
        )
        if swept or len(tried) > 1:
            yield "error", "has one learning rate only"
    elif not rates and len(tried) > 1 and any(is_lr(name) for name in evidence.columns):
        yield "error", "has no learning rate sweep"
    if len(rates) == 1 and not evidence.is_ablation and (rate := next(iter(rates))) in DEFAULTS["lr"]:
        yield "error", f"has the learning rate of a known default, {rate:g}, and no other"


def _defaults_only(evidence: Evidence, cells: dict[Key, tuple[Configuration, ...]]) -> Iterator[Finding]:
    """Other settings with one value in the whole table, and that one a known default."""
    values: dict[str, set[object]] = defaultdict(set)
    for tried in cells.values():
        for one in tried:
            for name, value in one.settings.items():
                values[name].add(value)
    alone = {name: next(iter(found)) for name, found in values.items() if len(found) == 1}
    named = [
        f"{name} {value}"
        for name, value in alone.items()
        if not is_lr(name) and value in DEFAULTS.get(name.rpartition(".")[2], ())
    ]
    if named and not evidence.is_ablation:
        yield Finding(
            rule="untuned_baseline",
            severity="note",
            detail=f"{evidence.baseline} has known defaults and no other value: {', '.join(named)}",
            rows=union(one.lines for tried in cells.values() for one in tried),
        )


def threshold_below_noise(evidence: Evidence) -> Result:
    """The best configuration leads the second by less than one standard error of their difference."""
    if not evidence.measured.degrees:
        return "no configuration has two seeds: a column seed would allow it"
    close: list[tuple[str, tuple[Line, ...]]] = []
    for key, best in evidence.best.items():
        others = [one for one in evidence.cells[key] if one is not best and one.loss is not None]
        if not others:
            continue
        second = min(others, key=lambda one: one.loss or 0.0)
        gap = (second.loss or 0.0) - (best.loss or 0.0)
        error = math.sqrt(evidence.measured.variance * (1 / len(best.losses) + 1 / len(second.losses)))
        if gap < error:
            text = f"{key[0]} by {gap:.4f} of {error:.4f} nats ({evidence.at(key[1:])})"
            close.append((text, (*best.lines, *second.lines)))
    if not close:
        return []
    detail = "the best configuration leads the second by less than one standard error: "
    return [
        Finding(
            rule="threshold_below_noise", severity="note", detail=detail + enumerated([text for text, _ in close]),
            rows=union(lines for _, lines in close),
        )
    ]  # fmt: skip


def enumerated(parts: Sequence[str]) -> str:
    """The first few, and how many more.

    >>> enumerated(["a", "b", "c", "d", "e"])
    'a; b; c; and 2 more'
    """
    more = [f"and {len(parts) - SHOWN} more"] if len(parts) > SHOWN + 1 else []
    return "; ".join([*parts[: SHOWN if more else SHOWN + 1], *more])


def union(groups: Iterable[Iterable[Line]]) -> tuple[Line, ...]:
    """Each line once."""
    return tuple(dict.fromkeys(line for group in groups for line in group))
