"""The retriever's training set: every pseudo-query and every passage of a document, each with the document's docid."""

from __future__ import annotations

from typing import Any

from zerogr_ray.config import QueryConfig
from zerogr_ray.corpus.text import passages
from zerogr_ray.stage import Output, progress


def write_pairs(
    corpus: Output, docids: Output, queries: Output, pairs: Output, cfg: QueryConfig, sizes: dict[str, int], quiet: bool
) -> dict[str, Any]:
    """Join the three stages shard by shard into rows (query, docid). Returns the manifest of `pairs`."""
    if (manifest := pairs.done()) is not None:
        return manifest
    rows = 0
    with progress("pairs", sum(sizes.values()), quiet=quiet) as bar:
        for shard in corpus.shards():
            documents = corpus.folder.read_table(shard).to_pylist()
            docid_rows = docids.folder.read_table(shard).to_pylist()
            query_rows = queries.folder.read_table(shard).to_pylist()
            asked, answers = [], []
            for document, docid, written in zip(documents, docid_rows, query_rows, strict=True):
                texts = queries_of(document["title"], document["text"], written["queries"], cfg)
                asked += texts
                answers += [docid["docid"]] * len(texts)
            pairs.folder.write_table(shard, _table(asked, answers))
            rows += len(asked)
            bar.update(len(documents))
    return pairs.finish(rows)


def queries_of(title: str, text: str, written: list[str], cfg: QueryConfig) -> list[str]:
    """All that stands for a query to this document, each once: pseudo-queries, its title, its passages."""
    own = [title, *passages(text, cfg.passage_words, cfg.passages)] if cfg.passages else []
    return list(dict.fromkeys(query for query in [*written, *own] if query.strip()))


def _table(queries: list[str], docids: list[str]) -> Any:
    import pyarrow as pa

    return pa.table({"query": pa.array(queries, pa.string()), "docid": pa.array(docids, pa.string())})
