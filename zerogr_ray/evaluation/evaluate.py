"""Our hits and the baselines' on the same queries of a test collection."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from zerogr_ray.config import CorpusConfig, DecodeConfig
from zerogr_ray.corpus.documents import read_documents
from zerogr_ray.evaluation.baselines import bm25
from zerogr_ray.evaluation.dense import SentenceEncoder, dense
from zerogr_ray.evaluation.metrics import evaluate, mean
from zerogr_ray.rows import Collection, Document, Hit, Run
from zerogr_ray.stage import progress

if TYPE_CHECKING:
    from zerogr_ray.decoding.retriever import Retriever


@dataclass(frozen=True)
class Evaluation:
    """Runs and figures of one collection, by system."""

    queries: int
    runs: dict[str, Run]
    per_query: dict[str, dict[str, dict[str, float]]]
    figures: dict[str, dict[str, float]]
    seconds: float
    """Wall time of our searches."""


def evaluate_index(
    retriever: Retriever,
    collection: Collection,
    config: DecodeConfig | None,
    k: int = 100,
    baseline: bool = True,
    quiet: bool = False,
    encoder: str | None = None,
    published: bool = True,
) -> Evaluation:
    """Search every judged query of `collection`; `k` hits each, as the index chose where `config` is None.

    `published` adds the published algorithm where that is another way, with as many draws and the same seed;
    `baseline` BM25 over the collection's corpus; `encoder` (a name or folder) that sentence encoder under its name.
    Raises ModelError before the first search if the encoder cannot be loaded.
    """
    sentences = SentenceEncoder(encoder) if encoder else None
    started = time.monotonic()
    found = search_collection(retriever, collection, config, k, quiet)
    seconds = time.monotonic() - started
    runs = {"zerogr": as_run(found)}
    own = config or retriever.bundle.decode
    paper = as_published(own)
    if published and own != paper:
        runs["published"] = as_run(search_collection(retriever, collection, paper, k, quiet, name="published"))
    if baseline:
        runs["bm25"] = bm25(documents_of(collection), collection.queries, k)
    if sentences:
        runs[sentences.name] = dense(documents_of(collection), collection.queries, k, sentences, quiet)
    per_query = {name: evaluate(collection.qrels, found) for name, found in runs.items()}
    return Evaluation(
        len(collection.queries), runs, per_query, {name: mean(rows) for name, rows in per_query.items()}, seconds
    )


def as_published(cfg: DecodeConfig) -> DecodeConfig:
    """The published algorithm with the draws and the seed of `cfg`."""
    return DecodeConfig(draws=cfg.draws, seed=cfg.seed)


def search_collection(
    retriever: Retriever,
    collection: Collection,
    config: DecodeConfig | None,
    k: int,
    quiet: bool = False,
    instruction: str = "",
    name: str = "search",
) -> dict[str, list[Hit]]:
    """qid -> the best `k` hits, for every judged query of `collection`; `name` stands before the progress bar.

    The retrieval task is `instruction`; without it the query's own; without that the one of the index.
    """
    hits: dict[str, list[Hit]] = {}
    own = str(retriever.bundle.manifest["instruction"])
    with progress(name, len(collection.queries), unit="queries", quiet=quiet) as bar:
        for start in range(0, len(collection.queries), retriever.cache.batch):
            batch = collection.queries[start : start + retriever.cache.batch]
            asked = [instruction or query.instruction or own for query in batch]
            found = retriever.search_many([query.text for query in batch], k, asked, config)
            hits |= {query.qid: answer for query, answer in zip(batch, found, strict=True)}
            bar.update(len(batch))
    return hits


def as_run(hits: Mapping[str, Sequence[Hit]]) -> Run:
    """Hits as what the metrics and TREC files take."""
    return {qid: {hit.docno: hit.score for hit in found} for qid, found in hits.items()}


def documents_of(collection: Collection) -> Iterator[Document]:
    """The collection's corpus, without the rows that cannot be read."""
    rows = read_documents(collection.path, CorpusConfig().text_chars)
    return (row for row in rows if isinstance(row, Document))
