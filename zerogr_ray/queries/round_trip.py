"""Does a query find the document that it was written for? BM25 says, over all documents or a sample of them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from zerogr_ray.corpus.terms import stems
from zerogr_ray.lucene import lucene

NOWHERE = 2**31 - 1
"""Rank of a document that shares no stem with the query."""


class Finder:
    """BM25 (Lucene's variant, through bm25s) over documents given by docno as the stems of their texts."""

    def __init__(self, documents: dict[str, Sequence[str]]) -> None:
        self.places = {docno: place for place, docno in enumerate(documents)}
        self.index: Any = None
        if any(documents.values()):
            self.index = lucene([list(words) for words in documents.values()])

    def rank(self, query: str, own: str) -> int:
        """1 + the number of documents that fit `query` better than the one with docno `own`; ties count for it."""
        ids = self.index.get_tokens_ids(stems(query)) if self.index else []
        if not ids:
            return NOWHERE
        scores = self.index.get_scores_from_ids(ids)
        score = scores[self.places[own]]
        return int(np.count_nonzero(scores > score)) + 1 if score > 0 else NOWHERE
