"""Scores on many workloads, for the terminal."""

from rich.console import RenderableType
from rich.text import Text

from muonlab.analyze.profiles import Scores, WorkloadRow
from muonlab.report.layout import cell, clean, grid, spaced
from muonlab.report.text import plural, show

__all__ = ["scores_table"]


def scores_table(finding: Scores) -> list[RenderableType]:
    """Submissions by score, what each workload gave, and the warnings."""
    notes = [
        "score: area under the share of workloads within tau of the fastest submission, tau from 1 to "
        f"{finding.r_max:g}; it depends on who takes part",
        "behind: best score minus this one, on the same workloads; intervals are 95 %",
    ]
    warned = Text("\n".join(f"! {clean(line)}" for line in finding.warnings))
    return spaced(
        _standings(finding),
        _workloads(finding),
        *([warned] if finding.warnings else []),
        Text("\n".join(notes), style="dim"),
    )


def _standings(finding: Scores) -> RenderableType:
    table = grid(f"Scores on {plural(finding.num_workloads, 'workload')}")
    table.add_column("", justify="right")
    table.add_column("submission", overflow="fold")
    for name in ("score", "behind", "reached", f"within {finding.r_max:g}x"):
        table.add_column(name, justify="right", no_wrap=True)
    rank, last = 0, None
    for place, one in enumerate(finding.standings, 1):
        rank, last = (rank, last) if one.score == last else (place, one.score)
        table.add_row(
            str(rank),
            cell(one.submission),
            _score(one.score, one.low, one.high),
            _score(one.behind, one.behind_low, one.behind_high) if one.behind else "-",
            f"{one.num_reached} of {finding.num_workloads}",
            str(one.num_credited),
        )
    return table


def _workloads(finding: Scores) -> RenderableType:
    table = grid("Workloads; times are in the unit of the file")
    table.add_column("workload", overflow="fold")
    table.add_column("fastest that counts", overflow="fold")
    for name in ("its time", "reached by", f"within {finding.r_max:g}x"):
        table.add_column(name, justify="right", no_wrap=True)
    for row in finding.workloads:
        name = f"  {row.workload} (held out)" if row.base else row.workload
        first = _fastest(row)
        time = _time(None if first is None else row.times[first])
        counts = (f"{sum(v is not None for v in row.times.values())} of {len(row.times)}",
                  str(sum(v is not None for v in row.ratios.values())))  # fmt: skip
        table.add_row(cell(name), cell(first or "nobody"), time, *counts)
    return table


def _fastest(row: WorkloadRow) -> str | None:
    found = [(ratio, name) for name, ratio in row.ratios.items() if ratio is not None]
    return min(found)[1] if found else None


def _time(value: float | None) -> str:
    return "-" if value is None else f"{value:,.0f}" if 1e3 <= value < 1e9 else f"{value:.4g}"


def _score(value: float, low: float | None, high: float | None) -> str:
    interval = "no interval" if low is None or high is None else f"[{low:.3f}, {high:.3f}]"
    return f"{show(value, 'loss')}\n{interval}"
