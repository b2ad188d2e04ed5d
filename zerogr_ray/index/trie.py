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
from pathlib import Path

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from zerogr_ray.index.trie_build import KEY, Ints, TrieArrays, arrow_lists, beyond_key, docid_rows, trie_arrays
from zerogr_ray.store import map_arrays, save_arrays

BLOCK = 512
ARRAYS = ("tokens", "first_child", "internal", "shared")


@dataclass(frozen=True, eq=False)
class Trie:
    """Flat arrays as the module says. Read-only: what a search has removed lives in the search."""

    tokens: Ints
    first_child: Ints
    internal: Ints
    shared: Ints

    @classmethod
    def build(
        cls, docids: Sequence[Sequence[int]] | pa.Array | pa.ChunkedArray, end: int
    ) -> tuple[Trie, NDArray[np.int64]]:
        """The trie of `docids` (token ids, as sequences or Arrow lists; equal ones share a leaf) and their order.

        Returns (trie, order): document number j of the trie is docids[order[j]]. Raises ValueError for no docids,
        an empty docid, and a docid that holds the end-of-turn token `end`.
        """
        docids = arrow_lists(docids)
        return cls.of_arrays(trie_arrays(docid_rows(docids, end, KEY + 1), end, beyond_key(docids, end)))

    @classmethod
    def from_rows(cls, rows: Ints) -> tuple[Trie, NDArray[np.int64]]:
        """As `build`, from an array of shape (documents, longest + 1), each row filled up with the end token.

        `rows` is only read. 40 million docids of 12 16-bit tokens take one core about a minute.
        """
        return cls.of_arrays(trie_arrays(rows, int(rows[0, -1])))

    @classmethod
    def of_arrays(cls, arrays: TrieArrays) -> tuple[Trie, NDArray[np.int64]]:
        """As `build`, from what trie_build.py made."""
        tokens, first_child, shared, order = arrays
        return cls(tokens, first_child, _internal_before(first_child), shared), order

    def save(self, folder: Path) -> None:
        """Write the arrays into `folder`, one `.npy` file each."""
        save_arrays(folder, {name: getattr(self, name) for name in ARRAYS})

    @classmethod
    def open(cls, folder: Path) -> Trie:
        """The trie saved in `folder`, memory-mapped: nothing is read yet. Raises OSError and ValueError."""
        return cls(**map_arrays(folder, ARRAYS))

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


def _internal_before(first_child: Ints) -> NDArray[np.uint64]:
    """Internal nodes before node 0, 512, 1024, …"""
    counted = np.add.reduceat(
        first_child[1:] > first_child[:-1], np.arange(0, len(first_child) - 1, BLOCK), dtype=np.int64
    )
    return np.concatenate([[0], np.cumsum(counted)]).astype(np.uint64)
