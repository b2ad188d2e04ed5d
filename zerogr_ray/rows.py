"""What crosses a stage boundary: one frozen dataclass and one Arrow schema per kind of row."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import pyarrow as pa


@dataclass(frozen=True, slots=True)
class Document:
    """One document of a corpus. `docno` is the corpus's own id (TREC's word)."""

    docno: str
    text: str
    title: str = ""


@dataclass(frozen=True, slots=True)
class Rejected:
    """A corpus row that was not taken, and why; it is written to `rejected/`, never lost silently."""

    file: str
    line: int
    reason: str
    row: str = ""


@dataclass(frozen=True, slots=True)
class Query:
    """One query, with the retrieval task it belongs to ("" when the caller gives the instruction)."""

    qid: str
    text: str
    instruction: str = ""


@dataclass(frozen=True, slots=True)
class Hit:
    """One document found.

    docno:        the document
    docid:        the docid under which it was found
    rank:         1 for the first
    score:        higher is better; strictly falling with rank
    draw:         number of the draw that produced it, from 0
    temperature:  T_i of that draw; 0 in modes that draw nothing
    logprob:      natural log of the docid's probability under the trie at temperature 1, nothing removed (<= 0)
    docid_logprob:  of all the docid's tokens over the whole vocabulary; None unless hits are ordered by more than draws
    calibrated:     the same less its prior
    rerank:         the rerank head's score
    """

    docno: str
    docid: str
    rank: int
    score: float
    draw: int
    temperature: float
    logprob: float
    docid_logprob: float | None = None
    calibrated: float | None = None
    rerank: float | None = None


Qrels = dict[str, dict[str, int]]
"""qid -> docno -> graded relevance."""

Run = dict[str, dict[str, float]]
"""qid -> docno -> score; higher is better."""


@dataclass(frozen=True, slots=True)
class Collection:
    """A test collection: its queries, their judgements, and where its corpus is."""

    name: str
    path: str
    queries: list[Query]
    qrels: Qrels
    instruction: str = field(default="")


def document_schema() -> pa.Schema:
    """Rows of the normalised corpus."""
    import pyarrow as pa

    return pa.schema([("docno", pa.string()), ("title", pa.string()), ("text", pa.large_string())])


def docid_schema() -> pa.Schema:
    """Rows that the docid stages write. `source` says how the docid came about: "lm", "rule", "random" or "fallback",
    or, where it was shared at first, "lm term" or "rule term" after what its last word comes from."""
    import pyarrow as pa

    return pa.schema([("docno", pa.string()), ("docid", pa.string()), ("source", pa.string())])


def query_schema() -> pa.Schema:
    """Rows that the pseudo-query stage writes: one row per document, its queries and the kind of each as lists."""
    import pyarrow as pa

    lists = pa.list_(pa.string())
    return pa.schema([("docno", pa.string()), ("queries", lists), ("kinds", lists)])
