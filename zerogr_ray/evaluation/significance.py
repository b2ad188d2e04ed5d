"""Whether one run is better than another: paired randomisation test and bootstrap confidence intervals."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

EXACT = 16
"""Up to so many differing queries, all 2^n assignments of signs are counted."""
FLIPS = 100_000
RESAMPLES = 10_000
LEVEL = 0.95
SLICE = 1 << 22
"""Array elements that one slice of flips or resamples holds."""


@dataclass(frozen=True)
class Interval:
    """A mean over queries and its percentile bootstrap confidence interval (level 0.95)."""

    mean: float
    low: float
    high: float


@dataclass(frozen=True)
class Comparison:
    """Run A against run B by one metric, over the same queries."""

    queries: int
    a: Interval
    b: Interval
    difference: Interval
    """A minus B."""
    p: float
    wins: int
    """Queries on which A is better."""
    ties: int
    losses: int


def compare(a: Mapping[str, float], b: Mapping[str, float], seed: int = 0) -> Comparison:
    """Compare two systems by their values, qid -> metric. Queries are matched by qid; one that a system lacks counts 0.

    Raises ValueError if there are no queries.
    """
    qids = sorted(a.keys() | b.keys())
    if not qids:
        raise ValueError("a comparison needs at least one query")
    a_Q, b_Q = (np.array([values.get(qid, 0.0) for qid in qids]) for values in (a, b))
    d_Q = a_Q - b_Q
    wins, losses = int((d_Q > 0).sum()), int((d_Q < 0).sum())
    return Comparison(
        queries=len(qids),
        a=bootstrap(a_Q, seed=seed),
        b=bootstrap(b_Q, seed=seed),
        difference=bootstrap(d_Q, seed=seed),
        p=randomisation_test(d_Q, seed=seed),
        wins=wins,
        ties=len(qids) - wins - losses,
        losses=losses,
    )


def randomisation_test(d_Q: NDArray[np.float64], flips: int = FLIPS, seed: int = 0) -> float:
    """Two-sided p of the mean of paired differences `d_Q`, shape (queries,), under random signs.

        p = #{s : |sum_q s_q d_q| >= |sum_q d_q|} / 2^n                           n <= 16: every s in {-1, 1}^n
        p = (#{...} + 1) / (flips + 1)                                            else: `flips` random s

    n counts the differences that are not 0: the others change no sum. Smucker, Allan and Carterette, "A comparison of
    statistical significance tests for information retrieval evaluation", CIKM 2007. With no difference at all p is 1.
    """
    d_n = d_Q[d_Q != 0]
    # Sums of the same numbers in another order differ in their last digits, and must count as equal.
    observed = abs(d_n.sum()) - 1e-12 * np.abs(d_n).sum()
    if len(d_n) <= EXACT:
        sums = np.zeros(1)
        for difference in d_n:
            sums = np.concatenate([sums + difference, sums - difference])
        return float(np.mean(np.abs(sums) >= observed))
    rng = np.random.default_rng(seed)
    width = -(-len(d_n) // 8)
    count = 0
    for rows in _slices(flips, len(d_n)):
        bits = np.frombuffer(rng.bytes(rows * width), dtype=np.uint8).reshape(rows, width)
        plus = np.unpackbits(bits, axis=1, count=len(d_n)).astype(np.float64)
        count += int((np.abs(2 * (plus @ d_n) - d_n.sum()) >= observed).sum())
    return (count + 1) / (flips + 1)


def bootstrap(values_Q: NDArray[np.float64], resamples: int = RESAMPLES, seed: int = 0) -> Interval:
    """Mean of `values_Q`, shape (queries,) and not empty, with its percentile interval over resampled queries.

    Efron and Tibshirani, "An Introduction to the Bootstrap", 1993, chapter 13. The same seed resamples the same
    queries, so that intervals of two runs and of their difference belong together.
    """
    rng = np.random.default_rng(seed)
    n = len(values_Q)
    means = np.concatenate(
        [values_Q[rng.integers(0, n, size=(rows, n))].mean(axis=1) for rows in _slices(resamples, n)]
    )
    low, high = np.quantile(means, [(1 - LEVEL) / 2, (1 + LEVEL) / 2])
    return Interval(float(values_Q.mean()), float(low), float(high))


def _slices(total: int, width: int) -> Iterator[int]:
    """Rows of each slice of a (total, width) array."""
    rows = max(1, SLICE // width)
    for start in range(0, total, rows):
        yield min(rows, total - start)
