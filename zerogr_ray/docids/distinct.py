"""Resolve collisions: every document ends with a docid of its own, and only identical documents share one.

1. The driver finds documents that share a docid from 8 bytes a docid, and compares their texts (title and text, white
   space collapsed). Identical documents count as one from here on.
2. Of the others the docid generator is shown what sets them apart from those they share a docid with, and its word for
   that (term.py) is appended where no other document of the group got the same. It is asked shard by shard on Ray Data
   about them alone. Those that still collide are asked again without the word that did not help:
   `docids.distinct_rounds` times.
3. Those that still collide get a word by the rule in term.py.

Every step depends on nothing but what was there before it, so that a run which was killed goes on with the shards
that are missing. On the driver each document takes 16 bytes while they are sorted, and each that collides some 300.
"""

from __future__ import annotations

import hashlib
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator, Sequence
from itertools import islice
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from zerogr_ray.config import DocIdConfig
from zerogr_ray.corpus.terms import Frequencies
from zerogr_ray.docids.term import AddTerm, Difference, differences, distinguish
from zerogr_ray.stage import Output, ShardTask, progress
from zerogr_ray.store import hash64, key_of

ASKED = pa.schema(
    [("docno", pa.string()), ("text", pa.string()), ("words", pa.list_(pa.string())), ("times", pa.list_(pa.int32()))]
)

Ask = Callable[[Output, list[tuple[ShardTask, Output]], Callable[[str], int]], None]
"""Runs tasks on the shards of a source that their outputs lack, with an LM; see stage.map_shards."""

TOGETHER = 20_000
"""Documents whose texts the driver holds at a time."""

SHARD_ROWS = 64
"""Documents of one shard of those that the LM is asked about."""


def distinct_key(docids: str, cfg: DocIdConfig) -> str:
    """Changes with the docids and with how collisions are resolved."""
    return key_of("distinct", 2, docids, cfg.distinct_rounds)


def make_distinct(
    source: Output,
    docids: Output,
    output: Output,
    cfg: DocIdConfig,
    frequencies: Frequencies | None,
    ask: Ask,
    quiet: bool = False,
) -> dict[str, Any]:
    """Fill `output` with the rows of `docids`, changed where documents that are not identical share a docid.

    Returns the manifest; its "collisions" counts the distinct docids before and after, the documents asked about, those
    that got a word from the LM and by the rule, and those that share a docid in the end because they are identical.
    """
    if (manifest := output.done()) is not None:
        return manifest
    state, task = _DocIds(docids, source), AddTerm(cfg)
    facts = {"distinct_before": state.distinct(), "asked": 0, "lm": 0, "rule": 0}
    for number in range(cfg.distinct_rounds if cfg.written_by == "lm" else 0):
        folder = output.folder / f"round-{number}"
        if not (groups := state.collisions()):
            break
        terms = _ask_about(
            groups, state, Output("asked", folder / "asked"), Output("terms", folder / "terms"), task, ask
        )
        facts["asked"] += len(terms)
        facts["lm"] += _append(groups, terms, state)
    for batch in _batches(state.collisions()):
        texts = state.texts([twins[0] for group in batch for twins in group])
        docid_of = state.of([group[0][0] for group in batch])
        for group in batch:
            shared = docid_of[group[0][0]]
            own = distinguish(shared, [texts[twins[0]] for twins in group], frequencies, state.taken)
            for twins, docid in zip(group, own, strict=True):
                if docid != shared:
                    facts["rule"] += 1
                    state.change(twins, docid, "rule term")
    with progress("distinct", state.rows, quiet=quiet) as bar:
        for shard, start in zip(state.shards, state.starts.tolist(), strict=False):
            table = state.changed_table(shard, start)
            output.folder.write_table(shard, table)
            bar.update(table.num_rows)
    facts |= {"distinct_after": state.distinct(), "identical": state.sharing()}
    return output.finish(state.rows, collisions=facts)


class _DocIds:
    """The docids of a corpus as the driver holds them: a digest of each, and the text of those that were changed."""

    def __init__(self, docids: Output, source: Output) -> None:
        self.docids, self.source = docids, source
        self.shards = docids.shards()
        columns = (docids.folder.read_table(shard, ["docid"])["docid"] for shard in self.shards)
        parts = [np.array([hash64(docid) for docid in column.to_pylist()], dtype=np.uint64) for column in columns]
        self.starts = np.cumsum([0, *map(len, parts)])
        self.rows = int(self.starts[-1])
        self.digests = np.concatenate(parts)
        self.first = np.sort(self.digests)
        self.new: set[int] = set()
        self.changed: dict[int, tuple[str, str]] = {}
        self.tried: dict[int, set[str]] = defaultdict(set)
        """Words that did not help."""

    def distinct(self) -> int:
        """How many different docids there are."""
        return len(np.unique(self.digests))

    def sharing(self) -> int:
        """Documents that share their docid."""
        return len(self._shared())

    def taken(self, docid: str) -> bool:
        """Whether a document has or had this docid."""
        mine = hash64(docid)
        place = int(np.searchsorted(self.first, np.uint64(mine)))
        return mine in self.new or (place < len(self.first) and int(self.first[place]) == mine)

    def change(self, rows: Sequence[int], docid: str, origin: str) -> None:
        """Give the documents with these numbers another docid."""
        mine = hash64(docid)
        self.new.add(mine)
        for row in rows:
            self.digests[row] = mine
            self.changed[row] = docid, origin

    def of(self, rows: Sequence[int]) -> dict[int, str]:
        """The docids of these documents."""
        found = {}
        for shard, start, mine in self.by_shard(np.sort(np.array(rows))):
            column = self.changed_table(shard, start)["docid"]
            found.update({row: str(column[row - start].as_py()) for row in mine.tolist()})
        return found

    def collisions(self) -> list[list[list[int]]]:
        """Groups of documents that share a docid and are not all identical, each as lists of identical documents.

        Documents are numbered through the corpus; groups, lists and numbers are in the order of the documents.
        """
        groups: dict[int, dict[bytes, list[int]]] = defaultdict(dict)
        for row, title, text in self._documents(self._shared()):
            words = " ".join(f"{title}\n{text}".split())
            content = hashlib.blake2b(words.encode("utf-8", "replace"), digest_size=16).digest()
            groups[int(self.digests[row])].setdefault(content, []).append(row)
        return [list(group.values()) for group in groups.values() if len(group) > 1]

    def texts(self, rows: list[int]) -> dict[int, str]:
        """Title and text of these documents."""
        return {row: f"{title}\n{text}" for row, title, text in self._documents(np.sort(np.array(rows)))}

    def changed_table(self, shard: str, start: int) -> pa.Table:
        """The docid rows of a shard, whose first row has the number `start`, as they are now."""
        table = self.docids.folder.read_table(shard)
        mine = [row for row in range(start, start + len(table)) if row in self.changed]
        if not mine:
            return table
        rows = table.to_pylist()
        for row in mine:
            rows[row - start]["docid"], rows[row - start]["source"] = self.changed[row]
        return pa.Table.from_pylist(rows, schema=table.schema)

    def by_shard(self, rows: NDArray[np.int64]) -> Iterator[tuple[str, int, NDArray[np.int64]]]:
        """Of ascending row numbers those of each shard, with the shard's name and its first row."""
        cuts = np.searchsorted(rows, self.starts)
        for shard, start, first, past in zip(self.shards, self.starts[:-1], cuts[:-1], cuts[1:], strict=True):
            if first < past:
                yield shard, int(start), rows[first:past]

    def _shared(self) -> NDArray[np.int64]:
        """Numbers of the documents that share their docid, ascending."""
        order = np.argsort(self.digests, kind="stable")
        same = self.digests[order][1:] == self.digests[order][:-1]
        shared = np.append(same, False) | np.insert(same, 0, False)
        return np.sort(order[shared])

    def _documents(self, rows: NDArray[np.int64]) -> Iterator[tuple[int, str, str]]:
        for shard, start, mine in self.by_shard(rows):
            table = self.source.folder.read_table(shard, ["title", "text"]).take(pa.array(mine - start))
            columns = table["title"].to_pylist(), table["text"].to_pylist()
            yield from zip(mine.tolist(), *columns, strict=True)


def _ask_about(
    groups: list[list[list[int]]], state: _DocIds, asked: Output, answers: Output, task: AddTerm, ask: Ask
) -> dict[int, str]:
    """The LM's word for one of each list of identical documents; none where it has none.

    What it is asked about is written first, with the document's number for its docno.
    """
    if (manifest := asked.done()) is None:
        sizes: dict[str, int] = {}
        apart = _set_apart(groups, state)
        while some := list(islice(apart, SHARD_ROWS)):
            shard = f"part-{len(sizes):06d}.parquet"
            rows = [{"docno": str(row), **difference._asdict()} for row, difference in some]
            asked.folder.write_table(shard, pa.Table.from_pylist(rows, schema=ASKED))
            sizes[shard] = len(rows)
        manifest = asked.finish(sum(sizes.values()), sizes=sizes)
    ask(asked, [(task, answers)], manifest["sizes"].__getitem__)
    found: dict[int, str] = {}
    for shard in asked.shards():
        table = answers.folder.read_table(shard)
        found.update(zip(map(int, table["docno"].to_pylist()), table["term"].to_pylist(), strict=True))
    return found


def _set_apart(groups: list[list[list[int]]], state: _DocIds) -> Iterator[tuple[int, Difference]]:
    """(number, difference) of the first of each list of identical documents, of those that have a word of their own."""
    for batch in _batches(groups):
        texts = state.texts([twins[0] for group in batch for twins in group])
        docid_of = state.of([group[0][0] for group in batch])
        for group in batch:
            rows = [twins[0] for twins in group]
            known = set(docid_of[rows[0]].split())
            found = differences([texts[row] for row in rows], [known | state.tried.get(row, set()) for row in rows])
            yield from ((row, difference) for row, difference in zip(rows, found, strict=True) if difference.words)


def _append(groups: list[list[list[int]]], terms: dict[int, str], state: _DocIds) -> int:
    """Give documents the words that no other of their group got, and note the others as tried; returns how many."""
    given = 0
    for batch in _batches(groups):
        docid_of = state.of([group[0][0] for group in batch])
        for group in batch:
            times = Counter(terms.get(twins[0], "") for twins in group)
            for twins in group:
                term = terms.get(twins[0], "")
                if term and times[term] == 1:
                    state.change(twins, f"{docid_of[group[0][0]]} {term}", "lm term")
                    given += 1
                elif term:
                    state.tried[twins[0]].add(term)
    return given


def _batches(groups: list[list[list[int]]]) -> Iterator[list[list[list[int]]]]:
    """The groups in runs of TOGETHER documents or a few more."""
    held: list[list[list[int]]] = []
    documents = 0
    for group in groups:
        held.append(group)
        documents += len(group)
        if documents >= TOGETHER:
            yield held
            held, documents = [], 0
    if held:
        yield held
