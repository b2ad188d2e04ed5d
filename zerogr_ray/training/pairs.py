"""The retriever's training set: every pseudo-query and every passage of a document, each with the document's docid.

part-*.parquet is what it trains on, held-*.parquet the pseudo-queries that it never sees.
"""

from __future__ import annotations

from typing import Any

from zerogr_ray.config import QueryConfig
from zerogr_ray.corpus.text import passages
from zerogr_ray.stage import Output, progress
from zerogr_ray.training.validation import is_held_out


def write_pairs(
    corpus: Output,
    docids: Output,
    queries: Output,
    pairs: Output,
    cfg: QueryConfig,
    sizes: dict[str, int],
    quiet: bool,
    held_share: float = 0.0,
) -> dict[str, Any]:
    """Join the three stages shard by shard into rows (query, docid). Returns the manifest of `pairs`.

    `held_share` of the pseudo-queries, chosen by their hashes, go to held-out files; no document loses its last row.
    """
    if (manifest := pairs.done()) is not None:
        return manifest
    rows = held_rows = 0
    with progress("pairs", sum(sizes.values()), quiet=quiet) as bar:
        for shard in corpus.shards():
            documents = corpus.folder.read_table(shard).to_pylist()
            docid_rows = docids.folder.read_table(shard).to_pylist()
            query_rows = queries.folder.read_table(shard).to_pylist()
            rows_of: dict[str, list[tuple[str, str]]] = {"part-": [], "held-": []}
            for document, docid, written in zip(documents, docid_rows, query_rows, strict=True):
                texts = queries_of(document["title"], document["text"], written["queries"], cfg)
                apart = held_out(document["docno"], texts, written["queries"], held_share)
                for text in texts:
                    rows_of["held-" if text in apart else "part-"].append((text, docid["docid"]))
            for kind, some in rows_of.items():
                if some or kind == "part-":
                    pairs.folder.write_table(shard.replace("part-", kind), _table(some))
            rows += len(rows_of["part-"])
            held_rows += len(rows_of["held-"])
            bar.update(len(documents))
    return pairs.finish(rows, held_out=held_rows)


def held_out(docno: str, texts: list[str], written: list[str], share: float) -> list[str]:
    """Those of a document's `texts` that are pseudo-queries and in the held-out share; never all of its texts."""
    apart = [text for text in texts if text in set(written) and is_held_out(share, docno, text)]
    return apart[: len(texts) - 1]


def queries_of(title: str, text: str, written: list[str], cfg: QueryConfig) -> list[str]:
    """All that stands for a query to this document, each once: pseudo-queries, its title, its passages."""
    own = [title, *passages(text, cfg.passage_words, cfg.passages)] if cfg.passages else []
    return list(dict.fromkeys(query for query in [*written, *own] if query.strip()))


def _table(rows: list[tuple[str, str]]) -> Any:
    import pyarrow as pa

    schema = pa.schema([("query", pa.string()), ("docid", pa.string())])
    return pa.table([[row[column] for row in rows] for column in range(2)], schema=schema)
