"""How good a set of docids is before anything is trained: unique, short, distinguishable early."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class DocIdStatistics:
    """Counts over the docids of one index."""

    documents: int
    distinct: int
    """Different docids; documents - distinct of them share one with an earlier document."""
    distinct_share: float
    """distinct / documents."""
    largest_collision: int
    """Documents under the most shared docid."""
    words_mean: float
    tokens_mean: float
    prefix_mean: float
    """Tokens up to the shortest prefix that no other docid shares, mean over distinct docids."""
    prefix_max: int


def docid_statistics(docids: Sequence[str], tokens: Sequence[int], prefixes: Sequence[int]) -> DocIdStatistics:
    """Statistics of `docids`, one per document; `tokens` are their lengths, `prefixes` those of the trie's leaves."""
    _, counts = np.unique(np.array(docids, dtype=object).astype(str), return_counts=True)
    return DocIdStatistics(
        documents=len(docids),
        distinct=len(counts),
        distinct_share=round(len(counts) / len(docids), 4),
        largest_collision=int(counts.max()),
        words_mean=round(float(np.mean([len(docid.split()) for docid in docids])), 2),
        tokens_mean=round(float(np.mean(tokens)), 2),
        prefix_mean=round(float(np.mean(prefixes)), 2),
        prefix_max=int(np.max(prefixes)),
    )
