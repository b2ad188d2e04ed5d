"""What a search may see of an index: the trie, less the rows removed since, with those added, inside a filter.

A row is one document of the trie, numbered in leaf order; rows added since are numbered from base.documents upwards. A
node lives while a row below it does. What is dead or alive is known without a look at the rest of the corpus: a removal
goes up from its leaves for as long as nothing else lives there, and so does a small filter; a larger one is
asked for each node that the search visits, since the descendants of a node are one range of each deeper level.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from zerogr_ray.index.overlay import Overlay
from zerogr_ray.index.trie import BLOCK, Trie

Ints = NDArray[np.int64]

NONE: Ints = np.empty(0, dtype=np.int64)

UPWARDS = 1 << 17
"""Rows of a filter that are followed up to the root at once (50 ms for 100,000); of more, a search looks only at what
it visits (0.3 ms a node, 10 ms for the root)."""


@dataclass(frozen=True, eq=False)
class Filter:
    """The rows that a restricted view lets through, and the nodes above them."""

    rows: Ints
    """(m,) ascending."""
    marked: Ints
    """Ascending: leaves of rows, and all nodes above them."""
    leaves: Ints
    """Ascending: the leaves of the base, not marked, that hold the other rows."""
    known: dict[int, Ints] = field(default_factory=dict)
    """Children of the nodes visited so far."""


@dataclass(frozen=True, eq=False)
class View:
    """A snapshot: it never changes, and many threads may read it. `View(trie)` is the trie as it was built."""

    base: Trie
    edge_priors: NDArray[Any] | None = None
    """(N,) prior of the edge into each node of the base."""
    overlay: Overlay | None = None
    removed: Ints = field(default_factory=lambda: NONE)
    """Ascending: rows removed."""
    dead: Ints = field(default_factory=lambda: NONE)
    """Ascending: nodes without a row that is not removed."""
    filter: Filter | None = None

    @property
    def documents(self) -> int:
        """Number of rows, those removed included: one more than the highest row."""
        return self.base.documents + (len(self.overlay.leaves) if self.overlay else 0)

    @property
    def entries(self) -> int:
        """Number of living rows inside the filter."""
        return len(self.filter.rows) if self.filter else self.documents - len(self.removed)

    def children(self, node: int) -> Ints:
        """Living children of `node`, ascending; empty for a leaf, and for the root when nothing lives."""
        if self.filter is None:
            first, last = self.base.children(node) if node < self.base.nodes else (0, 0)
            children = np.arange(first, last)
            if len(self.dead):
                start, stop = self.dead.searchsorted((first, last))
                children = np.delete(children, self.dead[start:stop] - first) if start < stop else children
            if self.overlay and node in self.overlay.children:
                added = self._added(node)
                return np.concatenate([children, added[~is_among(self.dead, added)]])
            return children
        found = self.filter.known.get(node)
        if found is None:
            found = self.filter.known[node] = self._allowed(self.filter, node)
            found.flags.writeable = False
        return found

    def tokens(self, nodes: Ints) -> Ints:
        """Token on the edge into each node, (n,) like `nodes`."""
        if not self.overlay:
            return self.base.tokens[nodes].astype(np.int64)
        old = nodes < self.base.nodes
        tokens = np.empty(len(nodes), dtype=np.int64)
        tokens[old] = self.base.tokens[nodes[old]]
        tokens[~old] = [self.overlay.tokens[node - self.base.nodes] for node in nodes[~old].tolist()]
        return tokens

    def priors(self, nodes: Ints) -> NDArray[np.float32]:
        """Prior of the edge into each node, (n,) like `nodes`; zeros where the index has none.

        An added edge gets the mean of its siblings in the base, so that not knowing neither favours nor hurts it.
        """
        priors = np.zeros(len(nodes), dtype=np.float32)
        if self.edge_priors is not None:
            old = nodes < self.base.nodes
            priors[old] = self.edge_priors[nodes[old]]
            parents = self._parents(nodes[~old])
            for parent in np.unique(parents[parents < self.base.nodes]).tolist():
                first, last = self.base.children(parent)
                if first < last:
                    mean = self.edge_priors[first:last].mean(dtype=np.float32)
                    priors[np.flatnonzero(~old)[parents == parent]] = mean
        return priors

    def rows(self, leaf: int) -> Ints:
        """Living rows of a leaf inside the filter, ascending; none for an inner node."""
        if self.overlay and leaf in self.overlay.rows:
            rows = np.array(self.overlay.rows[leaf], dtype=np.int64)
        elif self.overlay.is_leaf(leaf) if self.overlay else not range(*self.base.children(leaf)):
            held = self.base.documents_of(leaf)
            rows = np.arange(held.start, held.stop)
        else:
            return NONE
        if self.filter:
            return rows[is_among(self.filter.rows, rows)]
        return rows[~is_among(self.removed, rows)] if len(self.removed) else rows

    def parent(self, node: int) -> int:
        """The parent of `node` (not the root)."""
        if node < self.base.nodes:
            return self.base.parent(node)
        assert self.overlay is not None
        return self.overlay.parents[node - self.base.nodes]

    def path(self, node: int) -> list[int]:
        """Tokens from the root to `node`."""
        below: list[int] = []
        while node >= self.base.nodes:
            below += self.tokens(np.array([node])).tolist()
            node = self.parent(node)
        return self.base.path(node) + below[::-1]

    def restricted(self, rows: Ints | NDArray[np.bool_]) -> View:
        """What of this view is among `rows`: numbers in any order, or a mask of shape (documents,).

        Takes O(m) steps once for m rows. Raises ValueError for a row or a mask that this view does not have.
        """
        if rows.dtype == np.bool_ and rows.shape != (self.documents,):
            raise ValueError(f"a filter of shape {rows.shape} for an index of {self.documents} rows")
        asked: Ints = np.flatnonzero(rows) if rows.dtype == np.bool_ else distinct(rows.astype(np.int64))
        if len(asked) and not 0 <= asked[0] <= asked[-1] < self.documents:
            raise ValueError(f"a filter of rows {asked[0]} to {asked[-1]} for an index of {self.documents} rows")
        allowed = asked[is_among(self.filter.rows, asked) if self.filter else ~is_among(self.removed, asked)]
        leaves = distinct(self.leaves(allowed))
        upwards = len(allowed) <= UPWARDS
        start = leaves if upwards else leaves[leaves >= self.base.nodes]
        ranges = NONE if upwards else leaves[leaves < self.base.nodes]
        return replace(self, filter=Filter(allowed, self._above(start), ranges))

    def without(self, rows: Ints) -> View:
        """This view less `rows`, ascending. For a view without a filter."""
        assert self.filter is None
        view = replace(self, removed=distinct(np.concatenate([self.removed, rows])))
        died = np.array([n for n in distinct(self.leaves(rows)).tolist() if not len(view.rows(n))], dtype=np.int64)
        dead = self.dead
        while len(died):
            dead = distinct(np.concatenate([dead, died]))
            parents = distinct(self._parents(died[died > 0]))
            old = parents[parents < self.base.nodes]
            first, last = (self.base.first_child[old + i].astype(np.int64) for i in (0, 1))
            alive = last - first > dead.searchsorted(last) - dead.searchsorted(first)
            died = np.concatenate([old[~alive], parents[len(old) :]])
            if self.overlay:
                died = died[np.array([is_among(dead, self._added(node)).all() for node in died.tolist()], dtype=bool)]
            died = died[~is_among(dead, died)]
        return replace(view, dead=dead)

    def extended(self, docids: Sequence[Sequence[int]], end: int, docid_tokens: Callable[[int], list[int]]) -> View:
        """This view and a row for each of `docids`, as Overlay.grown takes them. For a view without a filter."""
        assert self.filter is None
        before = self.overlay or Overlay(self.base)
        view = replace(self, overlay=(overlay := before.grown(docids, end, docid_tokens)))
        created = range(self.base.nodes + len(before.parents), self.base.nodes + len(overlay.parents))
        # A leaf that was extended may hold removed rows only: they are dead in their new place too.
        died = [node for node in created if node not in overlay.children and not len(view.rows(node))]
        dead = distinct(np.concatenate([self.dead, np.array(died, dtype=np.int64)]))
        living = view._above(np.array(overlay.leaves[len(before.leaves) :], dtype=np.int64))
        return replace(view, dead=dead[~is_among(living, dead)])

    def _added(self, node: int) -> Ints:
        """Children of `node` that were added, ascending."""
        added = self.overlay.children.get(node) if self.overlay else None
        return np.fromiter(added.values(), dtype=np.int64, count=len(added)) if added else NONE

    def _allowed(self, only: Filter, node: int) -> Ints:
        """Children of `node` above a row of the filter: those marked, and those with one of its leaves in a range."""
        first, last = self.base.children(node) if node < self.base.nodes else (0, 0)
        added = self._added(node)
        marked = only.marked[slice(*only.marked.searchsorted((first, last)))]
        parts = [marked, added[is_among(only.marked, added)]]
        if not len(only.leaves) or first == last:
            return np.concatenate(parts)
        alive = np.zeros(last - first, dtype=bool)
        alive[marked - first] = True
        pending = np.flatnonzero(~alive)
        start, stop = pending + first, pending + first + 1  # descendants of each pending child on one level
        while len(pending):
            met = only.leaves.searchsorted(start) < only.leaves.searchsorted(stop)
            alive[pending[met]] = True
            start, stop = (self.base.first_child[nodes[~met]].astype(np.int64) for nodes in (start, stop))
            pending, start, stop = (array[start < stop] for array in (pending[~met], start, stop))
        return np.concatenate([first + np.flatnonzero(alive), parts[1]])

    def _parents(self, nodes: Ints) -> Ints:
        """Parents of `nodes` (the root not among them), (n,)."""
        old = nodes < self.base.nodes
        parents = np.empty(len(nodes), dtype=np.int64)
        starts = self.base.first_child
        parents[old] = starts.searchsorted(nodes[old].astype(starts.dtype), side="right") - 1
        if self.overlay:
            parents[~old] = [self.overlay.parents[node - self.base.nodes] for node in nodes[~old].tolist()]
        return parents

    def _above(self, nodes: Ints) -> Ints:
        """`nodes` and all nodes above them, ascending. O(nodes x depth)."""
        found = [nodes]
        while len(nodes := distinct(self._parents(nodes[nodes > 0]))):
            found.append(nodes)
        return distinct(np.concatenate(found))

    def leaves(self, rows: Ints) -> Ints:
        """Leaf of each of `rows`, which ascend, (m,)."""
        split = int(rows.searchsorted(self.base.documents))
        leaves = leaves_of(self.base, rows[:split])
        if not self.overlay:
            return leaves
        if moved := self.overlay.moved:
            sources = np.sort(np.fromiter(moved, dtype=np.int64, count=len(moved)))
            targets = np.array([moved[leaf] for leaf in sources.tolist()])
            extended = is_among(sources, leaves)
            leaves[extended] = targets[sources.searchsorted(leaves[extended])]
        added = [self.overlay.leaves[row - self.base.documents] for row in rows[split:].tolist()]
        return np.concatenate([leaves, np.array(added, dtype=np.int64)])


def leaves_of(trie: Trie, rows: Ints) -> Ints:
    """Leaf of each of `rows`, which ascend, (m,): the inverse of Trie.documents_of. Reads a block of nodes per row."""
    blocks = len(trie.internal) - 1
    ranks = rows - _at_most(lambda i: trie.shared[i].astype(np.int64) + i + 1, len(trie.shared), rows)
    block = _at_most(lambda i: i * BLOCK - trie.internal[i].astype(np.int64), blocks, ranks) - 1
    within = ranks - (block * BLOCK - trie.internal[block].astype(np.int64))  # leaves of its block before each leaf
    leaves = np.empty(len(rows), dtype=np.int64)
    some = 1 << 12  # blocks at a time: 16 MB
    read = distinct(block)
    for start in range(0, len(read), some):
        part = read[start : start + some]
        here = slice(*block.searchsorted((part[0], part[-1] + 1)))
        nodes = np.minimum(part[:, None] * BLOCK + np.arange(BLOCK + 1), trie.nodes)
        first_child = trie.first_child[nodes]
        is_leaf = first_child[:, 1:] == first_child[:, :-1]
        before = np.concatenate([[0], np.cumsum(is_leaf.sum(axis=1))])
        place = np.flatnonzero(is_leaf)[before[part.searchsorted(block[here])] + within[here]]
        leaves[here] = block[here] * BLOCK + place % BLOCK
    return leaves


def _at_most(values: Callable[[Ints], Ints], count: int, limits: Ints) -> Ints:
    """How many of values(0) .. values(count - 1), which do not descend, are at most each limit."""
    if count <= len(limits):
        return values(np.arange(count)).searchsorted(limits, side="right")
    low, high = np.zeros(len(limits), dtype=np.int64), np.full(len(limits), count)
    for _ in range(count.bit_length()):
        middle = np.minimum((low + high) // 2, count - 1)
        up = (values(middle) <= limits) & (low < high)
        low, high = np.where(up, middle + 1, low), np.where(up, high, middle)
    return low


def is_among(ascending: Ints, values: Ints) -> NDArray[np.bool_]:
    """Which of `values` are among `ascending`."""
    if not len(ascending):
        return np.zeros(len(values), dtype=bool)
    found: NDArray[np.bool_] = ascending[np.minimum(ascending.searchsorted(values), len(ascending) - 1)] == values
    return found


def distinct(values: Ints) -> Ints:
    """Ascending, each once. np.unique hashes before it sorts: five times slower for a million numbers."""
    ordered = np.sort(values)
    new = np.ones(len(ordered), dtype=bool)
    np.not_equal(ordered[1:], ordered[:-1], out=new[1:])
    once: Ints = ordered[new]
    return once
