"""What a reviewer would object to in which runs of a table are compared, and in what is concluded from them."""

import math
from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from itertools import product
from typing import Any

from muonlab.analyze.audit_rows import Configuration, Evidence, Finding, Line, Place, Severity
from muonlab.analyze.audit_tuning import Result, enumerated, is_batch, is_lr, union
from muonlab.analyze.runs import LAST, LOWEST, Run
from muonlab.analyze.significance import LEVEL, contrast

__all__ = [
    "cherry_picked_step", "conditions_differ", "few_seeds", "lr_not_decayed", "mid_schedule", "missing_cells",
]  # fmt: skip

UNDECAYED = 0.2  # of the peak, left at the end
FRACTIONS = ("min_lr_ratio", "final_lr_ratio", "lr_min_ratio", "final_fraction", "min_lr_factor")
RATES = ("final_lr", "lr_end", "end_lr", "min_lr", "lr_final")
CONDITIONS = ("data", "dataset", "data_fingerprint", "seq_len", "precision", "device", "torch", "task")
HOLES = 0.25  # of a grid, beyond which it was none: settings moved one at a time leave as many


def mid_schedule(evidence: Evidence) -> Result:
    """Rows before the end of their schedule, and several moments of one run."""
    found = _before_the_end(evidence)
    twins = [row for rows in evidence.histories for row in rows if len(rows) > 1 and _is_twin(row, rows)]
    if twins:
        detail = "rows that no step, seed or setting tells apart, of which the last is taken: " + enumerated(
            [f"{row.optimizer} ({evidence.at(_place(row))})" for row in twins]
        )
        found.append(_finding("mid_schedule", "error", detail, twins))
    early = [(row, rows[-1]) for rows in evidence.histories for row in rows[:-1] if not _is_twin(row, rows)]
    for severity, same, what in (("error", True, "at the same tokens"), ("warning", False, "with more tokens")):
        moments = [row for row, end in early if row.is_final and (row.tokens == end.tokens) is same]
        if moments:
            detail = f"{len(moments)} rows are earlier steps of runs whose last row stands in the table {what}"
            found.append(_finding("mid_schedule", severity, detail, moments))  # type: ignore[arg-type]
    if not found and not evidence.columns & {"horizon_tokens", "step", "run_id", "run_name"}:
        return "no column says where a schedule ends or which rows are one run: horizon_tokens or run_id would allow it"
    return found


def _is_twin(row: Run, rows: Sequence[Run]) -> bool:
    return any(row is not other and (row.tokens, row.step) == (other.tokens, other.step) for other in rows)


def _before_the_end(evidence: Evidence) -> list[Finding]:
    """An error where a run has no end in the table, or is read where others ended; else it is a curve, a warning."""
    ended = {(row.size, row.tokens) for row in evidence.ends}
    groups: dict[Severity, list[Run]] = defaultdict(list)
    for rows in evidence.histories:
        for row in rows:
            if not row.is_final:
                compared = not rows[-1].is_final or _place(row) in ended
                groups["error" if compared else "warning"].append(row)
    why = {"error": "stand where others have ended, or for a run without an end", "warning": "are no final losses"}
    return [
        _finding(
            "mid_schedule", severity,
            f"{len(rows)} rows before the end of their schedule {why[severity]}: "
            + enumerated([f"{row.optimizer} at {row.tokens / (row.horizon_tokens or 1):.0%} of its "
                           f"schedule ({evidence.at(_place(row))})" for row in rows]),
            rows,
        )
        for severity, rows in groups.items()
    ]  # fmt: skip


def lr_not_decayed(evidence: Evidence) -> Result:
    """The learning rate is constant, or ends above a fifth of its peak: an error where others decay theirs."""
    judged = [(row, left) for row in evidence.ends if (left := _left(row)) is not None]
    if not judged:
        return "no column says how the learning rate ends: schedule or min_lr_ratio would allow it"
    bad = [(row, left) for row, left in judged if left > UNDECAYED]
    if not bad:
        return []
    names = dict.fromkeys(row.optimizer for row, _ in bad)
    decayed = dict.fromkeys(row.optimizer for row, left in judged if left <= UNDECAYED)
    worst = max(left for _, left in bad)
    detail = f"{len(bad)} runs of {', '.join(names)} end at up to {worst:.0%} of the peak learning rate"
    detail += f", while {', '.join(decayed)} decay it" if decayed else ": rankings can flip during the decay"
    return [_finding("lr_not_decayed", "error" if decayed else "warning", detail, [row for row, _ in bad])]


def _left(row: Run) -> float | None:
    """The last learning rate as a fraction of the peak; None where the row does not say."""
    settings = {name.rpartition(".")[2]: value for name, value in row.settings.items()}
    kinds = [str(value) for name, value in row.settings.items() if name in SCHEDULES]
    if any(kind.lower().startswith("constant") for kind in kinds):
        return 1.0
    fractions = [settings[name] for name in FRACTIONS if isinstance(settings.get(name), int | float)]
    peak = next((value for name, value in row.settings.items() if is_lr(name)), None)
    if isinstance(peak, int | float) and peak > 0:
        fractions += [settings[name] / peak for name in RATES if isinstance(settings.get(name), int | float)]
    return max(fractions) if fractions else 0.0 if kinds else None


SCHEDULES = ("schedule", "schedule.kind", "lr_schedule", "lr_scheduler", "lr_scheduler_type", "scheduler")


def few_seeds(evidence: Evidence) -> Result:
    """The lead of the best challenger can't be resolved with the seeds there are.

    Welch's test with the noise pooled over all cells, Bonferroni's correction for the number of challengers. An error
    where no lead of the table is resolved, else a warning at the places where it is not.
    """
    places = {place: here for place, here in evidence.places.items() if evidence.baseline in here and len(here) > 1}
    if not places:
        return f"nowhere both {evidence.baseline} and a challenger: say what is the baseline with --baseline"
    nats = math.sqrt(evidence.noise.variance)
    measured = evidence.noise is evidence.measured
    weak: list[tuple[str, tuple[Line, ...]]] = []
    num_leads = 0
    for place, here in places.items():
        name, best = min(
            ((name, one) for name, one in here.items() if name != evidence.baseline),
            key=lambda item: item[1].loss or 0.0,
        )
        test = contrast(best.losses, here[evidence.baseline].losses, (evidence.noise, evidence.noise))
        if test.difference_nats is None or test.p_value is None or test.difference_nats >= 0:
            continue
        num_leads += 1
        if test.p_value * (len(here) - 1) >= 1 - LEVEL:
            counts = f"{len(best.losses)} and {len(here[evidence.baseline].losses)} runs"
            text = f"{name} {test.difference_nats:+.4f} nats, {test.resolvable_nats:.4f} resolvable with {counts}"
            weak.append((f"{text} ({evidence.at(place)})", (*best.lines, *here[evidence.baseline].lines)))
    assumed = f"a noise of {nats:.2g} nats between seeds, " + ("as measured" if measured else "which is assumed")
    found = []
    if weak:
        detail = f"the lead over {evidence.baseline} is not resolved by {assumed}: "
        severity: Severity = "error" if len(weak) == num_leads else "warning"
        rows = union(lines for _, lines in weak)
        found = [Finding(rule="few_seeds", severity=severity, rows=rows,
                         detail=detail + enumerated([text for text, _ in weak]))]  # fmt: skip
    if not evidence.measured.degrees:
        detail = f"no configuration that is compared has two seeds: what is resolved rests on {assumed}"
        found.append(Finding(rule="few_seeds", severity="note", detail=detail, rows=()))
    return found


def conditions_differ(evidence: Evidence) -> Result:
    """Optimizers at one place differ in data, batch, schedule, precision, device or model.

    A batch or schedule of which every one of them has several values in the table was tuned for each: a warning.
    """
    names = sorted(name for name in evidence.columns if _is_condition(name))
    if not names:
        return "no column names data, batch, schedule, precision or device: batch_tokens or data would allow it"
    tried: dict[tuple[str, str], set[str]] = defaultdict(set)
    for row in evidence.ends:
        for name in names:
            if name in row.settings:
                tried[row.optimizer, name].add(str(row.settings[name]))
    groups: dict[tuple[Severity, str], list[tuple[str, tuple[Line, ...]]]] = defaultdict(list)
    for place, here in evidence.places.items():
        for name in names:
            values = {o: _text(best.settings[name]) for o, best in here.items() if name in best.settings}
            if len(set(values.values())) > 1:
                tuned = _is_tunable(name) and all(len(tried[optimizer, name]) > 1 for optimizer in values)
                text = ", ".join(f"{optimizer} {value}" for optimizer, value in values.items())
                lines = tuple(line for optimizer in values for line in here[optimizer].lines)
                severity: Severity = "warning" if tuned else "error"
                groups[severity, name].append((f"{text} ({evidence.at(place)})", lines))
    return [
        Finding(
            rule="conditions_differ",
            severity=severity,
            detail=f"{name} differs{', tuned for each' if severity == 'warning' else ''}: "
            + enumerated([text for text, _ in found]),
            rows=union(lines for _, lines in found),
        )
        for (severity, name), found in groups.items()
    ]


def _is_condition(name: str) -> bool:
    return name in CONDITIONS or name.startswith(("task.", "data.")) or _is_tunable(name)


def _is_tunable(name: str) -> bool:
    return is_batch(name) or name.startswith("schedule") or name in SCHEDULES


def _text(value: object) -> str:
    return f"{value:g}" if isinstance(value, float) else str(value)


def cherry_picked_step(evidence: Evidence) -> Result:
    """The loss is the lowest over steps instead of the last, or optimizers have no length in common."""
    found = list(_nothing_in_common(evidence))
    early = [
        (min(rows, key=lambda row: math.inf if row.loss is None else row.loss), rows[-1])
        for rows in evidence.histories
        if len({(row.tokens, row.step) for row in rows}) > 1 and rows[-1].loss is not None
    ]
    early = [(low, last) for low, last in early if (last.loss or 0) - (low.loss or 0) > evidence.threshold]
    if early:
        detail = "the lowest loss of a run is not its last, which is the one to report: " + enumerated(
            [f"{low.optimizer} {low.loss:.4f} before {last.loss:.4f}" for low, last in early]
        )
        found.append(_finding("cherry_picked_step", "warning", detail, [row for pair in early for row in pair]))
    found += _minimum_reported(evidence)
    moments = any(len(rows) > 1 for rows in evidence.histories)
    if not found and not moments and not evidence.columns & {*LOWEST, *LAST}:
        return "no run has rows of several steps, nor a column final_loss or best_loss beside loss: one would allow it"
    return found


def _minimum_reported(evidence: Evidence) -> Iterator[Finding]:
    certain = [
        row for row in evidence.rows
        if row.loss is not None and row.last is not None and row.last - row.loss > 1e-9
    ]  # fmt: skip
    if certain:
        worst = max((row.last or 0.0) - (row.loss or 0.0) for row in certain)
        detail = f"loss lies below the last one of the same run in {len(certain)} rows, by up to {worst:.4f} nats"
        yield _finding("cherry_picked_step", "error", detail, certain)
    known = [row for row in evidence.rows if row.lowest is not None and row.last is None and row.loss is not None]
    if known and all(abs((row.loss or 0.0) - (row.lowest or 0.0)) <= 1e-9 for row in known):
        detail = f"loss equals the lowest over steps in all {len(known)} rows that have both: it may not be the last"
        yield _finding("cherry_picked_step", "warning", detail, known)


def _nothing_in_common(evidence: Evidence) -> Iterator[Finding]:
    base = {key[1:] for key in evidence.best if key[0] == evidence.baseline}
    for name in _challengers(evidence) if base else ():
        theirs = {key[1:]: best for key, best in evidence.best.items() if key[0] == name}
        if not base & theirs.keys():
            detail = f"{name} and {evidence.baseline} have no size and length in common: there is no fair comparison"
            yield Finding(
                rule="cherry_picked_step", severity="error", detail=detail,
                rows=union(best.lines for best in theirs.values()),
            )  # fmt: skip


def _challengers(evidence: Evidence) -> Iterable[str]:
    return dict.fromkeys(key[0] for key in evidence.best if key[0] != evidence.baseline)


def missing_cells(evidence: Evidence) -> Result:
    """The baseline lacks a size and length that a challenger has, divergence left none, or a grid has holes."""
    base = {key[1:] for key in evidence.best if key[0] == evidence.baseline}
    if not base:
        return f"{evidence.baseline} is not in the table: say what is the baseline with --baseline"
    lacking: list[tuple[str, tuple[Line, ...]]] = []
    for place, here in evidence.places.items():
        if place not in base:
            text = f"{evidence.at(place)} has {', '.join(here)}"
            lacking.append((text, union(best.lines for best in here.values())))
    found = []
    if lacking:
        detail = f"{evidence.baseline} is missing where challengers are: " + enumerated([text for text, _ in lacking])
        rows = union(lines for _, lines in lacking)
        found.append(Finding(rule="missing_cells", severity="warning", detail=detail, rows=rows))
    lost = {key: tried for key, tried in evidence.cells.items() if key not in evidence.best}
    if lost:
        detail = "every configuration lost a run to divergence, so that nothing is compared: " + enumerated(
            [f"{name} ({evidence.at(place)})" for name, *place in lost]  # type: ignore[arg-type]
        )
        rows = union(one.lines for tried in lost.values() for one in tried)
        found.append(Finding(rule="missing_cells", severity="warning", detail=detail, rows=rows))
    holes = [hole for key, tried in evidence.cells.items() if (hole := _holes(evidence, key, tried))]
    if holes:
        detail = "grids of settings have holes, as diverged runs that were left out would leave: "
        rows = union(lines for _, lines in holes)
        detail += enumerated([text for text, _ in holes])
        found.append(Finding(rule="missing_cells", severity="note", detail=detail, rows=rows))
    return found


def _holes(evidence: Evidence, key: Any, tried: Sequence[Configuration]) -> tuple[str, tuple[Line, ...]] | None:
    """Of a grid of two or more settings, most of which is there."""
    values: dict[str, dict[Any, None]] = defaultdict(dict)
    for one in tried:
        for name, value in one.settings.items():
            values[name][value if not isinstance(value, list) else tuple(value)] = None
    names = [name for name, found in values.items() if len(found) > 1]
    size = math.prod(len(values[name]) for name in names)
    if len(names) < 2 or evidence.is_ablation or len(tried) >= size or size - len(tried) >= HOLES * size:
        return None
    there = {tuple(one.settings.get(name) for name in names) for one in tried}
    gone = [combination for combination in product(*(values[name] for name in names)) if combination not in there]
    first = ", ".join(f"{name} {value}" for name, value in zip(names, gone[0], strict=True))
    text = f"{key[0]} lacks {len(gone)} of {size}, such as {first} ({evidence.at(key[1:])})"
    return text, union(one.lines for one in tried)


def _place(row: Run) -> Place:
    return row.size, row.tokens


def _finding(rule: str, severity: Severity, detail: str, rows: Iterable[Run]) -> Finding:
    return Finding(rule=rule, severity=severity, detail=detail, rows=union([row.line] for row in rows))
