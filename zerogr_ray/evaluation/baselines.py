"""What every figure stands beside: BM25."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from importlib import import_module
from typing import Any

from zerogr_ray.errors import InputError
from zerogr_ray.rows import Document, Query, Run

K1, B = 0.9, 0.4
"""Anserini's defaults, which the BEIR papers use."""


def bm25(documents: Iterable[Document], queries: list[Query], k: int) -> Run:
    """The k best documents of each query under BM25 (Lucene's variant, k1 = 0.9, b = 0.4), through bm25s.

    Title and text are one field. Tokens are runs of two or more letters and digits, lower case, without English stop
    words; with PyStemmer installed they are stemmed (Snowball English), which is the baseline to quote. Instructions
    are not read. Documents that share no token with the query are not returned.

    Raises InputError if there are no documents.
    """
    import bm25s

    docnos: list[str] = []

    def texts() -> Iterator[str]:
        for document in documents:
            docnos.append(document.docno)
            yield f"{document.title} {document.text}"

    corpus = _tokens(texts())
    if not docnos:
        raise InputError("BM25 needs at least one document; the corpus has none")
    run: Run = {query.qid: {} for query in queries}
    if not queries or not corpus.vocab:
        return run
    index = bm25s.BM25(k1=K1, b=B, method="lucene")
    index.index(corpus, show_progress=False)
    tokens = _tokens(query.text for query in queries)
    found, scores = index.retrieve(tokens, k=min(k, len(docnos)), show_progress=False)
    for query, row, values in zip(queries, found, scores, strict=True):
        run[query.qid] = {docnos[int(i)]: float(s) for i, s in zip(row, values, strict=True) if s > 0}
    return run


def stemmer() -> Any | None:
    """The English Snowball stemmer if PyStemmer is installed."""
    try:
        return import_module("Stemmer").Stemmer("english")
    except ImportError:
        return None


def _tokens(texts: Iterable[str]) -> Any:
    import bm25s

    return bm25s.tokenize(texts, stopwords="en", stemmer=stemmer(), show_progress=False)
