"""An index that takes documents in and out while it is being searched, and the way back to a plain index folder.

Changes are made to copies of what is small: a search keeps the View it began with, and nobody waits for anybody but a
change for the change before it. The index on disk stays as it was; `compact` writes the next one.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from zerogr_ray.corpus.bags import BAG, STEPS, Bags, query_bag
from zerogr_ray.errors import BuildError, InputError
from zerogr_ray.index.bundle import DOCUMENTS, Bundle, write_index
from zerogr_ray.index.table import take
from zerogr_ray.index.trie import Trie
from zerogr_ray.index.view import Ints, View, is_among
from zerogr_ray.store import key_of

SHOWN = ["docno", "docid", "title"]
OWN_FACTS = ("format", "documents", "docids", "nodes", "files", "sha256")
"""What write_index itself says in a manifest."""


@dataclass(frozen=True, slots=True)
class Entry:
    """A row that was added."""

    docno: str
    docid: str
    tokens: list[int]
    title: str
    owner: int
    """First of the rows that came with it under the same docno: it tells which rows are of one document."""


@dataclass(frozen=True, eq=False)
class _State:
    """What one change leaves behind for the next, all of it in step."""

    view: View
    added: list[Entry] = field(default_factory=list)
    """Row base.documents + i, living or not."""
    rows: dict[str, list[int]] = field(default_factory=dict)
    """docno -> its added rows that live."""
    several: bool = False
    """Whether a document with several docids was ever added."""


class LiveIndex:
    """An open index and its changes. Any thread may call anything; changes come one after the other."""

    def __init__(self, bundle: Bundle, end: int) -> None:
        """Begin with an open index as it was built; `end` is the end-of-turn token."""
        self.bundle, self.end = bundle, end
        self._state = _State(View(bundle.trie, bundle.priors))
        self._changing = threading.Lock()
        self._mean_tail_prior: float | None = None

    @property
    def view(self) -> View:
        """The index as it is now; what changes later does not change this view."""
        return self._state.view

    def add(
        self, docnos: Sequence[str], docids: Sequence[str], tokens: Sequence[Sequence[int]], titles: Sequence[str]
    ) -> None:
        """Add a row for each docno, all in one step; what the index held under these docnos goes in the same step.

        `tokens[i]` are all tokens of docids[i], without the end-of-turn token. A docno that comes twice is a document
        with two docids. Raises InputError for a docid that has no tokens or holds the end-of-turn token.
        """
        for docno, docid, docid_tokens in zip(docnos, docids, tokens, strict=True):
            if not len(docid_tokens) or self.end in docid_tokens:
                what = "holds the end-of-turn token" if len(docid_tokens) else "has no tokens"
                raise InputError(f"docid {docid!r} of document {docno} {what}; write it another docid")
        with self._changing:
            state, _ = self._removed(docnos)
            added, rows = state.added.copy(), state.rows.copy()
            for docno, docid, docid_tokens, title in zip(docnos, docids, tokens, titles, strict=True):
                row = self.bundle.trie.documents + len(added)
                rows[docno] = [*rows.get(docno, []), row]
                added.append(Entry(docno, docid, list(docid_tokens), title, rows[docno][0]))
            view = state.view.extended(tokens, self.end, lambda row: self._tokens(row, added))
            self._state = _State(view, added, rows, state.several or len(set(docnos)) < len(docnos))

    def remove(self, docnos: Sequence[str]) -> None:
        """Remove these documents, all in one step. Raises InputError, and removes none, if one is not in the index."""
        with self._changing:
            state, unknown = self._removed(docnos)
            if unknown:
                raise InputError(f"{_named(unknown)} not in the index; nothing was removed")
            self._state = state

    def at(self, rows: Sequence[int]) -> list[dict[str, str]]:
        """docno, docid and title of these rows of any view so far, removed since or not."""
        count, added = self.bundle.trie.documents, self._state.added
        old = take(self.bundle.documents.select(SHOWN), np.array([row for row in rows if row < count], dtype=np.int64))
        read = iter(old.to_pylist())
        return [next(read) if row < count else {x: getattr(added[row - count], x) for x in SHOWN} for row in rows]

    def titles(self, docnos: Sequence[str]) -> dict[str, str]:
        """docno -> title of those of these documents that the index holds now."""
        rows, _ = self._held(self._state, docnos)
        return {row["docno"]: row["title"] for row in self.at(rows.tolist())}

    @property
    def counts(self) -> dict[str, int]:
        """Documents as built, rows that live now, rows that were added and that are removed."""
        state = self._state
        return {
            "built": self.bundle.trie.documents,
            "living": state.view.entries,
            "added": len(state.added),
            "removed": len(state.view.removed),
        }

    def rows_of(self, docnos: Sequence[str]) -> Ints:
        """Living rows of these documents, ascending. Raises InputError for a docno that is not in the index.

        Call it before `view`: a view taken later has these rows, or has them removed.
        """
        rows, unknown = self._held(self._state, docnos)
        if unknown:
            raise InputError(f"{_named(unknown)} not in the index; leave it out of the filter")
        return rows

    @property
    def owner_of(self) -> Callable[[int], int] | None:
        """What tells rows of the same document by the same number; None where every document has one row."""
        state, count, owners = self._state, self.bundle.trie.documents, self.bundle.owners
        if owners is None and not state.several:
            return None

        def owner(row: int) -> int:
            if row >= count:
                return state.added[row - count].owner
            return row if owners is None else int(owners[row])

        return owner

    def tail_prior(self, row: int) -> float:
        """Prior of a docid's tokens after its distinguishing prefix; for an added row, the mean over the index."""
        priors = self.bundle.tail_priors
        if priors is None:
            return 0.0
        if row < len(priors):
            return float(priors[row])
        if self._mean_tail_prior is None:
            self._mean_tail_prior = float(priors.mean(dtype=np.float64))
        return self._mean_tail_prior

    def docid_tokens(self, row: int) -> list[int]:
        """All tokens of the docid of such a row, without the end-of-turn token."""
        return self._tokens(row, self._state.added)

    def documents(self) -> pa.Table:
        """All living rows, schema DOCUMENTS: those of the index in its order, then those added."""
        return self._table(self._state)

    def compact(
        self,
        out: Path,
        priors: Callable[[Trie, pa.Table], dict[str, NDArray[Any]]] | None = None,
    ) -> dict[str, Any]:
        """Write the living documents as a plain index to `out`, as write_index does. Returns its manifest.

        Model, record of its training, instruction and postings stay as they are; the key tells what was changed. Edge
        priors have to be measured again: `priors` is as for write_index, without it the new index has none. What was
        added is about nothing but its docid. Changes that are made meanwhile are not in it. Raises BuildError if
        nothing lives.
        """
        state, bundle = self._state, self.bundle
        if not state.view.entries:
            raise BuildError(f"{out} would be an index of no documents; add a document first")
        # The corpus of the build and its fingerprint are no longer what the index holds.
        facts = {name: value for name, value in bundle.manifest.items() if name not in (*OWN_FACTS, "corpus", "key")}
        changes = [state.view.removed.tolist(), [asdict(entry) for entry in state.added]]
        facts["key"] = key_of("compact", bundle.manifest["key"], *changes)
        if not priors:
            facts.pop("decode", None)  # it was chosen for an index with priors
        vocab = bundle.postings.vocab if bundle.postings else None
        rows = self._table(state)
        bags = self._bags(state)
        return write_index(out, rows, self.end, bundle.model, facts, vocab, bags, priors, training=bundle.training)

    def _table(self, state: _State) -> pa.Table:
        old = self.bundle.documents
        kept = self._kept(state)
        if not kept.all():
            old = old.filter(pa.array(kept))
        columns = [[getattr(entry, name) for entry in self._new(state)] for name in DOCUMENTS.names]
        return pa.concat_tables([old, pa.table(columns, schema=DOCUMENTS)])

    def _bags(self, state: _State) -> Bags | None:
        """What the rows of `_table` are about."""
        if self.bundle.postings is None or self.bundle.postings.bags is None:
            return None
        bags, tables = self.bundle.postings.bags, []
        for entry in self._new(state):
            words, weights = query_bag(entry.docid)
            tables.append(pa.table([[words], [np.rint(STEPS * weights).astype(np.uint8)]], schema=BAG))
        return bags.take(np.flatnonzero(self._kept(state))).join(Bags.of(tables, bags.begins))

    def _kept(self, state: _State) -> NDArray[np.bool_]:
        """Whether each row of the index lives."""
        removed, count = state.view.removed, self.bundle.trie.documents
        kept = np.ones(count, dtype=bool)
        kept[removed[: removed.searchsorted(count)]] = False
        return kept

    def _new(self, state: _State) -> list[Entry]:
        """What was added and lives."""
        count = self.bundle.trie.documents
        living = ~is_among(state.view.removed, np.arange(count, count + len(state.added)))
        return [entry for entry, lives in zip(state.added, living.tolist(), strict=True) if lives]

    def _tokens(self, row: int, added: list[Entry]) -> list[int]:
        count = self.bundle.trie.documents
        tokens: list[int] = added[row - count].tokens if row >= count else self.bundle.documents["tokens"][row].as_py()
        return tokens

    def _held(self, state: _State, docnos: Sequence[str]) -> tuple[Ints, list[str]]:
        """Living rows of these documents, ascending, and those of `docnos` that have none."""
        old = self.bundle.rows_of(docnos)[0]
        old = old[~is_among(state.view.removed, old)]
        found = set(take(self.bundle.documents.select(["docno"]), old)["docno"].to_pylist())
        asked = list(dict.fromkeys(docnos))
        added = np.array([row for docno in asked for row in state.rows.get(docno, [])], dtype=np.int64)
        unknown = [docno for docno in asked if docno not in found and docno not in state.rows]
        return np.concatenate([old, np.sort(added)]), unknown

    def _removed(self, docnos: Sequence[str]) -> tuple[_State, list[str]]:
        """The state without these documents, and those of `docnos` that it did not have."""
        rows, unknown = self._held(self._state, docnos)
        if not len(rows):
            return self._state, unknown
        left = self._state.rows.copy()
        for docno in docnos:
            left.pop(docno, None)
        return replace(self._state, view=self._state.view.without(rows), rows=left), unknown


def _named(docnos: list[str]) -> str:
    return f"document {docnos[0]} is" if len(docnos) == 1 else f"document {docnos[0]} and {len(docnos) - 1} more are"
