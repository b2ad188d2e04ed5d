"""How good a set of docids is before anything is trained: unique, short, distinguishable early."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray


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


def docid_statistics(docids: pa.ChunkedArray, tokens: NDArray[Any], prefixes: NDArray[Any]) -> DocIdStatistics:
    """Statistics of `docids`, one per document; `tokens` are their lengths, `prefixes` those of the trie's leaves."""
    counts = docids.value_counts().field("counts").to_numpy()
    words = pc.list_value_length(pc.utf8_split_whitespace(docids))
    return DocIdStatistics(
        documents=len(docids),
        distinct=len(counts),
        distinct_share=round(len(counts) / len(docids), 4),
        largest_collision=int(counts.max()),
        words_mean=round(pc.mean(words).as_py(), 2),
        tokens_mean=round(float(np.mean(tokens)), 2),
        prefix_mean=round(float(np.mean(prefixes)), 2),
        prefix_max=int(np.max(prefixes)),
    )
