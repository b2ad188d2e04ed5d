"""One query's search: which docids its draws give, and which nodes' logits it still needs to know.

The LM's logits at a node depend on (prompt, path) only. So a search keeps the logits of every node it has seen and
runs all draws ahead as far as those let it: a draw that meets an unknown node asks for it and the next draw goes on.
Everything asked for is computed in one wave; then the draws are replayed from the first that was blocked. A draw
counts once no draw before it is blocked, and since its noise is keyed (see noise.py), it is then bit for bit what
drawing one after the other gives.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise

import numpy as np
from numpy.typing import NDArray

from zerogr_ray.decoding.noise import gumbel
from zerogr_ray.index.trie import Trie


@dataclass(frozen=True, slots=True)
class Drawn:
    """A leaf that was drawn, by which draw, and its log-probability under the trie at temperature 1."""

    leaf: int
    draw: int
    logprob: float


@dataclass(eq=False)
class Node:
    """A node whose children compete: their logits less what was removed."""

    logits: NDArray[np.float32]
    """(children,) as the LM gave them."""
    surviving: NDArray[np.float32]
    """(children,) the same with -inf where a child was removed."""
    log_total: float
    """log sum exp of `logits`."""


class Search:
    """Draws without repetition in mode `reference`: removal renormalises at each node over what survives."""

    def __init__(self, trie: Trie, temperatures: NDArray[np.float64], seed: int, documents: int) -> None:
        """Draw until `documents` documents are found, K = len(temperatures) draws are made, or nothing is left."""
        self.trie, self.temperatures, self.seed, self.wanted = trie, temperatures, seed, documents
        self.found: list[Drawn] = []
        self.waves = 0
        self._found_documents = 0
        self._nodes: dict[int, Node] = {}
        self._noise: dict[int, dict[int, NDArray[np.float64]]] = {}  # draw -> node -> noise, until the draw counts
        self._alive: dict[int, int] = {}  # children left, for nodes that have lost some
        self._dead: set[int] = set()

    @property
    def finished(self) -> bool:
        """Whether no further draw is due."""
        enough = self._found_documents >= self.wanted or len(self.found) >= len(self.temperatures)
        return enough or 0 in self._dead

    def learn(self, node: int, logits: NDArray[np.float32]) -> None:
        """Take the LM's logits of the children of `node`, shape (children,)."""
        top = float(logits.max())
        log_total = top + float(np.log(np.exp(logits - top, dtype=np.float64).sum()))
        self._nodes[node] = Node(logits, logits.copy(), log_total)

    def advance(self) -> list[int]:
        """Draw as far as the known nodes allow. Returns the nodes to learn before the next call; none when finished."""
        needed: dict[int, None] = {}
        undo: list[int] = []
        ahead = 0  # documents that draws after the first blocked one will bring, at least
        for draw in range(len(self.found), len(self.temperatures)):
            if self.finished or self._found_documents + ahead >= self.wanted or 0 in self._dead:
                break
            leaf, path = self._walk(draw)
            if leaf is None:
                needed[path[-1]] = None
                ahead += 1
            elif needed:
                undo += self._remove(path)
                ahead += len(self.trie.documents_of(leaf))
            else:
                self._remove(path)
                self._noise.pop(draw, None)
                self.found.append(Drawn(leaf, draw, self._logprob(path)))
                self._found_documents += len(self.trie.documents_of(leaf))
        self._restore(undo)
        self.waves += bool(needed)
        return list(needed)

    def _walk(self, draw: int) -> tuple[int | None, list[int]]:
        """Leaf and path (root first) of a draw; (None, path to the unknown node) where it is blocked."""
        T, path = float(self.temperatures[draw]), [0]
        while True:
            node = path[-1]
            first, last = self.trie.children(node)
            if first == last:
                return node, path
            if last - first == 1:
                path.append(first)
                continue
            known = self._nodes.get(node)
            if known is None:
                return None, path
            if T == 0.0 or self._alive.get(node) == 1:
                path.append(first + int(known.surviving.argmax()))
                continue
            kept = self._noise.setdefault(draw, {})
            noise = kept.get(node)
            if noise is None:
                noise = kept[node] = gumbel(self.seed, draw, first, last)
            path.append(first + int((known.surviving / T + noise).argmax()))

    def _remove(self, path: list[int]) -> list[int]:
        """Remove the leaf at the end of `path` and every ancestor left without children; returns what died."""
        died = []
        for parent, child in zip(path[-2::-1], path[:0:-1], strict=True):
            self._dead.add(child)
            died.append(child)
            first, last = self.trie.children(parent)
            if last - first > 1:
                self._nodes[parent].surviving[child - first] = -np.inf
                left = self._alive[parent] = self._alive.get(parent, last - first) - 1
                if left:
                    return died
        self._dead.add(0)
        died.append(0)
        return died

    def _restore(self, died: list[int]) -> None:
        for child in reversed(died):
            self._dead.discard(child)
            if child == 0:
                continue
            parent = self.trie.parent(child)
            first, last = self.trie.children(parent)
            if last - first > 1:
                node = self._nodes[parent]
                node.surviving[child - first] = node.logits[child - first]
                self._alive[parent] += 1

    def _logprob(self, path: list[int]) -> float:
        total = 0.0
        for parent, child in pairwise(path):
            first, last = self.trie.children(parent)
            if last - first > 1:
                node = self._nodes[parent]
                total += float(node.logits[child - first]) - node.log_total
        return total
