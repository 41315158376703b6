"""What a pilot recommends, for the terminal."""

from collections.abc import Sequence

from rich.console import RenderableType
from rich.text import Text

from muonlab.analyze.critical_batch import Estimate
from muonlab.analyze.pilot import Recommendation
from muonlab.report.layout import cell, clean, grid, spaced
from muonlab.report.text import show

__all__ = ["pilot_table"]


def pilot_table(found: Sequence[Recommendation]) -> list[RenderableType]:
    """Per optimizer a sentence, then what other batches would take."""
    parts: list[RenderableType] = []
    for one in found:
        parts += [Text(clean(_sentence(one)), style="bold"), _candidates(one)]
    parts.append(
        Text(
            "tokens = budget x (1 + batch / noise scale), after McCandlish et al. 2018; the noise scale is that of "
            "SGD's geometry, and its growth from the pilot to the budget a power law. `muonlab batch` without "
            "--predict measures what this predicts.",
            style="dim",
        )
    )
    return spaced(*parts)


def _sentence(one: Recommendation) -> str:
    if one.batch.value is None:
        return f"{one.optimizer}: the pilot does not tell the gradient noise; raise --tokens or --seeds."
    return (
        f"{one.optimizer}: at {show(one.budget_tokens, 'tokens')} tokens, batches up to "
        f"{_batch(one.batch)} tokens a step are predicted to take at most 20 % more tokens than small ones."
    )


def _batch(estimate: Estimate) -> str:
    if estimate.value is None:
        return "undefined"
    if estimate.low is None or estimate.high is None:
        return f"{estimate.value:,.0f}"
    return f"{estimate.value:,.0f} [{estimate.low:,.0f}, {estimate.high:,.0f}]"


def _candidates(one: Recommendation) -> RenderableType:
    growth = "" if one.growth is None else f", growing as tokens^{one.growth:.2f}"
    table = grid(
        f"{clean(one.optimizer)}: noise scale {_batch(one.noise_scale)} tokens, in the nuclear norm "
        f"{_batch(one.nuclear_noise_scale)}{growth}"
    )
    for head in ("batch", "more tokens", "95 %", "steps", "time on one device"):
        table.add_column(head, justify="right")
    for candidate in one.candidates:
        more = [_share(tokens, one.budget_tokens) for tokens in (candidate.tokens, candidate.low, candidate.high)]
        interval = "-" if "-" in more[1:] else f"{more[1]} to {more[2]}"
        steps = "-" if candidate.steps is None else f"{candidate.steps:,.0f}"
        time = "-" if candidate.seconds is None else show(candidate.seconds, "seconds")
        table.add_row(*map(cell, (f"{candidate.batch_tokens:,}", more[0], interval, steps, time)))
    return table


def _share(tokens: float | None, budget: int) -> str:
    return "-" if tokens is None else f"{tokens / budget - 1:.0%}"
