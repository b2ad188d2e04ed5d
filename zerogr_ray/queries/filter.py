"""Keep the pseudo-queries that are worth training on. A query goes, in this order, for one of four reasons:

1. `copies`: it is the document itself, which the LM has copied instead of asking for it. Passages teach that already.
2. `repeats`: the Jaccard overlap of its stems with those of an earlier query of the same document that has not gone
   for this reason or as a copy is `filter.repeats` or more. A document's queries are few, so all pairs are compared.
3. `not found`: under BM25, `filter.round_trip` documents or more fit it better than its own. Up to `filter.documents`
   documents all compete; of a larger corpus, those of its own shard and of shards spread evenly over the corpus, so
   that the test is milder by the share of documents left out.
4. `shared`: another query, as a rule of another document, has exactly the same set of stems and finds its document at
   a better rank (at the same rank, or with no round trip: comes earlier). Sets are compared by 64-bit digests.

A document without title or passages to train on keeps its best query in spite of these: the one that went for the
latest reason, at the best rank.

1 to 3 run shard by shard on Ray Data. 4 sorts 8-byte digests on the driver, in parts that fit in memory: the whole
filter costs O(n log n) in the number of queries.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from zerogr_ray.config import QueryConfig
from zerogr_ray.corpus.terms import stems
from zerogr_ray.corpus.text import passages
from zerogr_ray.queries.clean import is_copy
from zerogr_ray.queries.round_trip import Finder
from zerogr_ray.rows import query_schema
from zerogr_ray.stage import Clock, Output, ShardWorker, map_shards, progress, sample_shards
from zerogr_ray.store import hash64, key_of

KEPT, COPIES, REPEATS, NOT_FOUND, SHARED = range(5)
"""Why a query went, in the order of the tests."""

COUNTED = ("copies", "repeats", "not found", "shared")

PART = 1 << 25
"""Digests that are sorted at a time: about 1 GB."""


def judged_schema() -> pa.Schema:
    """One row per document: of each of its queries what is known of it; whether the document has nothing else."""
    lists = {"reasons": pa.uint8(), "ranks": pa.int32(), "digests": pa.uint64()}
    return pa.schema([("docno", pa.string()), *((n, pa.list_(t)) for n, t in lists.items()), ("bare", pa.bool_())])


def filter_key(queries: str, cfg: QueryConfig) -> str:
    """Changes with the queries and with what the filter does to them."""
    return key_of("filter", 2, queries, cfg.filter.model_dump(exclude={"retriever"}), cfg.passages > 0)


def filter_queries(
    corpus: Output,
    queries: Output,
    kept: Output,
    cfg: QueryConfig,
    sizes: dict[str, int],
    actors: int,
    quiet: bool = False,
    clock: Clock | None = None,
    pool: Mapping[str, Any] = MappingProxyType({}),
) -> dict[str, Any]:
    """Fill `kept` with the rows of `queries`, with fewer queries in each. Returns its manifest.

    The manifest's "queries" counts the written, the kept, those that went by reason, and the spared (which are among
    the kept). `actors` judge side by side, one CPU each and whatever `pool` says to Ray. Interrupted, it goes on with
    the shards that were not judged. Raises BuildError where a worker fails.
    """
    if (manifest := kept.done()) is not None:
        return manifest
    judged = Output("filter", kept.folder / "judged")
    given = {"queries": queries, "sizes": sizes}
    tasks = [(JudgeQueries(cfg), judged)]
    spent = map_shards(corpus, tasks, Judge, given, {"num_cpus": 1, **pool}, actors, sizes.__getitem__, quiet)
    if clock is not None:
        clock.add(spent)
    shards = sorted(sizes)
    elsewhere = better_elsewhere(judged, shards) if cfg.filter.shared else np.zeros(0, dtype=np.int64)
    counts = write_kept(queries, judged, kept, shards, elsewhere, quiet)
    return kept.finish(sum(sizes.values()), queries={n: counts[n] for n in ("written", "kept", *COUNTED, "spared")})


def write_kept(
    queries: Output,
    judged: Output,
    kept: Output,
    shards: Sequence[str],
    elsewhere: NDArray[np.int64],
    quiet: bool = False,
) -> Counter[str]:
    """Fill `kept` with what is left of `queries` by the rows of `judged`; returns how many were written, kept, spared
    and went for which reason. `elsewhere` are the places of those that go as `shared`."""
    counts: Counter[str] = Counter()
    start = 0
    with progress("filter", len(shards), unit="shards", quiet=quiet) as bar:
        for shard in shards:
            rows = queries.folder.read_table(shard).to_pylist()
            for row, verdict in zip(rows, judged.folder.read_table(shard).to_pylist(), strict=True):
                reasons = verdict["reasons"]
                first, past = np.searchsorted(elsewhere, [start, start + len(reasons)])
                for place in elsewhere[first:past]:
                    reasons[place - start] = SHARED
                start += len(reasons)
                spared = _best(reasons, verdict["ranks"]) if verdict["bare"] else None
                keep = [place for place, reason in enumerate(reasons) if reason == KEPT or place == spared]
                counts.update(COUNTED[reason - 1] for i, reason in enumerate(reasons) if i not in keep)
                counts.update({"written": len(reasons), "kept": len(keep), "spared": spared is not None})
                for column in ("queries", "kinds"):
                    row[column] = [row[column][place] for place in keep]
            kept.folder.write_table(shard, pa.Table.from_pylist(rows, schema=query_schema()))
            bar.update()
    return counts


@dataclass(frozen=True)
class JudgeQueries:
    """Tests 1 to 3 on the queries of a shard."""

    cfg: QueryConfig
    name: str = "filter"

    def __call__(self, documents: pa.Table, engine: Finder) -> pa.Table:
        """Rows of judged_schema for `documents` with a column of their queries; `engine` searches among them."""
        rows = []
        for row in documents.to_pylist():
            sets = [frozenset(stems(query)) for query in row["queries"]]
            copied = [is_copy(query, row["title"], row["text"]) for query in row["queries"]]
            own = [words for words, copy in zip(sets, copied, strict=True) if not copy]
            again = iter(repeats(own, self.cfg.filter.repeats))
            ranks = [engine.rank(query, row["docno"]) for query in row["queries"]] if self.cfg.filter.round_trip else []
            lost = [rank > self.cfg.filter.round_trip for rank in ranks] or [False] * len(sets)
            reasons = [
                COPIES if copy else REPEATS if next(again) else NOT_FOUND if far else KEPT
                for copy, far in zip(copied, lost, strict=True)
            ]
            rows.append(
                {
                    "docno": row["docno"],
                    "reasons": reasons,
                    "ranks": ranks or [1] * len(sets),
                    "digests": [hash64(" ".join(sorted(words))) for words in sets],
                    "bare": bare(row, self.cfg),
                }
            )
        return pa.Table.from_pylist(rows, schema=judged_schema())


class Judge(ShardWorker):
    """The Ray Data actor around JudgeQueries: holds the documents that compete under BM25."""

    def __init__(
        self, source: Output, tasks: list[tuple[JudgeQueries, Output]], queries: Output, sizes: dict[str, int]
    ):
        super().__init__(source, tasks)
        self.queries = queries
        settings = tasks[0][0].cfg.filter
        self.sample = set(sample_shards(sizes, settings.documents)) if settings.round_trip else set()
        self.held: dict[str, dict[str, list[str]]] = {}
        self.finder: tuple[frozenset[str], Finder] | None = None

    def work(self, shard: str, task: JudgeQueries, output: Output) -> tuple[int, int]:
        """Judge one shard."""
        documents = self.source.folder.read_table(shard)
        written = self.queries.folder.read_table(shard, ["queries"])["queries"]
        judged = task(documents.append_column("queries", written), self._finder(shard))
        output.folder.write_table(shard, judged)
        return documents.num_rows, 0

    def _finder(self, shard: str) -> Finder:
        """BM25 over the sample and this shard; the last one is kept, since most shards of a small corpus share it."""
        compete = frozenset(self.sample | {shard} if self.sample else ())
        if self.finder is None or self.finder[0] != compete:
            documents: dict[str, Sequence[str]] = {}
            for name in sorted(compete):
                if (found := self.held.get(name)) is None:
                    table = self.source.folder.read_table(name)
                    found = {row["docno"]: stems(f"{row['title']}\n{row['text']}") for row in table.to_pylist()}
                    if name in self.sample:
                        self.held[name] = found
                documents.update(found)
            self.finder = compete, Finder(documents)
        return self.finder[1]


def bare(document: Mapping[str, str], cfg: QueryConfig) -> bool:
    """Whether its pseudo-queries are all that there is to train on."""
    own = cfg.passages and (document["title"].strip() or passages(document["text"], cfg.passage_words, 1))
    return not own


def repeats(sets: Sequence[frozenset[str]], overlap: float) -> list[bool]:
    """For each set whether its Jaccard overlap with an earlier one that is no repetition is `overlap` or more."""
    first: list[frozenset[str]] = []
    again = []
    for words in sets:
        again.append(bool(overlap) and any(len(words & other) >= overlap * len(words | other) for other in first))
        if not again[-1]:
            first.append(words)
    return again


def better_elsewhere(judged: Output, shards: Sequence[str], part: int = PART) -> NDArray[np.int64]:
    """Places, ascending, of the kept queries whose set of stems has a better place in another document.

    A place is a query's number when the queries of all shards are counted through. The digests are sorted in as many
    parts as `part` says, each part of them read from the shards anew.
    """
    lengths = (pc.list_value_length(judged.folder.read_table(shard, ["digests"])["digests"]) for shard in shards)
    parts = -(-sum(pc.sum(length).as_py() or 0 for length in lengths) // part)
    gone = [np.zeros(0, dtype=np.int64)]
    for number in range(parts):
        columns: list[tuple[NDArray[Any], ...]] = []
        start = 0
        for shard in shards:
            table = judged.folder.read_table(shard, ["reasons", "ranks", "digests"])
            reasons, ranks, digests = (
                table[name].combine_chunks().flatten().to_numpy() for name in ("reasons", "ranks", "digests")
            )
            mine = np.flatnonzero((reasons == KEPT) & (digests % np.uint64(parts) == number))
            columns.append((digests[mine], ranks[mine], mine + start))
            start += len(reasons)
        digests, ranks, places = (np.concatenate(column) for column in zip(*columns, strict=True))
        order = np.lexsort((places, ranks, digests))
        same = digests[order][1:] == digests[order][:-1]
        gone.append(places[order[1:][same]])
    return np.sort(np.concatenate(gone))


def _best(reasons: Sequence[int], ranks: Sequence[int]) -> int | None:
    """The query that is spared where all have gone; None where one is kept or there is none."""
    if KEPT in reasons or not reasons:
        return None
    return min(range(len(reasons)), key=lambda place: (-reasons[place], ranks[place], place))
