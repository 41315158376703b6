"""The finding of a study of features for the terminal."""

from collections.abc import Sequence

from rich.console import RenderableType
from rich.table import Table
from rich.text import Text

from muonlab.analyze.feature_looks import CONDITIONS
from muonlab.analyze.features import MEASURES, FeaturesFinding, LayerRow
from muonlab.analyze.findings import Effect
from muonlab.analyze.likeness import Spread
from muonlab.analyze.robustness import CorruptionRow
from muonlab.report.feature_transfer import feature_transfer_table
from muonlab.report.layout import cell, clean, grid, interval, reasons, spaced
from muonlab.report.tables import checks_table
from muonlab.report.text import plural, show

__all__ = ["HELD", "WHERE", "features_table"]

HELD = {True: "yes", False: "no", None: "open"}
WHERE = {
    "budget": "after the same tokens",
    "loss": "at the same held-out loss",
    "budget, no decay": "after the same tokens, no decay",
    "loss, no decay": "at the same loss, no decay",
}


def features_table(finding: FeaturesFinding) -> list[RenderableType]:
    """The finding, claims first: what `features` prints when the runs are done."""
    challengers = [name for name in finding.optimizers if name != finding.baseline]
    parts: list[RenderableType] = [Text(clean(finding.verdict), style="bold"), *reasons(finding.checks)]
    for name in challengers:
        parts.append(_claims(finding, name))
    parts.append(_losses(finding))
    for name in challengers:
        parts.append(_layers(finding, name))
        parts += [_corruptions(finding, name)] if any(row.optimizer == name for row in finding.corruptions) else []
    if finding.errors:
        parts.append(_accuracy(finding))
    if finding.cka:
        parts.append(_likeness(finding))
    parts += feature_transfer_table(finding.transfer, finding.baseline)
    parts.append(checks_table(finding.checks))
    parts.append(Text(_notes(finding), style="dim"))
    return spaced(*parts)


def _claims(finding: FeaturesFinding, name: str) -> RenderableType:
    table = grid(f"Of {clean(name)} it is claimed: is it so here?")
    for heading in ("claim", "where", "held", "found"):
        table.add_column(heading, overflow="fold", no_wrap=heading == "held")
    own = [claim for claim in finding.claims if claim.optimizer == name]
    for text in dict.fromkeys(claim.claim for claim in own):
        claims = [claim for claim in own if claim.claim == text]
        if len({(claim.held, claim.detail) for claim in claims}) == 1 < len(claims):  # withheld, or not measured
            table.add_row(cell(text), "everywhere", HELD[claims[0].held], cell(claims[0].detail))
            continue
        for i, claim in enumerate(claims):
            table.add_row(cell("" if i else text), WHERE[claim.at], HELD[claim.held], cell(claim.detail))
        table.add_section()
    return table


def _losses(finding: FeaturesFinding) -> RenderableType:
    table = grid(f"Final held-out loss, seeds {', '.join(map(str, finding.final_seeds))}")
    for heading in ("optimizer", "as tuned", "without decay", "settings"):
        table.add_column(heading, overflow="fold")
    for name in finding.optimizers:
        both = (" ".join(show(loss, "loss") for loss in of[name]) for of in (finding.losses, finding.control_losses))
        settings = ", ".join(f"{key} {show(value, 'value')}" for key, value in finding.hyperparameters[name].items())
        table.add_row(cell(name), *both, cell(settings))
    return table


def _layers(finding: FeaturesFinding, name: str) -> RenderableType:
    table = grid(f"Layers of {clean(name)} beside those of {clean(finding.baseline)}")
    for heading in ("layer", "measure", "where", name, finding.baseline, "difference", "d", ""):
        table.add_column(cell(heading), overflow="fold")
    own = [
        row for row in finding.layers if row.optimizer == name and row.measure in MEASURES and row.at in CONDITIONS[:2]
    ]
    for layer in dict.fromkeys(row.layer for row in own):
        for measure in MEASURES:
            _add(table, [row for row in own if (row.layer, row.measure) == (layer, measure)], layer, MEASURES[measure])
        table.add_section()
    return table


def _add(table: Table, rows: Sequence[LayerRow], layer: str, measure: str) -> None:
    for i, row in enumerate(rows):
        head = ("", "") if i else (layer, measure)
        values = (show(row.value, "value3"), show(row.baseline_value, "value3"))
        table.add_row(*map(cell, head), row.at, *values, *_effect(row.effect))


def _corruptions(finding: FeaturesFinding, name: str) -> RenderableType:
    """At the same loss: the rise by severity."""
    base = clean(finding.baseline)
    table = grid(f"Rise of the loss of corrupted inputs at the same clean loss, nats: {clean(name)} / {base}")
    table.add_column("corruption", overflow="fold")
    own = [row for row in finding.corruptions if row.optimizer == name and row.at == "loss"]
    severities = sorted({row.severity for row in own})
    for severity in severities:
        table.add_column(f"severity {severity}", overflow="fold")
    overall = [row for row in finding.severities if row.optimizer == name and row.at == "loss" and row.severity]
    for kind in dict.fromkeys(row.corruption for row in (*overall, *own)):
        by_severity = {row.severity: row for row in (*overall, *own) if row.corruption == kind}
        table.add_row(cell(kind), *(_rise(by_severity[s]) for s in severities))
    return table


def _rise(row: CorruptionRow) -> str:
    said = {"lower": "\nlower", "higher": "\nhigher"}.get(row.effect.judgement, "")
    return f"{show(row.rise, 'value3')} / {show(row.baseline_rise, 'value3')}{said}"


def _accuracy(finding: FeaturesFinding) -> RenderableType:
    """Over all corruptions and severities, of every challenger."""
    table = grid("Accuracy on corrupted inputs, the mean over all corruptions; error over the baseline's is ours")
    for heading in ("optimizer", "where", "accuracy", "it loses", "difference", "error / baseline's"):
        table.add_column(heading, overflow="fold")
    ratios = {(one.optimizer, one.at): one for one in finding.errors}
    for row in (row for row in finding.severities if not row.severity and row.drop_effect):
        both = (f"{show(own, 'share')} / {show(base, 'share')}"
                for own, base in ((row.accuracy, row.baseline_accuracy), (row.drop, row.baseline_drop)))  # fmt: skip
        one, ratio = row.drop_effect, ratios[row.optimizer, row.at]
        table.add_row(
            cell(row.optimizer), WHERE[row.at], *both,
            cell(f"{show(one.difference, 'points')}\n{interval(one.low, one.high, 'points')}\n{one.judgement}"),
            cell(f"{show(ratio.ratio, 'ratio')}\n{interval(ratio.low, ratio.high)}\n{ratio.effect.judgement}"),
        )  # fmt: skip
    return table


def _likeness(finding: FeaturesFinding) -> RenderableType:
    base = clean(finding.baseline)
    table = grid(f"Likeness (CKA) of final layers to those of {base}, and of those of two seeds of one")
    for heading in ("optimizer", "layer", "same seed", "other seeds", "two seeds of it", f"two of {base}"):
        table.add_column(cell(heading), overflow="fold")
    for row in (row for row in finding.cka if row.at == "budget"):
        spreads = (row.same_seed, row.other_seeds, row.own_seeds, row.baseline_seeds)
        table.add_row(cell(row.optimizer), cell(row.layer), *map(_spread, spreads))
    return table


def _spread(one: Spread) -> Text:
    return cell(f"{show(one.mean, 'bare')}\n{interval(one.least, one.greatest, neither='none')}")


def _effect(one: Effect) -> tuple[Text, str, str]:
    ends = interval(one.low, one.high, "signed3", neither="no interval")
    size = "-" if one.size is None else f"{one.size:+.1f}"
    return cell(f"{show(one.difference, 'signed3')}\n{ends}"), size, one.judgement


def _notes(finding: FeaturesFinding) -> str:
    shares = "; ".join(
        f"{name} against {finding.baseline}: "
        + ", ".join(f"{who} after {show(share, 'share')} of its run" for who, share in by.items())
        for name, by in finding.fractions.items()
    )
    return (
        f"At the same held-out loss, the final one of whichever ends higher, seed by seed ({shares}): what is ahead is "
        "looked at before its lr has decayed, between looks that it is interpolated from. "
        "Intervals are 95 % of pairs of runs with one seed, d is the mean difference over its deviation; "
        "higher and lower by a paired t-test at 5 %, corrected for the layers or the corruptions beside it. "
        "All definitions are ours (docs/features.md). "
        f"{plural(finding.num_runs, 'run')} in this study, {finding.num_failed:,} failed, "
        f"{show(finding.total_tokens, 'tokens')} tokens in all. Runs executed are those made by this command: not "
        "those that the store had, and again those that had not left what this study needs."
    )
