"""Curves and histograms as pictures: SVG that takes the page's colours, and PNG."""

from __future__ import annotations

import io
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

from zerogr_ray.evaluation.curves import Curve

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

INK, FAINT = "#1b1c1f", "#d3d5da"
SERIES = ("#0b62a8", "#b8470c", "#0a7a55", "#8b3a86", "#7a6100", "#c2255c", "#087f8c", "#5c4a3d")
"""At least 4.5 : 1 on white. Neighbours differ in lightness or hue for the colour-blind; lines differ in dashes too."""
DASHES = ("-", "--", "-.", ":")
MARKERS = "osD^vPXh"
BARS = 24
"""Bars of a histogram at most; the last stands for all values from there on."""
WIDTH = 4.8
"""Inches. Narrow, so that the lettering is legible where a phone shows the whole width."""

RC: dict[str, Any] = {
    "svg.fonttype": "none",
    "svg.hashsalt": "zerogr",
    "font.family": "sans-serif",
    "font.size": 9,
    "axes.titlesize": 10,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.axisbelow": True,
    "axes.unicode_minus": False,
    "grid.linewidth": 0.6,
    "grid.color": FAINT,
    "legend.frameon": False,
    "legend.fontsize": 8,
    "lines.markersize": 3.5,
    "lines.linewidth": 1.5,
} | dict.fromkeys(("text.color", "axes.labelcolor", "axes.edgecolor", "xtick.color", "ytick.color"), INK)


@dataclass(frozen=True)
class Chart:
    """One picture and what it shows."""

    name: str
    """File name of the PNG without its ending, and anchor on the page."""
    title: str
    x: str
    y: str
    curves: Mapping[str, Curve]
    kind: Literal["lines", "bars"] = "lines"
    log: Literal["", "x", "y"] = ""
    """The axis that is logarithmic."""
    note: str = ""

    @property
    def alt(self) -> str:
        """The picture in words: for each curve where it starts, ends and is highest."""
        parts = [f"{'Line' if self.kind == 'lines' else 'Bar'} chart: {self.y} by {self.x}."]
        for name, curve in self.curves.items():
            (first, last), top = (min(curve), max(curve)), max(curve, key=lambda x: curve[x])
            parts.append(
                f"{name}: {number(curve[first])} at {first}, {number(curve[last])} at {last}, "
                f"highest {number(curve[top])} at {top}."
            )
        return " ".join(parts)

    def rows(self) -> list[tuple[int, list[str]]]:
        """The picture as a table: for each point of the horizontal axis the values of all curves, "" where none."""
        points = sorted({x for curve in self.curves.values() for x in curve})
        return [(x, [number(curve[x]) if x in curve else "" for curve in self.curves.values()]) for x in points]


def number(value: float) -> str:
    """Whole numbers whole, others with three decimals."""
    return f"{value:.0f}" if float(value).is_integer() and abs(value) >= 2 else f"{value:.3f}"


def svg(chart: Chart) -> str:
    """An <svg> element to stand in a page: described for screen readers, its colours taken from the page's CSS.

    The page defines --ink, --faint and --series-0 ... --series-7. Ids begin with the chart's name.
    """
    drawn = io.StringIO()
    _save(chart, drawn, format="svg", transparent=True, metadata=dict.fromkeys(("Date", "Creator", "Format", "Type")))
    text = drawn.getvalue()
    text = text[text.index("<svg") :].strip()
    text = re.sub(r"<metadata>.*?</metadata>\s*", "", text, flags=re.DOTALL)
    head, _, body = text.partition(">")
    box = re.search(r'viewBox="[^"]*"', head)
    assert box is not None
    # A style element would hold for the whole page; the page has its rule, and a font of its own.
    body = re.sub(r"<defs>\s*<style.*?</style>\s*</defs>", "", body, flags=re.DOTALL)
    body = re.sub(r" font-family: [^;\"]*;", "", body)
    body = body.replace("xlink:href", "href")
    body = re.sub(r'\bid="', f'id="{chart.name}-', body)
    body = re.sub(r'(url\(#|href="#)', rf"\g<1>{chart.name}-", body)
    for colour, variable in ((INK, "ink"), (FAINT, "faint"), *((c, f"series-{i}") for i, c in enumerate(SERIES))):
        body = body.replace(colour, f"var(--{variable})")
    return f'<svg {box[0]} role="img" aria-labelledby="{chart.name}-title {chart.name}-alt">{body}'


def png(chart: Chart) -> bytes:
    """The same as a PNG file, on white, 200 dots per inch."""
    drawn = io.BytesIO()
    _save(chart, drawn, format="png", dpi=200, metadata={"Software": None})
    return drawn.getvalue()


def _save(chart: Chart, sink: Any, **how: Any) -> None:
    import matplotlib
    from matplotlib.figure import Figure

    with matplotlib.rc_context():
        matplotlib.rcdefaults()  # a matplotlibrc of the user must not change what is drawn
        parameters: Any = matplotlib.rcParams
        parameters.update(RC)
        named = len(chart.curves) if len(chart.curves) > 1 else 0
        figure = Figure(figsize=(WIDTH, 2.9 + 0.17 * named))
        axes = figure.add_subplot()
        if chart.kind == "lines":
            _lines(axes, chart)
        else:
            _bars(axes, chart)
        axes.set_xlabel(chart.x)
        axes.set_ylabel(chart.y)
        if named:
            _legend(figure, axes)
        figure.savefig(sink, bbox_inches="tight", **how)


def _lines(axes: Axes, chart: Chart) -> None:
    from matplotlib.ticker import NullFormatter

    for i, (name, curve) in enumerate(chart.curves.items()):
        few, look = len(curve) <= 40, i + i // len(SERIES)  # the colours come again, but not with the same dashes
        axes.plot(
            list(curve),
            list(curve.values()),
            color=SERIES[i % len(SERIES)],
            linestyle=DASHES[look % len(DASHES)],
            marker=MARKERS[look % len(MARKERS)] if few else "",
            label=name,
        )
    if chart.log == "x":
        axes.set_xscale("log")
        axes.xaxis.set_major_formatter("{x:.0f}")
        axes.xaxis.set_minor_formatter(NullFormatter())
    elif chart.log == "y":
        axes.set_yscale("log")
    if min(min(curve.values()) for curve in chart.curves.values()) >= 0 and chart.log != "y":
        axes.set_ylim(bottom=0)


def _bars(axes: Axes, chart: Chart) -> None:
    from matplotlib.ticker import NullFormatter

    (curve,) = chart.curves.values()
    heights: dict[int, float] = {}
    for value, count in curve.items():
        heights[min(value, BARS)] = heights.get(min(value, BARS), 0) + count
    axes.bar(list(heights), list(heights.values()), color=SERIES[0], width=0.8)
    middle, half = (min(heights) + max(heights)) / 2, max((max(heights) - min(heights)) / 2 + 0.7, 4)
    axes.set_xlim(middle - half, middle + half)
    ticks = sorted(heights) if len(heights) <= 12 else list(range(min(heights), max(heights) + 1, 3))
    axes.set_xticks(ticks, [f"{tick}+" if tick == BARS and max(curve) > BARS else str(tick) for tick in ticks])
    axes.grid(visible=False, axis="x")
    if chart.log == "y":
        axes.set_yscale("log")
        axes.set_ylim(bottom=0.7)
        axes.yaxis.set_major_formatter("{x:.0f}")
        axes.yaxis.set_minor_formatter(NullFormatter())


def _legend(figure: Figure, axes: Axes) -> None:
    handles, labels = axes.get_legend_handles_labels()
    figure.legend(handles, labels, loc="upper left", bbox_to_anchor=(0.08, 0.0), ncols=1, handlelength=3.2)
