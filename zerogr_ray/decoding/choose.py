"""Which way of decoding suits an index: the one that finds the documents of queries that were held back from training.

These are pseudo-queries: no person's query and no judgement is looked at. The published algorithm always takes part.
So that chance decides nothing, an index is searched in the usual way unless another is better by more than SURE
standard errors of the difference, query by query: of ten ways one is better by more than one error, though none is.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from zerogr_ray.config import DecodeConfig
from zerogr_ray.decoding.retriever import Retriever
from zerogr_ray.index.bundle import Bundle

Floats = NDArray[np.float64]

CUTOFF = 10
"""Hits that are looked at."""

PLANNED = 100
"""Documents that plan-ahead leaves to the search, in the ways that are tried."""

SCORED = 20
"""The same where every one of them is scored in full."""

WEIGHTS = (0.0, 0.5, 1.0)
"""λ, what the prior may count: the best way is tried with each, where the index has a prior."""

PLAN_WEIGHTS = "plan_weights"
"""Fact of the manifest: settings of DecodeConfig."""

SURE = 2.0
"""Standard errors by which another way than the usual one must be better."""

LOOKAHEADS = (100.0, 300.0, 1000.0, 3000.0)
"""What a plan may count beside the LM's words, in nats for a plan score of 1."""


@dataclass(frozen=True)
class Choice:
    """The way of decoding that is taken, and how good each was."""

    best: DecodeConfig
    tried: list[dict[str, Any]]
    """In the order of trial, {"ndcg@10": mean over the queries, "ahead": of the usual way, and its "error", with the
    settings that differ from the published}."""


def usual(bundle: Bundle) -> DecodeConfig:
    """How to search an index of which nothing better is known: with what it has the arrays for."""
    weight = 0.0 if bundle.priors is None else 1.0
    if bundle.postings is None:
        return DecodeConfig()
    if bundle.postings.weights is None:
        return DecodeConfig(prior_weight=weight, order="docid", plan_ahead=SCORED, mode="exhaustive")
    return DecodeConfig(prior_weight=weight, plan_ahead=PLANNED, lookahead=1000.0, **_plan_weights(bundle))


def ways(bundle: Bundle) -> Iterator[DecodeConfig]:
    """What is tried: the published algorithm first, then what this index has the arrays for."""
    yield DecodeConfig()
    weight = 0.0 if bundle.priors is None else 1.0
    if bundle.postings is None:  # scoring all that was drawn takes ten times as long as a plan
        for prior_weight in sorted({0.0, weight}):
            yield DecodeConfig(prior_weight=prior_weight, order="docid")
        return
    weighted, like = bundle.postings.weights is not None, _plan_weights(bundle)
    for lookahead in LOOKAHEADS if weighted else ():
        yield DecodeConfig(prior_weight=weight, plan_ahead=PLANNED, lookahead=lookahead, **like)
    for lookahead in (0.0, *LOOKAHEADS[:3]) if weighted else (0.0,):
        yield DecodeConfig(
            prior_weight=weight, plan_ahead=SCORED, lookahead=lookahead, mode="exhaustive", order="docid", **like
        )


def _plan_weights(bundle: Bundle) -> dict[str, float]:
    """What the parts of a plan count in this index, where it was learned (weights.py)."""
    return dict(bundle.manifest.get(PLAN_WEIGHTS, {}))


def gains(retriever: Retriever, queries: Sequence[tuple[str, str]], cfg: DecodeConfig) -> Floats:
    """nDCG@10 of `cfg` on each of `queries`, (query, docid of its document): (queries,).

    nDCG@10 = 1 / log2(1 + rank) of the first hit with this docid, 0 beyond rank 10
    """
    found = retriever.search_many([query for query, _ in queries], CUTOFF, config=cfg)
    of_each = [
        next((1.0 / np.log2(1 + hit.rank) for hit in hits if hit.docid == docid), 0.0)
        for hits, (_, docid) in zip(found, queries, strict=True)
    ]
    return np.array(of_each, dtype=np.float64)


def weighed(cfg: DecodeConfig, bundle: Bundle) -> list[DecodeConfig]:
    """The same way with each weight of the prior; none where the index has no prior."""
    if bundle.priors is None:
        return []
    return [cfg.model_copy(update={"prior_weight": weight}) for weight in WEIGHTS]


def choose(
    among: Sequence[DecodeConfig],
    plain: DecodeConfig,
    measure: Callable[[DecodeConfig], Floats],
    again: Callable[[DecodeConfig], Sequence[DecodeConfig]] = lambda _: (),
) -> Choice:
    """The way whose gains, which `measure` gives for each query, are most on the mean; the first of equals.

    `plain` where it is not behind that by more than SURE errors. `again` names others to try once it is known which one
    of `among` is best.
    """
    published, base = DecodeConfig().model_dump(), measure(plain)
    tried: dict[str, tuple[DecodeConfig, Floats]] = {}

    def best(more: Sequence[DecodeConfig]) -> DecodeConfig:
        for cfg in more:
            if (name := cfg.model_dump_json()) not in tried:
                tried[name] = cfg, base if cfg == plain else measure(cfg)
        leading, most = max(tried.values(), key=lambda one: round(float(one[1].mean()), 4))
        ahead, error = _ahead(most, base)
        return leading if ahead > SURE * error else plain

    chosen = best(again(best(among)))
    rows = []
    for cfg, mine in tried.values():
        ahead, error = _ahead(mine, base)
        figures = {"ndcg@10": float(mine.mean()), "ahead": ahead, "error": error}
        changed = {name: value for name, value in cfg.model_dump().items() if value != published[name]}
        rows.append({name: round(value, 4) for name, value in figures.items()} | changed)
    return Choice(chosen, rows)


def _ahead(these: Floats, those: Floats) -> tuple[float, float]:
    """Mean difference and its standard error: s / sqrt(n), s the sample's standard deviation."""
    differences = these - those
    spread = float(differences.std(ddof=1)) if len(differences) > 1 else 0.0
    return float(differences.mean()), spread / float(np.sqrt(len(differences)))
