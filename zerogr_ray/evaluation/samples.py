"""A few queries with what came back and what should have: the same ones in every report of a collection."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from hashlib import sha256
from typing import TYPE_CHECKING

from zerogr_ray.corpus.trec import ranked
from zerogr_ray.rows import Collection, Document, Hit, Query, Run

if TYPE_CHECKING:
    from zerogr_ray.index.bundle import Bundle

QUERIES = 10
SHOWN = 5
"""Documents that came back, and documents that should have, of one query."""
SNIPPET = 140
"""Characters of a document that are shown."""


@dataclass(frozen=True)
class Found:
    """A document that came back."""

    rank: int
    docno: str
    docid: str
    grade: int | None
    """Its judged relevance; None if nobody judged it."""


@dataclass(frozen=True)
class Wanted:
    """A document that is relevant."""

    docno: str
    grade: int
    docids: tuple[str, ...]
    """All that the index has for it; none if it lacks the document."""
    text: str
    """Title and beginning of the text; "" if the corpus lacks the document."""
    rank: int | None
    """Where it came back; None if it did not."""
    bm25_rank: int | None


@dataclass(frozen=True)
class Sample:
    """One query."""

    qid: str
    query: str
    found: tuple[Found, ...]
    wanted: tuple[Wanted, ...]
    more: int
    """Relevant documents that are not shown."""


def choose(queries: Iterable[Query], count: int = QUERIES) -> list[Query]:
    """`count` queries by the sha256 of their ids: nobody picked them, and everybody gets the same."""
    return sorted(queries, key=lambda query: sha256(query.qid.encode("utf-8", "surrogatepass")).digest())[:count]


def make_samples(
    collection: Collection,
    hits: Mapping[str, Sequence[Hit]],
    bundle: Bundle,
    documents: Iterable[Document],
    bm25: Run | None,
) -> list[Sample]:
    """The chosen queries of `collection`; `hits` and `bm25` are searches of all its queries.

    Relevant documents stand by grade, best first, then by docno; `documents` is read once, for their texts.
    """
    queries = choose(collection.queries)
    relevant = {query.qid: _relevant(collection.qrels[query.qid]) for query in queries}
    shown = {docno for docnos in relevant.values() for docno in docnos[:SHOWN]}
    texts = {row.docno: snippet(f"{row.title} {row.text}") for row in documents if row.docno in shown}
    docids = _docids(bundle, sorted(shown))
    samples = []
    for query in queries:
        judged, came = collection.qrels[query.qid], hits[query.qid]
        ranks = {hit.docno: hit.rank for hit in came}
        bm25_ranks = {docno: rank for rank, docno in enumerate(ranked((bm25 or {}).get(query.qid, {})), 1)}
        samples.append(
            Sample(
                query.qid,
                query.text,
                tuple(Found(hit.rank, hit.docno, hit.docid, judged.get(hit.docno)) for hit in came[:SHOWN]),
                tuple(
                    Wanted(
                        docno,
                        judged[docno],
                        tuple(docids.get(docno, ())),
                        texts.get(docno, ""),
                        ranks.get(docno),
                        bm25_ranks.get(docno),
                    )
                    for docno in relevant[query.qid][:SHOWN]
                ),
                max(0, len(relevant[query.qid]) - SHOWN),
            )
        )
    return samples


def snippet(text: str) -> str:
    """The beginning of `text` in one line."""
    line = " ".join(text[: 4 * SNIPPET].split())
    return line if len(line) <= SNIPPET else line[: SNIPPET - 1].rstrip() + "…"


def _relevant(judged: Mapping[str, int]) -> list[str]:
    return sorted((docno for docno, grade in judged.items() if grade > 0), key=lambda docno: (-judged[docno], docno))


def _docids(bundle: Bundle, docnos: Sequence[str]) -> dict[str, list[str]]:
    from zerogr_ray.index.table import take

    rows, _ = bundle.rows_of(docnos)
    found: dict[str, list[str]] = {}
    for row in take(bundle.documents.select(["docno", "docid"]), rows).to_pylist() if len(rows) else []:
        found.setdefault(row["docno"], []).append(row["docid"])
    return found
