"""A report as one HTML page that needs nothing else: no script, no font, no picture from outside."""

from __future__ import annotations

from zerogr_ray.evaluation.curves import Curve
from zerogr_ray.evaluation.figures import SERIES, Chart, number, svg
from zerogr_ray.evaluation.metrics import METRICS
from zerogr_ray.evaluation.report import Report
from zerogr_ray.evaluation.significance import LEVEL

SERIES_DARK = ("#6cb6ff", "#ff9e64", "#4fd1a1", "#e3a0de", "#e5c84b", "#ff8fab", "#5fd3e0", "#c9b3a3")
"""The lines' colours on a dark page, in the order of SERIES."""


def charts(report: Report) -> list[Chart]:
    """The page's pictures, in its order; the loss only where the index has a record of its training."""
    found = [
        Chart(
            "ndcg-by-draw",
            "How good the hits are after the first draws",
            "draws",
            "nDCG@10",
            report.ndcg_by_draw,
            log="x",
            note="nDCG@10 of what the first i draws found, in the order of the hits. Where hits come in the order of "
            "the draws, the first ten decide; modes that draw nothing count their docids in the order found.",
        ),
        Chart(
            "recall-by-depth",
            "Recall by depth",
            "depth k",
            "Recall@k",
            report.recall_by_depth,
            log="x",
            note="Share of a query's relevant documents among the first k hits, mean over the queries.",
        ),
        Chart(
            "temperature",
            "Temperature of each draw",
            "draw",
            "temperature",
            {"T": report.temperatures},
            note="The schedule of the modes reference and exact: greedy first, diverse later.",
        ),
        _histogram("docid-words", "Docid length", "words", report.docid_words),
        _histogram("docid-prefixes", "Tokens that tell a docid from all others", "tokens", report.docid_prefixes),
        _histogram("collisions", "Documents that share a docid", "documents", report.collisions, log=True),
    ]
    if report.losses:
        note = "Mean over the steps since the point before. A falling line says that the model learns its own examples."
        found.append(Chart("loss", "Loss of the training", "step", "loss", report.losses, note=note))
    return found


def _histogram(name: str, title: str, x: str, curve: Curve, log: bool = False) -> Chart:
    note = f"Docids by their number of {x}; mean {_mean(curve):.2f}, largest {max(curve)}."
    if name == "collisions":
        note = f"Docids by the number of documents under them; {number(curve.get(1, 0))} have one document alone."
    return Chart(name, title, x, "docids", {"docids": curve}, kind="bars", log="y" if log else "", note=note)


def _mean(counts: Curve) -> float:
    return sum(value * count for value, count in counts.items()) / sum(counts.values())


def render(report: Report, date: str = "") -> str:
    """The page. It depends on its arguments alone; `date` is shown as it is given."""
    from jinja2 import Environment, PackageLoader, StrictUndefined

    environment = Environment(
        loader=PackageLoader("zerogr_ray", "evaluation"),
        autoescape=True,
        trim_blocks=True,
        lstrip_blocks=True,
        undefined=StrictUndefined,
        keep_trailing_newline=True,
    )
    environment.filters["p"] = p_value
    return environment.get_template("page.html.jinja").render(
        report=report,
        charts=[(chart, svg(chart)) for chart in charts(report)],
        metrics=METRICS,
        level=round(100 * LEVEL),
        light=SERIES,
        dark=SERIES_DARK,
        first=next(iter(report.systems)),
        date=date,
    )


def p_value(p: float) -> str:
    """Three decimals; below them "<0.001"."""
    return f"{p:.3f}" if p >= 0.001 else "<0.001"
