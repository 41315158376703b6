"""What was judged, in a sentence. Every word of "better" here is a judgement that `significance` has made."""

from collections.abc import Mapping, Sequence

from muonlab.analyze.batch import BatchFinding, CriticalBatch, TokenRatio, Trend
from muonlab.analyze.features import FeaturesFinding
from muonlab.analyze.findings import Check, Contrast, Paired, Speedup, SpeedupRow
from muonlab.analyze.significance import ONE_SIDED, withheld
from muonlab.analyze.survey import Slope
from muonlab.analyze.transfer_finding import ArmFinding, TransferFinding

__all__ = ["batch_verdict", "features_verdict", "ladder_verdict", "speedup_text", "transfer_verdict", "verdict"]


def verdict(
    baseline: str,
    contrasts: Mapping[str, Contrast],
    speedups: Mapping[str, Speedup],
    paired: Mapping[str, Paired],
    checks: Sequence[Check],
    *,
    tuned: str = "tuned ",
) -> str:
    """One sentence per challenger and another where a margin was set, or why there is none.

    `tuned` is said of the baseline; "" where that is not known.
    """
    broken = withheld(checks)
    if broken:
        return f"Verdict withheld: {'; '.join(f'{check.name}: {check.detail}' for check in broken)}"
    timed = not any(check.ok is False for check in checks if check.name == "wall_clock")
    against = f"{tuned}{baseline}"
    sentences = [_sentence(name, baseline, against, contrasts[name], speedups[name], timed) for name in contrasts]
    sentences += [_margin_sentence(name, against, test) for name, test in paired.items() if test.no_worse is not None]
    return " ".join(sentences)


def ladder_verdict(baseline: str, rows: Sequence[SpeedupRow], checks: Sequence[Check]) -> str:
    """One sentence per challenger: at how many sizes and lengths it is better, and how the speedup runs.

    Where there is none, the rules that are broken: what was found of each, at every size, is too long for a sentence.
    """
    broken = [check.name for check in withheld(checks)]
    if broken:
        return f"Verdict withheld: {', '.join(broken)} {'is' if len(broken) == 1 else 'are'} broken."
    names = dict.fromkeys(row.optimizer for row in rows)
    return " ".join(_ladder_sentence(name, baseline, [row for row in rows if row.optimizer == name]) for name in names)


def _ladder_sentence(name: str, baseline: str, rows: Sequence[SpeedupRow]) -> str:
    counts = {kind: sum(row.judgement == kind for row in rows) for kind in ("better", "worse")}
    resolved = [f"{kind} at {count}" for kind, count in counts.items() if count] or ["resolved at none"]
    ends = [_place(row) for row in (rows[0], rows[-1]) if row.speedup is not None]
    course = f": {' to '.join(ends)}" if ends else ""
    return f"{name} against tuned {baseline}: {', '.join(resolved)} of {len(rows)} sizes and lengths{course}."


def _place(row: SpeedupRow) -> str:
    outside = ", extrapolated" if row.flag == "extrapolated" else ""
    return f"{_factor('', row.speedup, row.low, row.high)} at {row.size} and {row.tokens:,.0f} tokens{outside}"


def batch_verdict(finding: BatchFinding, checks: Sequence[Check]) -> str:
    """Per challenger: tokens at each batch size to the hardest target, how their ratio runs, and critical batches."""
    if broken := [check.name for check in withheld(checks)]:
        return f"Verdict withheld: {', '.join(broken)} {'is' if len(broken) == 1 else 'are'} broken."
    target = finding.hardest
    sentences = []
    for name in (n for n in finding.optimizers if n != finding.baseline):
        ratios = [one for one in finding.token_ratio if (one.optimizer, one.target) == (name, target)]
        trend = next(one for one in finding.trends if (one.optimizer, one.target) == (name, target))
        sentences.append(_ratio_sentence(name, finding.baseline, ratios, trend))
    sentences.append(_critical_sentence([one for one in finding.critical if one.target == target]))
    return f"At a held-out loss of {target:g}: {' '.join(sentences)}"


def _ratio_sentence(name: str, baseline: str, ratios: Sequence[TokenRatio], trend: Trend) -> str:
    known = [one for one in ratios if one.ratio is not None]
    if not known:
        return f"{name} and tuned {baseline} reach it at no batch size both."
    counts = {"fewer": "better", "more": "worse"}
    counts = {word: sum(one.judgement == kind for one in known) for word, kind in counts.items()}
    first, second = sorted(counts, key=lambda word: -counts[word])
    places = f"{len(known)} batch sizes" + (" that both reach it at" if len(known) < len(ratios) else "")
    resolved = f"{name} takes {first} tokens than tuned {baseline} at {counts[first]} of {places}"
    resolved += f" and {second} at {counts[second]}" if counts[second] else ""
    if not counts[first]:
        resolved = f"{name} and tuned {baseline} differ resolvably at none of {places}"
    ends = [
        f"{_factor('', one.ratio, one.low, one.high)} at {one.batch_tokens:,}"
        for one in dict.fromkeys((known[0], known[-1]))
    ]
    course = {"grows": "growing with the batch", "falls": "falling with the batch"}
    runs = course.get(trend.verdict, "no trend with the batch resolved")
    return f"{resolved}; {baseline} over {name}: {' to '.join(ends)} tokens a step, {runs}."


def _critical_sentence(critical: Sequence[CriticalBatch]) -> str:
    """Where 20 % more tokens are needed than at the best batch."""
    signs = {"above": "above ", "below": "below "}
    found = [
        "undefined" if (at := one.overhead).value is None else f"{signs.get(at.flag, '')}{at.value:,.0f}"
        for one in critical
    ]
    found = [f"{size} for {one.optimizer}" for size, one in zip(found, critical, strict=True)]
    return f"The critical batch, of 20 % more tokens than the fewest, is {', '.join(found)}."


def _sentence(name: str, baseline: str, against: str, test: Contrast, speedup: Speedup, timed: bool) -> str:
    if test.judgement == "unresolved":
        found = "no final losses to compare" if test.difference_nats is None else f"{test.difference_nats:+.3f} nats"
        able = "" if test.resolvable_nats is None else f"; {test.resolvable_nats:.3f} could have been resolved"
        return f"No difference between {name} and {baseline} was resolved ({found}{able})."
    side = "lower" if test.judgement == "better" else "higher"
    loss = f"final loss {side} by {abs(test.difference_nats or 0.0):.3f} nats at the same tokens"
    if speedup.low is None and speedup.high is None:
        return f"{name} is {test.judgement} than {against}: {loss}; how many tokens that saves cannot be told."
    wall = f" and {_factor(speedup.bound, speedup.wall, speedup.wall_low, speedup.wall_high)} in wall-clock"
    if speedup.wall is None or not timed:
        wall = " (wall-clock could not be measured)"
    return f"{name} is {test.judgement} than {against}: {speedup_text(speedup)} in tokens{wall}, {loss}."


def _margin_sentence(name: str, against: str, test: Paired) -> str:
    if test.num_lost or test.bound_nats is None:
        found = f"{test.num_lost} of its seeds lost a run" if test.num_lost else f"{test.num_pairs} pairs of runs"
    else:
        found = f"paired over {test.num_pairs} seeds {test.difference_nats:+.4f}, at most {test.bound_nats:+.4f}"
    claim = f"no worse than {against} by more than {test.margin_nats:g} nats"
    if test.no_worse:
        return f"{name} is {claim} ({found}; level {ONE_SIDED:.1%} one-sided)."
    return f"It is not shown that {name} is {claim} ({found})."


def speedup_text(speedup: Speedup) -> str:
    """The figure with its interval as people write it.

    >>> speedup_text(Speedup(tokens=1.4, low=1.2, high=None, wall=None, wall_low=None, wall_high=None, flag="",
    ...                      horizon_tokens=1))
    '1.40x [1.20, unbounded]'
    """
    if speedup.tokens is None:
        return "speedup undefined"
    outside = " (outside the baseline's horizons)" if speedup.flag == "censored" else ""
    return _factor(speedup.bound, speedup.tokens, speedup.low, speedup.high) + outside


def _factor(bound: str, value: float | None, low: float | None, high: float | None) -> str:
    if value is None:
        return "an undefined factor"
    if bound:
        return f"{bound} {value:.2f}x"
    ends = ("0" if low is None else f"{low:.2f}", "unbounded" if high is None else f"{high:.2f}")
    return f"{value:.2f}x [{', '.join(ends)}]"


def transfer_verdict(finding: TransferFinding, checks: Sequence[Check]) -> str:
    """Per arm the settings for the final width and what they cost, how final losses compare, and how lr runs."""
    if broken := [check.name for check in withheld(checks)]:
        return f"Verdict withheld: {', '.join(broken)} {'is' if len(broken) == 1 else 'are'} broken."
    sentences = [_settings_sentence(arm, finding.final_width) for arm in finding.arms if arm.best]
    for name, test in finding.contrasts.items():
        if test.judgement in ("better", "worse"):
            side = "lower" if test.judgement == "better" else "higher"
            sentences.append(f"{name} is {test.judgement} than {finding.baseline}: final loss {side} by "
                             f"{abs(test.difference_nats or 0.0):.3f} nats.")  # fmt: skip
        else:
            sentences.append(f"No difference between {name} and {finding.baseline} was resolved.")
    sentences += [_slope_sentence(finding.slopes)] if finding.slopes else []
    return " ".join(sentences)


def _settings_sentence(arm: ArmFinding, width: int | None) -> str:
    settings = ", ".join(f"{name} {value:.3g}" for name, value in arm.best.items())
    cost = "" if arm.cost_ratio is None else f", for {arm.cost_ratio:.1%} of the cost of a full grid there"
    return f"{arm.name} at width {width}: {settings}{cost}."


def _slope_sentence(slopes: Sequence[Slope]) -> str:
    """Arms that go one way stand together."""
    moves = {"falls": "falls with the width", "grows": "grows with the width"}
    own: dict[str, list[str]] = {}
    for one in slopes:
        if one.slope is None or one.low is None or one.high is None:
            own.setdefault("can't be told", []).append(one.arm)
        else:
            said = moves.get(one.verdict, "does not move resolvably with the width")
            own.setdefault(said, []).append(f"{one.arm} (slope {one.slope:+.2f} [{one.low:+.2f}, {one.high:+.2f}])")
    parts = [f"{said} for {', '.join(arms)}" for said, arms in own.items()]
    return f"The best lr {'; '.join(parts)}."


def features_verdict(finding: FeaturesFinding, checks: Sequence[Check]) -> str:
    """Per challenger, what of the claims holds at the same held-out loss, what does not, and what is open."""
    broken = [check.name for check in withheld(checks)]
    if broken:
        return f"Verdict withheld: {', '.join(broken)} {'is' if len(broken) == 1 else 'are'} broken."
    names = [name for name in finding.optimizers if name != finding.baseline]
    return " ".join(_claims_sentence(name, finding) for name in names)


def _claims_sentence(name: str, finding: FeaturesFinding) -> str:
    own = [claim for claim in finding.claims if (claim.optimizer, claim.at) == (name, "loss")]
    parts = []
    for held, said in ((True, "yes"), (False, "no"), (None, "open")):
        texts = [claim.claim.partition(" than ")[0] for claim in own if claim.held is held]
        parts += [f"{said}: {', '.join(texts)}"] if texts else []
    return f"What is claimed, of {name} against tuned {finding.baseline} at the same held-out loss: {'; '.join(parts)}."
