"""Laws and speedups of tables of runs, for the terminal."""

from rich.console import RenderableType
from rich.text import Text

from muonlab.analyze.findings import SpeedupRow
from muonlab.analyze.scaling import Fit
from muonlab.analyze.speedups import TOKENS_PER_PARAM, Extrapolation, SpeedupTable
from muonlab.report.layout import cell, clean, grid, spaced
from muonlab.report.text import show

__all__ = ["fit_table", "speedups_table"]

MARKS = {"": "", "extrapolated": "*", "undefined": ""}
MEANING = {
    "extrapolated": "the baseline would need more (or fewer) tokens than any of its runs has: its law is extrapolated",
    "undefined": "there is no law, or the loss lies below its floor, which no number of tokens reaches",
}


def fit_table(fit: Fit) -> list[RenderableType]:
    """A law with its parameters and their intervals."""
    table = grid(f"{fit.formula}, {fit.num_points} points, residual {show(fit.residual, 'loss')} nats")
    table.add_column("parameter")
    table.add_column("value", justify="right")
    table.add_column("95 % interval", no_wrap=True)
    for name, value in fit.parameters.items():
        low, high = fit.intervals[name]
        table.add_row(cell(name), f"{value:.5g}", f"[{_end(low)}, {_end(high)}]")
    spans = (f"{name} {show(low, 'tokens')} to {show(high, 'tokens')}" for name, (low, high) in fit.ranges.items())
    return spaced(table, _dim([f"fitted to {', '.join(spans)}", *fit.notes]))


def speedups_table(finding: SpeedupTable) -> list[RenderableType]:
    """Every optimizer at every size and length, the laws behind it, and what was assumed."""
    flags = dict.fromkeys(row.flag for row in finding.rows if row.flag)
    notes = [f"{MARKS[flag] or '-'} {flag}: {MEANING[flag]}" for flag in flags]
    notes += [
        f"{name} {min(counts)} everywhere"
        for name, counts in _counts(finding).items()
        if len(counts) == 1 and max(counts) > 1
    ]
    return spaced(
        _rows(finding),
        *([_extrapolations(finding)] if finding.extrapolations else []),
        _laws(finding),
        _dim([*notes, *finding.notes]),
    )


def _rows(finding: SpeedupTable) -> RenderableType:
    """Only the name of an optimizer can be broken: on 80 columns all the rest fits."""
    sized = any(row.params for row in finding.rows)
    counted = [name for name, counts in _counts(finding).items() if len(counts) > 1]
    table = grid(f"Tokens that {clean(finding.baseline)} would need for the same loss, over those that were used")
    table.add_column("size", no_wrap=True)
    for name in ("tokens", *(["ratio"] if sized else [])):
        table.add_column(name, justify="right", no_wrap=True)
    table.add_column("optimizer", overflow="fold")
    for name in ("loss", "speedup"):
        table.add_column(name, justify="right", no_wrap=True)
    table.add_column("95 % interval", no_wrap=True)
    for name in counted:
        table.add_column(name, justify="right", no_wrap=True)
    last: tuple[str, float] | None = None
    for row in finding.rows:
        here = (row.size, row.tokens)
        head = [row.size, show(row.tokens, "tokens"), *([_ratio(row)] if sized else [])]
        counts = {"seeds": str(row.num_seeds), "tried": str(row.num_configurations)}
        table.add_row(
            *map(cell, [""] * len(head) if here == last else head),
            cell(row.optimizer),
            show(row.loss, "loss"),
            show(row.speedup, "ratio") + MARKS[row.flag],
            _interval(row),
            *(counts[name] for name in counted),
        )
        last = here
    return table


def _counts(finding: SpeedupTable) -> dict[str, set[int]]:
    """Which numbers of seeds and of configurations tried there are: where one, a note is enough."""
    return {
        "seeds": {row.num_seeds for row in finding.rows},
        "tried": {row.num_configurations for row in finding.rows},
    }


def _ratio(row: SpeedupRow) -> str:
    return "-" if not row.params else f"{row.tokens / row.params / TOKENS_PER_PARAM:.3g}x"


def _extrapolations(finding: SpeedupTable) -> RenderableType:
    table = grid("Where nothing was run: a joint law of each optimizer, E + A params^-alpha + B tokens^-beta")
    for name in ("params", "tokens", "optimizer", "loss", "speedup", "95 % interval", "beyond the runs by"):
        table.add_column(name, overflow="fold")
    for at in finding.extrapolations:
        beyond = f"{at.factor_params:.2g}x in params, {at.factor_tokens:.2g}x in tokens"
        places = (show(at.params, "tokens"), show(at.tokens, "tokens"))
        table.add_row(
            *places, cell(at.optimizer), show(at.loss, "loss"), show(at.speedup, "ratio"), _interval(at), beyond
        )
    return table


def _laws(finding: SpeedupTable) -> RenderableType:
    table = grid(f"Laws of {clean(finding.baseline)}: loss = a (tokens / unit)^-exponent + b")
    for name in ("size", "unit", "a", "exponent", "b", "lengths"):
        table.add_column(name, justify="left" if name == "size" else "right")
    for size, law in finding.fits.items():
        numbers = (f"{law[name]:.4g}" for name in ("a", "exponent", "b"))
        table.add_row(cell(size), show(law["scale_tokens"], "tokens"), *numbers, str(int(law["num_lengths"])))
    return table


def _interval(row: SpeedupRow | Extrapolation) -> str:
    if row.low is None and row.high is None:
        return "-"
    return f"[{_end(row.low, '0', '.2f')}, {_end(row.high, 'unbounded', '.2f')}]"


def _end(value: float | None, otherwise: str = "unbounded", kind: str = ".4g") -> str:
    return otherwise if value is None else f"{value:{kind}}"


def _dim(lines: list[str]) -> Text:
    return Text("\n".join(map(clean, lines)), style="dim")
