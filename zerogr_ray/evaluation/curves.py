"""Figures over draws, depths, docids and training steps: what a report plots."""

from __future__ import annotations

import json
import math
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from itertools import pairwise
from typing import TYPE_CHECKING

import numpy as np

from zerogr_ray.evaluation.metrics import evaluate, mean
from zerogr_ray.rows import Hit, Qrels

if TYPE_CHECKING:
    from zerogr_ray.index.bundle import Bundle

Curve = dict[int, float]
"""Figure at each whole number on the horizontal axis, ascending."""

POINTS = 24
STEPS = 200
"""Points of a loss curve at most; each is the mean of the steps since the one before."""


def spread(last: int, points: int = POINTS) -> list[int]:
    """Whole numbers from 1 to `last`, about `points` of them, evenly spread on a logarithmic axis."""
    return sorted({round(x) for x in np.geomspace(1, last, points).tolist()})


def ndcg_by_draw(qrels: Qrels, hits: Mapping[str, Sequence[Hit]], draws: Sequence[int]) -> Curve:
    """Mean nDCG@10 of what the first i draws found, in the order of the hits, for each i of `draws`.

    A document counts from the draw of the docid under which it is listed.
    """
    return {
        i: mean(evaluate(qrels, {qid: _first_ten(found, i) for qid, found in hits.items()}))["ndcg@10"] for i in draws
    }


def _first_ten(hits: Sequence[Hit], draws: int) -> dict[str, float]:
    return {hit.docno: hit.score for hit in [hit for hit in hits if hit.draw < draws][:10]}


def docid_words(bundle: Bundle) -> Curve:
    """Docids by their number of words, one of each shared docid."""
    return _counts(len(docid.split()) for docid in _distinct(bundle))


def docid_prefixes(bundle: Bundle) -> Curve:
    """Docids by the tokens of their distinguishing prefix: how many choices a search makes before it has decided."""
    from zerogr_ray.index.inspect import leaf_depths

    return _counts(leaf_depths(bundle.trie).tolist())


def collisions(bundle: Bundle) -> Curve:
    """Docids by the number of documents that have them."""
    return _counts(_distinct(bundle).values())


def _distinct(bundle: Bundle) -> dict[str, int]:
    import pyarrow.compute as pc

    counted = pc.value_counts(bundle.documents["docid"])
    return dict(zip(counted.field("values").to_pylist(), counted.field("counts").to_pylist(), strict=True))


def _counts(values: Iterable[int]) -> Curve:
    counted = Counter(values)
    return {value: float(counted[value]) for value in sorted(counted)}


def loss_curves(record: bytes, points: int = STEPS) -> dict[str, Curve]:
    """Each loss that the training recorded, by step: every numeric field with "loss" in its name.

    A point at step s is the mean over the recorded steps after the point before it, up to s.
    """
    recorded: dict[str, list[tuple[int, float]]] = {}
    for line in record.decode().splitlines():
        row = json.loads(line)
        for name, value in row.items():
            if "loss" in name and isinstance(value, (int, float)) and math.isfinite(value):
                recorded.setdefault(name, []).append((int(row["step"]), float(value)))
    return {name: _thinned(rows, points) for name, rows in recorded.items()}


def _thinned(rows: list[tuple[int, float]], points: int) -> Curve:
    cuts = np.unique(np.linspace(0, len(rows), min(points, len(rows)) + 1).astype(int)).tolist()
    return {
        rows[past - 1][0]: math.fsum(value for _, value in rows[first:past]) / (past - first)
        for first, past in pairwise(cuts)
    }
