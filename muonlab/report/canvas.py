"""Drawing without global state: one look per optimizer, and matplotlib figures as small, deterministic inline SVG."""

import io
import math
import re
import warnings
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from muonlab.analyze.findings import Comparison

if TYPE_CHECKING:
    from matplotlib.figure import Figure

__all__ = ["INK", "MUTED", "Drawing", "Look", "draw", "looks", "looks_of", "spread"]

INK, MUTED, RULE = "#1c2126", "#5c6670", "#d5dae0"
BASELINE = "#3d444c"
# Distinguishable with any colour vision, and at least 3:1 against white: after Okabe & Ito 2008 and Tol 2021, the light
# hues darkened. Beyond seven, hues repeat with another marker and dash.
HUES = ("#0072b2", "#d55e00", "#00876a", "#aa4499", "#8f6d00", "#882255", "#2a8fc4")
MARKERS, DASHES = ("o", "D", "s", "^"), ("solid", (0, (5, 1.5)), (0, (1.5, 1.2)), (0, (6, 1.5, 1.5, 1.5)))
STYLE = {
    "svg.fonttype": "none",
    "text.parse_math": False,  # a name may hold a dollar sign
    "font.size": 11,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.edgecolor": MUTED,
    "axes.linewidth": 0.8,
    "axes.labelcolor": INK,
    "axes.labelsize": 11,
    "axes.titlesize": 11,
    "axes.grid": True,
    "axes.axisbelow": True,
    "axes.formatter.useoffset": False,
    "grid.color": "#e8ebee",
    "grid.linewidth": 0.8,
    "text.color": INK,
    "xtick.color": MUTED,
    "ytick.color": MUTED,
    "xtick.labelsize": 10.5,
    "ytick.labelsize": 10.5,
    "xtick.major.size": 3,
    "ytick.major.size": 3,
}


@dataclass(frozen=True)
class Look:
    """How an optimizer is drawn, in every figure and table of a report."""

    colour: str
    marker: str
    dash: Any


@dataclass(frozen=True)
class Drawing:
    """An inline SVG, and in words what it shows."""

    svg: str
    alt: str

    def copy(self, name: object) -> "Drawing":
        """The same with ids of its own, for a page in which it stands more than once."""
        return Drawing(re.sub(r'( id="|href="#|url\(#)([^")]+)', rf"\1\2-{name}", self.svg), self.alt)


def looks(finding: Comparison) -> dict[str, Look]:
    """The baseline is dark grey; challengers take the hues in the order of the finding."""
    return looks_of(finding.optimizers, finding.baseline)


def looks_of(names: Iterable[str], baseline: str) -> dict[str, Look]:
    """A look for each of the names and the baseline."""
    chosen = {baseline: Look(BASELINE, "o", "solid")}
    for i, name in enumerate(name for name in names if name != baseline):
        turn = i // len(HUES)
        chosen[name] = Look(HUES[i % len(HUES)], MARKERS[(turn + 1) % len(MARKERS)], DASHES[turn % len(DASHES)])
    return chosen


def draw(name: str, size: tuple[float, float], alt: str, paint: Callable[["Figure"], None]) -> Drawing:
    """Run `paint` on an empty figure of `size` CSS pixels; the same input gives the same bytes everywhere.

    Differs  from savefig: no prolog, metadata, comments or ids but those that are referred to, so that many figures can
             stand in one page; text stays text, in the page's font
    """
    import matplotlib
    from matplotlib.figure import Figure

    buffer = io.StringIO()
    with matplotlib.rc_context(), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # glyphs that matplotlib's own font lacks are no concern: text stays text
        matplotlib.rcdefaults()  # not the user's matplotlibrc
        matplotlib.rcParams.update({**STYLE, "svg.hashsalt": name})
        figure = Figure(figsize=(size[0] / 72, size[1] / 72), dpi=72)  # so that a point is a pixel
        paint(figure)
        figure.savefig(buffer, format="svg", transparent=True, metadata={"Date": None, "Creator": None})
    return Drawing(_inline(buffer.getvalue(), size, alt), alt)


def _inline(svg: str, size: tuple[float, float], alt: str) -> str:
    from markupsafe import escape

    body = svg[svg.index("<svg") :]
    body = body[body.index(">") + 1 : body.rindex("</svg>")]
    body = re.sub(r"<metadata>.*?</metadata>|<style\b.*?</style>|<\?.*?\?>", "", body, flags=re.DOTALL)
    body = re.sub(r'<g id="[^"]*"', "<g", body)  # nothing refers to groups
    body = re.sub(r"font-family: [^;\"]*;? ?", "", body)  # the page's font, which style.css gives every figure
    body = re.sub(r"font: (?:(\d+) )?(\S+?px) [^;\"]*", r"font-size: \2; font-weight: \1", body)
    body = body.replace("font-weight: ;", "")
    body = re.sub(r"\s*\n\s*", "\n", body)
    width, height = (f"{x:g}" for x in size)
    return (
        f'<svg role="img" aria-label="{escape(alt)}" viewBox="0 0 {width} {height}" width="{width}" height="{height}">'
        f"{body.strip()}</svg>"
    )


def spread(positions: Sequence[float], gap: float, low: float = -math.inf) -> list[float]:
    """Move label positions apart until neighbours are `gap` from each other, as little as that takes; none below `low`.

    >>> spread([0.0, 1.0, 10.0], 4.0)
    [-1.5, 2.5, 10.0]
    """
    order = sorted(range(len(positions)), key=lambda i: positions[i])
    groups: list[list[float]] = []  # [centre, number of members]
    for i in order:
        groups.append([positions[i], 1])
        while len(groups) > 1 and groups[-1][0] - groups[-2][0] < gap * (groups[-1][1] + groups[-2][1]) / 2:
            (a, n), (b, m) = groups[-2], groups.pop()
            groups[-1] = [(a * n + b * m) / (n + m), n + m]
    placed = [centre + gap * (k - (count - 1) / 2) for centre, count in groups for k in range(int(count))]
    placed = [max(place, low + gap * k) for k, place in enumerate(placed)]
    return [placed[order.index(i)] for i in range(len(positions))]
