"""The prefix tree over docid tokens, as flat arrays in level order that many processes can map at once.

Node 0 is the root. Nodes are numbered level by level, siblings in ascending token order, so the children of a node
are one contiguous range. A docid is cut to its shortest prefix that no other docid shares; the end-of-turn token is
a child only where a docid is a proper prefix of another.

    tokens      (N,)        token on the edge into each node; the root's is 0
    first_child (N + 1,)    children of node i are first_child[i] .. first_child[i + 1] - 1; a leaf has none
    internal    (N/512 + 1,) internal nodes before every 512th node: turns a leaf's node number into its rank
    shared      (C,)        leaf rank of every document beyond the first in its leaf, ascending

Documents are numbered in leaf order, so a leaf's documents are a range too, and C is zero without collisions.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

BLOCK = 512
ARRAYS = ("tokens", "first_child", "internal", "shared")

Ints = NDArray[Any]


@dataclass(frozen=True, eq=False)
class Trie:
    """Flat arrays as the module says. Read-only: what a search has removed lives in the search."""

    tokens: Ints
    first_child: Ints
    internal: Ints
    shared: Ints

    @classmethod
    def build(cls, docids: Sequence[Sequence[int]], end: int) -> tuple[Trie, NDArray[np.int64]]:
        """The trie of `docids` (token ids; equal ones share a leaf) and the order of its documents.

        Returns (trie, order): document number j of the trie is docids[order[j]]. Raises ValueError for no docids,
        an empty docid, and a docid that holds the end-of-turn token `end`.
        """
        lengths = np.fromiter(map(len, docids), dtype=np.int64, count=len(docids))
        if not len(docids) or not lengths.all():
            raise ValueError("a trie needs at least one docid, and no docid may be empty")
        flat = np.fromiter((t for docid in docids for t in docid), dtype=np.int64, count=int(lengths.sum()))
        if (flat == end).any():
            raise ValueError(f"a docid holds the end-of-turn token {end}")
        width = np.uint16 if max(int(flat.max()), end) < 1 << 16 else np.uint32
        rows = np.full((len(docids), int(lengths.max()) + 1), end, dtype=width)
        rows[np.arange(rows.shape[1]) < lengths[:, None]] = flat
        return cls.from_rows(rows)

    @classmethod
    def from_rows(cls, rows: Ints) -> tuple[Trie, NDArray[np.int64]]:
        """As `build`, from an array of shape (documents, longest + 1), each row filled up with the end token."""
        order = np.lexsort(rows.T[::-1])
        ordered = rows[order]
        differs = ordered[1:] != ordered[:-1]
        is_new = np.concatenate([[True], differs.any(axis=1)])
        distinct = ordered[is_new]
        # Tokens that each distinct docid has in common with the one before it, and its distinguishing length.
        common = np.zeros(len(distinct) + 1, dtype=np.int64)
        common[1:-1] = differs[is_new[1:]].argmax(axis=1)
        depth = np.maximum(common[:-1], common[1:]) + 1
        before = common[:-1]

        tokens = [np.zeros(1, dtype=rows.dtype)]
        first_child = [np.ones(1, dtype=np.int64)]
        leaf_node = np.empty(len(distinct), dtype=np.int64)
        level = np.flatnonzero((before <= 0) & (depth > 0))
        start = 1  # node number of the first node of the level
        for d in range(int(depth.max())):
            below = np.flatnonzero((before <= d + 1) & (depth > d + 1))
            ends = depth[level] == d + 1
            leaf_node[level[ends]] = start + np.flatnonzero(ends)
            tokens.append(distinct[level, d])
            first_child.append(start + len(level) + np.searchsorted(below, level))
            start += len(level)
            level = below
        first_child.append(np.array([start]))
        wide = np.uint32 if start < 1 << 32 else np.uint64
        children = np.concatenate(first_child).astype(wide)

        rank = np.empty(len(distinct), dtype=np.int64)
        rank[np.argsort(leaf_node)] = np.arange(len(distinct))
        document_rank = rank[np.cumsum(is_new) - 1]
        by_leaf = np.argsort(document_rank, kind="stable")
        ranks = document_rank[by_leaf]
        shared = ranks[1:][ranks[1:] == ranks[:-1]].astype(wide)
        # Documents of one leaf keep the order in which they were given.
        return cls(np.concatenate(tokens), children, _internal_before(children), shared), order[by_leaf]

    @property
    def nodes(self) -> int:
        """N, the root included."""
        return len(self.tokens)

    @property
    def leaves(self) -> int:
        """Number of distinct docids."""
        return self.nodes - int(self.internal[-1])

    @property
    def documents(self) -> int:
        """Number of documents."""
        return self.leaves + len(self.shared)

    def children(self, node: int) -> tuple[int, int]:
        """The children of `node` as a range (first, past the last)."""
        return int(self.first_child[node]), int(self.first_child[node + 1])

    def parent(self, node: int) -> int:
        """The parent of `node` (not the root)."""
        return int(np.searchsorted(self.first_child, self.first_child.dtype.type(node), side="right")) - 1

    def path(self, node: int) -> list[int]:
        """Tokens from the root to `node`."""
        tokens: list[int] = []
        while node:
            tokens.append(int(self.tokens[node]))
            node = self.parent(node)
        return tokens[::-1]

    def documents_of(self, leaf: int) -> range:
        """Numbers of the documents of a leaf node."""
        block = leaf // BLOCK
        part = self.first_child[block * BLOCK : leaf + 1]
        rank = leaf - int(self.internal[block]) - int(np.count_nonzero(part[1:] > part[:-1]))
        key = self.shared.dtype.type(rank)
        first = rank + int(np.searchsorted(self.shared, key, side="left"))
        last = rank + int(np.searchsorted(self.shared, key, side="right"))
        return range(first, last + 1)

    def arrays(self) -> dict[str, Ints]:
        """The arrays by name, as the index folder stores them."""
        return {name: getattr(self, name) for name in ARRAYS}


def _internal_before(first_child: Ints) -> NDArray[np.uint64]:
    """Internal nodes before node 0, 512, 1024, …"""
    counted = np.add.reduceat(
        first_child[1:] > first_child[:-1], np.arange(0, len(first_child) - 1, BLOCK), dtype=np.int64
    )
    return np.concatenate([[0], np.cumsum(counted)]).astype(np.uint64)
