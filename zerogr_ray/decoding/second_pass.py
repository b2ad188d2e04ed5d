"""Keep the pseudo-queries that the trained retriever itself leads back to their documents.

Round-trip consistency with the retriever in the place of BM25 (Dai et al., 2023, arXiv 2209.11755, section 3.2): it
was trained on all queries that the first filter had kept, and is trained anew on those that it finds. It ranks the
documents by what it knows alone: whole docids, with the prior subtracted, no words of the documents.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from zerogr_ray.config import IndexConfig, QueryConfig
from zerogr_ray.decoding.choose import usual
from zerogr_ray.decoding.retriever import Retriever
from zerogr_ray.index.manifest import FORMAT
from zerogr_ray.models import hush
from zerogr_ray.queries.filter import KEPT, NOT_FOUND, bare, judged_schema, write_kept
from zerogr_ray.queries.round_trip import NOWHERE
from zerogr_ray.rows import Hit
from zerogr_ray.stage import Clock, Output, ShardWorker, map_shards
from zerogr_ray.store import key_of


def second_pass_key(training: str, kept: str, cfg: IndexConfig) -> str:
    """Changes with the training that judges, with the queries and with how they are judged: the prior is part of it."""
    prior = [cfg.calibration.texts, cfg.calibration.text_words, cfg.seed]
    return key_of(
        "second pass", 2, FORMAT, training, kept, cfg.queries.filter.retriever, cfg.queries.passages > 0, prior
    )


@dataclass(frozen=True)
class FindAgain:
    """For each query of a shard whether the retriever finds its document."""

    cfg: QueryConfig
    name: str = "second pass"

    def __call__(self, documents: pa.Table, engine: Retriever) -> pa.Table:
        """Rows of judged_schema for `documents` with columns of their queries and their docid."""
        rows = documents.to_pylist()
        most = self.cfg.filter.retriever
        asked = [query for row in rows for query in row["queries"]]
        found = iter(engine.search_many(asked, most, config=usual(engine.bundle)))
        judged = []
        for row in rows:
            ranks = [rank_of(row["docid"], next(found)) for _ in row["queries"]]
            judged.append(
                {
                    "docno": row["docno"],
                    "reasons": [KEPT if rank <= most else NOT_FOUND for rank in ranks],
                    "ranks": ranks,
                    "digests": [0] * len(ranks),
                    "bare": bare(row, self.cfg),
                }
            )
        return pa.Table.from_pylist(judged, schema=judged_schema())


def rank_of(docid: str, hits: list[Hit]) -> int:
    """Rank of the first hit with this docid: documents that share one are not told apart."""
    return next((hit.rank for hit in hits if hit.docid == docid), NOWHERE)


class Seeker(ShardWorker):
    """The Ray Data actor around FindAgain: holds the index of the first training."""

    def __init__(
        self,
        source: Output,
        tasks: list[tuple[FindAgain, Output]],
        docids: Output,
        queries: Output,
        index: str | Path,
        device: str,
    ) -> None:
        super().__init__(source, tasks)
        hush()
        self.docids, self.queries, self.retriever = docids, queries, Retriever.load(index, device)

    def work(self, shard: str, task: FindAgain, output: Output) -> tuple[int, int]:
        """Judge one shard."""
        documents = self.source.folder.read_table(shard, ["docno", "title", "text"])
        for stage, name in ((self.docids, "docid"), (self.queries, "queries")):
            documents = documents.append_column(name, stage.folder.read_table(shard, [name])[name])
        output.folder.write_table(shard, task(documents, self.retriever))
        return documents.num_rows, 0


def find_again(
    source: Output,
    docids: Output,
    queries: Output,
    kept: Output,
    index: str | Path,
    cfg: QueryConfig,
    resources: dict[str, Any],
    actors: int,
    quiet: bool,
    clock: Clock,
) -> dict[str, Any]:
    """Fill `kept` with the rows of `queries`, with those queries in each that `index` answers with their document.

    Returns its manifest; its "queries" goes on counting where that of `queries` ended, what went now as
    "not found again". Ray must be initialised. Interrupted, it goes on with the shards that were not judged.
    Raises BuildError where a worker fails.
    """
    if (manifest := kept.done()) is not None:
        return manifest
    sizes = dict((source.done() or {})["sizes"])
    judged = Output("second pass", kept.folder / "judged")
    device = "cuda" if resources.get("num_gpus") else "cpu"
    given = {"docids": docids, "queries": queries, "index": index, "device": device}
    tasks = [(FindAgain(cfg), judged)]
    clock.add(map_shards(source, tasks, Seeker, given, resources, actors, sizes.__getitem__, quiet))
    counts = write_kept(queries, judged, kept, sorted(sizes), np.zeros(0, dtype=np.int64), quiet)
    before = (queries.done() or {}).get("queries") or {"written": counts["written"]}
    now = {"kept": counts["kept"], "not found again": counts["not found"]}
    return kept.finish(sum(sizes.values()), queries={**before, **now})
