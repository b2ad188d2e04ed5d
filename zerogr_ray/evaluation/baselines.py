"""What every figure stands beside: BM25."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from importlib import import_module
from typing import Any

from zerogr_ray.errors import InputError
from zerogr_ray.lucene import lucene, tokens_of
from zerogr_ray.rows import Document, Query, Run


def bm25(documents: Iterable[Document], queries: list[Query], k: int) -> Run:
    """The k best documents of each query under BM25 (Lucene's variant, k1 = 0.9, b = 0.4), through bm25s.

    Title and text are one field. Tokens are runs of two or more letters and digits, lower case, without English stop
    words; with PyStemmer installed they are stemmed (Snowball English), which is the baseline to quote. Instructions
    are not read. Documents that share no token with the query are not returned.

    Raises InputError if there are no documents.
    """
    docnos: list[str] = []

    def texts() -> Iterator[str]:
        for document in documents:
            docnos.append(document.docno)
            yield f"{document.title} {document.text}"

    corpus = tokens_of(texts(), stemmer())
    if not docnos:
        raise InputError("BM25 needs at least one document; the corpus has none")
    run: Run = {query.qid: {} for query in queries}
    if not queries or not corpus.vocab:
        return run
    index = lucene(corpus)
    tokens = tokens_of((query.text for query in queries), stemmer())
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
