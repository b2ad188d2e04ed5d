"""BM25 as it is computed everywhere here: Lucene's variant with Anserini's defaults, through bm25s."""

from __future__ import annotations

import os
from collections.abc import Iterable
from typing import Any

K1, B = 0.9, 0.4
"""Anserini's defaults, which the BEIR papers use."""


def import_bm25s() -> Any:
    """The module. Raises ModuleNotFoundError where it is not installed.

    As it is imported it asks JAX, where there is one, for its device: on a machine with GPUs that fails in every worker
    that was given none. So JAX is kept to the CPU, unless $JAX_PLATFORMS says otherwise.
    """
    os.environ.setdefault("JAX_PLATFORMS", "cpu")
    import bm25s

    return bm25s


def lucene(corpus: Any) -> Any:
    """bm25s's index of `corpus`, which is tokens as its `tokenize` gives them, or lists of words."""
    index = import_bm25s().BM25(k1=K1, b=B, method="lucene")
    index.index(corpus, show_progress=False)
    return index


def tokens_of(texts: Iterable[str], stemmer: Any | None = None) -> Any:
    """Tokens of texts: runs of two or more letters and digits, lower case, without English stop words."""
    return import_bm25s().tokenize(texts, stopwords="en", stemmer=stemmer, show_progress=False)
