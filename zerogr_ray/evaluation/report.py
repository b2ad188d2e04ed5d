"""What a report says about an index on a collection, as figures; page.py makes a page of it. And tables of figures."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from zerogr_ray.config import DecodeConfig
from zerogr_ray.evaluation import curves
from zerogr_ray.evaluation.curves import Curve
from zerogr_ray.evaluation.samples import Sample

if TYPE_CHECKING:
    from zerogr_ray.decoding.retriever import Retriever
    from zerogr_ray.evaluation.significance import Interval
    from zerogr_ray.rows import Collection, Run


@dataclass(frozen=True)
class Standing:
    """How one system does on the collection."""

    figures: dict[str, Interval]
    """Metric -> mean over the queries with its 95 % interval."""
    p: dict[str, float]
    """Metric -> p of the paired randomisation test against BM25; empty without BM25, and for BM25 itself."""


@dataclass(frozen=True)
class Report:
    """Everything on the page."""

    collection: str
    queries: int
    index: str
    """Name of its folder."""
    about: dict[str, str | int]
    """Facts of the index's manifest."""
    seed: int
    systems: dict[str, Standing]
    """Decoding modes in the order asked for, then the baselines."""
    left_out: dict[str, str]
    """Decoding modes that the page would show but for their cost, and why it does not."""
    ndcg_by_draw: dict[str, Curve]
    recall_by_depth: dict[str, Curve]
    temperatures: Curve
    """T_i by draw i, from 1."""
    docid_words: Curve
    docid_prefixes: Curve
    collisions: Curve
    losses: dict[str, Curve]
    """Empty where the index has no record of its training."""
    samples: list[Sample]
    """Of the first mode."""


def make_report(
    retriever: Retriever,
    collection: Collection,
    modes: Mapping[str, DecodeConfig],
    baseline: bool = True,
    encoder: str | None = None,
    quiet: bool = False,
    left_out: Mapping[str, str] | None = None,
) -> tuple[Report, dict[str, Run]]:
    """Search every judged query in every mode (not empty), and with the baselines; returns the runs as well.

    At least 100 documents are asked for, and as many as a mode draws. Raises ModelError before the first search if the
    encoder cannot be loaded.
    """
    from zerogr_ray.decoding.schedule import temperatures
    from zerogr_ray.evaluation.baselines import bm25
    from zerogr_ray.evaluation.dense import SentenceEncoder, dense
    from zerogr_ray.evaluation.evaluate import as_run, documents_of, search_collection
    from zerogr_ray.evaluation.metrics import DEPTH, recall_by_depth
    from zerogr_ray.evaluation.samples import make_samples

    sentences = SentenceEncoder(encoder) if encoder else None
    qrels, bundle = collection.qrels, retriever.bundle
    runs, by_draw, first_hits = {}, {}, None
    for name, config in modes.items():
        depth = max(DEPTH, config.draws)
        hits = search_collection(retriever, collection, config, depth, quiet, name=name)
        runs[name] = as_run(hits)
        by_draw[name] = curves.ndcg_by_draw(qrels, hits, curves.spread(depth))
        first_hits = first_hits or hits
    if baseline:
        runs["bm25"] = bm25(documents_of(collection), collection.queries, DEPTH)
    if sentences:
        runs[sentences.name] = dense(documents_of(collection), collection.queries, DEPTH, sentences, quiet)
    T_K = temperatures(first := next(iter(modes.values())), max(DEPTH, first.draws))
    manifest = bundle.manifest
    report = Report(
        collection=collection.name,
        queries=len(collection.queries),
        index=bundle.path.name,
        about={name: manifest[name] for name in ("key", "instruction", "documents", "docids", "nodes")}
        | {"model": str(manifest["model"]["trained_from"])},
        seed=first.seed,
        systems=standings(qrels, runs),
        left_out=dict(left_out or {}),
        ndcg_by_draw=by_draw,
        recall_by_depth={name: recall_by_depth(qrels, run, curves.spread(DEPTH)) for name, run in runs.items()},
        temperatures={i: float(T) for i, T in enumerate(T_K, 1)},
        docid_words=curves.docid_words(bundle),
        docid_prefixes=curves.docid_prefixes(bundle),
        collisions=curves.collisions(bundle),
        losses=curves.loss_curves(bundle.training),
        samples=make_samples(collection, first_hits or {}, bundle, documents_of(collection), runs.get("bm25")),
    )
    return report, runs


def standings(qrels: dict[str, dict[str, int]], runs: Mapping[str, Run]) -> dict[str, Standing]:
    """Means with intervals of each run, and p against the run called "bm25" where there is one."""
    from zerogr_ray.evaluation.metrics import METRICS, evaluate
    from zerogr_ray.evaluation.significance import bootstrap, randomisation_test

    qids = sorted(qrels)
    values = {}
    for name, run in runs.items():
        per_query = evaluate(qrels, run)
        values[name] = {metric: np.array([per_query[qid][metric] for qid in qids]) for metric in METRICS}
    bm25 = values.get("bm25")
    return {
        name: Standing(
            {metric: bootstrap(row_Q) for metric, row_Q in rows.items()},
            {metric: randomisation_test(row_Q - bm25[metric]) for metric, row_Q in rows.items()}
            if bm25 is not None and name != "bm25"
            else {},
        )
        for name, rows in values.items()
    }


def table(rows: Mapping[str, Mapping[str, float | str]], first: str = "system") -> str:
    """Systems by metrics, three decimals, columns aligned with spaces; "-" where a system lacks a metric.

    Columns stand in the order in which the rows name them, `first` over the names. No trailing newline.
    """
    metrics = list(dict.fromkeys(metric for values in rows.values() for metric in values))
    cells = [[first, *metrics]]
    for system, values in rows.items():
        cells.append([system, *(_cell(values.get(metric, "-")) for metric in metrics)])
    widths = [max(len(row[column]) for row in cells) for column in range(len(metrics) + 1)]
    return "\n".join(_line(row, widths) for row in cells)


def _cell(value: float | str) -> str:
    return f"{value:.3f}" if isinstance(value, float) else str(value)


def _line(row: Sequence[str], widths: Sequence[int]) -> str:
    name, *values = row
    return "  ".join(
        [name.ljust(widths[0]), *(value.rjust(width) for value, width in zip(values, widths[1:], strict=True))]
    )
