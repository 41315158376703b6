"""The finding of a batch study for the terminal."""

from collections.abc import Sequence

from rich.console import RenderableType
from rich.text import Text

from muonlab.analyze.batch import BatchFinding, BatchSettings
from muonlab.analyze.critical_batch import Estimate
from muonlab.analyze.reaching import TimeToTarget
from muonlab.analyze.significance import withheld
from muonlab.report.layout import cell, clean, grid, interval, reasons, spaced
from muonlab.report.tables import checks_table
from muonlab.report.text import is_undefined, plural, show

__all__ = ["batch_table"]


def batch_table(finding: BatchFinding) -> list[RenderableType]:
    """The finding, verdict first: what `batch` prints when the runs are done."""
    challengers = [name for name in finding.optimizers if name != finding.baseline]
    return spaced(
        Text(clean(finding.verdict) or "No verdict was drawn.", style="bold"),
        *reasons(finding.checks),
        *([_ratios(finding, name) for name in challengers] or [_tokens(finding)]),
        _critical(finding),
        _frontier(finding),
        Text(_devices(finding), style="dim"),
        *([_dominance(finding)] if challengers else []),
        _settings_table(finding),
        checks_table(finding.checks),
        Text(
            f"{plural(finding.num_runs, 'run')} in this study, {finding.num_failed:,} failed, "
            f"{show(finding.total_tokens, 'tokens')} tokens in all. Intervals are 95 %, of the noise between seeds; "
            f"what tuning leaves open is not in them. {_origin(finding)}",
            style="dim",
        ),
    )


def _ratios(finding: BatchFinding, name: str) -> RenderableType:
    """Tokens of baseline and challenger to every target at every batch, their ratio, and how it runs."""
    base = finding.baseline
    times = {(one.optimizer, one.target, one.batch_tokens): one for one in finding.times}
    ratios = {(one.target, one.batch_tokens): one for one in finding.token_ratio if one.optimizer == name}
    table = grid(f"Tokens to a held-out loss by batch; ratio: {clean(base)}'s over {clean(name)}'s")
    for heading in ("loss", "batch"):
        table.add_column(heading, justify="right", no_wrap=True)
    for heading in (base, name, "ratio", "95 % interval", ""):
        table.add_column(cell(heading), overflow="fold")
    for target in finding.targets:
        for batch in finding.batches:
            at, loss = ratios[target, batch], f"{target:g}" if batch == finding.batches[0] else ""
            tokens = (_reached(times[who, target, batch]) for who in (base, name))
            ends = interval(at.low, at.high, neither="-")
            table.add_row(loss, f"{batch:,}", *tokens, show(at.ratio, "ratio"), cell(ends), at.judgement or "")
        trend = next(one for one in finding.trends if (one.optimizer, one.target) == (name, target))
        table.add_row(
            "", "trend", "of log ratio", "a doubling", show(trend.slope, "difference"),
            cell(interval(trend.low, trend.high, "difference", neither="-")),
            "withheld" if withheld(finding.checks) else trend.verdict, end_section=True,
        )  # fmt: skip
    return table


def _origin(finding: BatchFinding) -> str:
    """Of the targets."""
    if finding.targets_given:
        return "The losses to reach were given."
    return f"The losses to reach are of {clean(finding.baseline)}'s curve at a batch of {finding.reference:,}."


def _tokens(finding: BatchFinding) -> RenderableType:
    """Of a baseline alone."""
    table = grid(f"Tokens of {clean(finding.baseline)} to a held-out loss by batch")
    for heading in ("batch", *(f"loss {target:g}" for target in finding.targets)):
        table.add_column(heading, justify="right", overflow="fold")
    for batch in finding.batches:
        own = [one for one in finding.times if (one.optimizer, one.batch_tokens) == (finding.baseline, batch)]
        table.add_row(f"{batch:,}", *map(_reached, own))
    return table


def _reached(one: TimeToTarget) -> str:
    if one.flag == "unreached":
        missed = sum(tokens is None for tokens in one.by_seed)
        return f"not reached\nby {missed} of {len(one.by_seed)}"
    return f"{'< ' if one.flag == 'early' else ''}{show(one.tokens, 'tokens')}"


def _critical(finding: BatchFinding) -> RenderableType:
    """The estimators side by side."""
    table = grid("Critical batch, tokens a step, by five estimators, with 95 % intervals")
    table.add_column("optimizer", overflow="fold")
    for heading in (
        "loss",
        "20 % more\ntokens",
        "twice the\ntokens",
        "fewest\ntokens",
        "noise scale\n(SGD's)",
        "noise scale\n(nuclear)",
    ):
        table.add_column(heading, justify="right" if heading == "loss" else "left", overflow="fold")
    table.add_column("token-\noptimal", justify="right")
    for one in finding.critical:
        first = one.target == finding.targets[0]
        estimates = (one.overhead, one.doubling, one.sfo, one.noise_scale, one.nuclear_noise_scale)
        table.add_row(
            cell(one.optimizer if first else ""), f"{one.target:g}", *map(_estimate, estimates),
            show(one.token_optimal, "bare"), end_section=one.target == finding.targets[-1],
        )  # fmt: skip
    return table


def _estimate(one: Estimate) -> Text:
    """Above or below the batches that were measured, the value is their edge."""
    if is_undefined(one.value):
        return cell("-")
    sign = {"above": "> ", "below": "< "}.get(one.flag, "")
    return cell(f"{sign}{show(one.value, 'bare')}\n{interval(one.low, one.high, 'tokens')}")


def _frontier(finding: BatchFinding) -> RenderableType:
    """The shortest time to the target of the verdict by number of devices."""
    table = grid(f"Shortest time to a loss of {finding.hardest:g} by devices")
    for heading in ("devices", "optimizer", "time", "batch", "tokens", ""):
        table.add_column(heading, justify="left" if heading in ("optimizer", "") else "right", overflow="fold")
    best = [one for one in finding.frontier if one.on_frontier and one.target == finding.hardest]
    last = None
    for one in sorted(best, key=lambda one: (one.devices, finding.optimizers.index(one.optimizer))):
        table.add_row(
            "" if one.devices == last else f"{one.devices:,}", cell(one.optimizer), show(one.seconds, "seconds"),
            f"{one.batch_tokens:,}", show(one.tokens, "tokens"), "modelled" if one.modelled else "measured",
        )  # fmt: skip
        last = one.devices
    if not best:
        table.add_row(*("-" for _ in table.columns))
    return table


def _devices(finding: BatchFinding) -> str:
    """Which numbers of devices are modelled, not run, and by what."""
    model = finding.device_model
    modelled = sorted({one.devices for one in finding.frontier if one.modelled and one.devices > 1})
    if not modelled:
        return "No time on more than one device is known."
    return (
        f"Modelled, not run: {', '.join(map(str, modelled))} devices. A step on d of them takes what one device takes "
        f"for 1/d of the batch, then a ring all-reduce of float32 gradients at {show(model.bandwidth, 'rate')} with "
        f"{show(model.latency_seconds, 'seconds')} of latency; nothing overlaps."
    )


def _dominance(finding: BatchFinding) -> RenderableType:
    table = grid(f"Time at every number of devices, over that of {clean(finding.baseline)}")
    for heading in ("loss", "optimizer", "verdict"):
        table.add_column(heading, overflow="fold")
    table.add_column("devices: ratio of times", overflow="fold", ratio=1)
    for one in finding.dominance:
        pairs = zip(one.devices, one.seconds, one.baseline_seconds, strict=True)
        said = "withheld" if withheld(finding.checks) else one.verdict
        ratios = ", ".join(f"{d}: {show(ours / theirs, 'ratio')}" for d, ours, theirs in pairs)
        table.add_row(f"{one.target:g}", cell(one.optimizer), said, ratios or "-")
    return table


def _settings_table(finding: BatchFinding) -> RenderableType:
    """What is the same at every batch, once; then what is not."""
    table = grid("Settings by batch: by rule from the batch beside it -> as a search around that chose")
    for heading in ("optimizer", "batch", "settings", "search"):
        table.add_column(heading, justify="right" if heading == "batch" else "left", overflow="fold")
    for name in finding.optimizers:
        own = [one for one in finding.settings if one.optimizer == name]
        kept = [key for key in own[0].chosen if len({str((o.predicted.get(key), o.chosen.get(key))) for o in own}) == 1]
        table.add_row(cell(name), "all", cell(_settings(own[0], kept) or "-"), "")
        for one in own:
            varied = [key for key in one.chosen if key not in kept]
            table.add_row("", f"{one.batch_tokens:,}", cell(_settings(one, varied)), cell(_search(one)))
        table.add_section()
    return table


def _settings(one: BatchSettings, keys: Sequence[str]) -> str:
    parts = []
    for name in keys:
        before, after = (show(of.get(name), "value") for of in (one.predicted, one.chosen))
        parts.append(f"{name} {after}" if before == after else f"{name} {before} -> {after}")
    return ", ".join(parts)


def _search(one: BatchSettings) -> str:
    ended = "converged" if one.converged else "capped"
    edges = f", on an edge: {', '.join(one.edges)}" if one.edges else ""
    return f"{plural(one.num_runs, 'run')}, {ended}{edges}"
