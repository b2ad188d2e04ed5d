"""Documents that stand for a corpus: those with the lowest hashes, so that they are the same on every machine."""

from __future__ import annotations

from collections.abc import Sequence
from heapq import nsmallest
from itertools import chain

from zerogr_ray.stage import Output
from zerogr_ray.store import hash64

Drawn = tuple[int, dict[str, str]]
"""(hash, document) of one that stands for the corpus."""


def draw_documents(source: Output, most: int, seed: int) -> list[Drawn]:
    """The `most` documents whose (seed, docno) have the lowest hashes, lowest first."""
    drawn = draw_places(source, most, seed)
    rows = source.rows_at([place for _, place in drawn], ["docno", "title", "text"])
    return [(number, row) for (number, _), row in zip(drawn, rows, strict=True)]


def draw_places(
    source: Output, most: int, seed: int, shards: Sequence[str] | None = None
) -> list[tuple[int, tuple[str, int]]]:
    """(hash, (shard, row)) of the same documents; of those in `shards` alone, where they are given."""
    lowest: list[tuple[int, tuple[str, int]]] = []
    for shard in (shards or source.shards()) if most else ():
        docnos = source.folder.read_table(shard, ["docno"])["docno"].to_pylist()
        numbers = ((hash64(str(seed), docno), (shard, row)) for row, docno in enumerate(docnos))
        lowest = nsmallest(most, chain(lowest, numbers))
    return lowest
