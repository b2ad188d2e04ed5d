"""Draws at rising temperature: which docids they give, and which nodes' logits they still need to know.

A search runs all draws ahead as far as the known nodes let it: a draw that meets an unknown node asks for it and the
next draw goes on. Everything asked for is computed in one wave; then the draws are replayed from the first that was
blocked. A draw counts once no draw before it is blocked, and since its noise is keyed (see noise.py), it is then bit
for bit what drawing one after the other gives.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from zerogr_ray.decoding.noise import gumbel
from zerogr_ray.decoding.tree import SearchTree

Path = list[tuple[int, int]]
"""Root to leaf: (node, place of the next node among the node's children); the leaf's place is -1."""

Bears = list[tuple[int, float]]
"""(node, a weight below it as it is now): what the removal of a leaf has changed."""


@dataclass(frozen=True, slots=True)
class Drawn:
    """A leaf that was found, its number in the order of finding, and its log-probability (see SearchTree.logprob)."""

    leaf: int
    draw: int
    logprob: float


class Harvest:
    """Leaves found so far; counts distinct documents where a document may have several docids."""

    def __init__(self, tree: SearchTree, wanted: int, owner_of: Callable[[int], int] | None = None) -> None:
        self.tree, self.wanted = tree, wanted
        self.found: list[Drawn] = []
        self.documents = 0
        self._owner_of = owner_of
        self._seen: set[int] = set()

    @property
    def enough(self) -> bool:
        """Whether the wanted number of documents is there."""
        return self.documents >= self.wanted

    def size(self, leaf: int) -> int:
        """Documents of a leaf."""
        rows = self.tree.rows(leaf)
        return len(rows) if self._owner_of is None else len(set(map(self._owner_of, rows)) - self._seen)

    def add(self, path: list[int], draw: int) -> None:
        """A draw has ended at the leaf path[-1]."""
        rows = self.tree.rows(path[-1])
        if self._owner_of is None:
            self.documents += len(rows)
        else:
            self._seen.update(map(self._owner_of, rows))
            self.documents = len(self._seen)
        self.found.append(Drawn(path[-1], draw, self.tree.logprob(path)))


class Search:
    """Draws without repetition.

    Modes `reference` and `sampling`: removal renormalises at each node over the children that survive (the published
    algorithm). Mode `exact`: each draw is from the tempered distribution over all docids, given that it is none of
    those drawn before: what was removed below a child is subtracted from the child's probability.

    What a plan promises below a node is, for each draw, the best of what the draws before it have left there (in mode
    `exact`, whose distribution is fixed from the beginning, the best of all).
    """

    def __init__(self, harvest: Harvest, temperatures: NDArray[np.float64], seed: int, exact: bool = False) -> None:
        """Draw until the harvest is enough, K = len(temperatures) draws are made, or nothing is left."""
        self.harvest, self.tree = harvest, harvest.tree
        self.temperatures, self.seed, self.exact = temperatures, seed, exact
        self.waves = 0
        self._noise: dict[int, dict[int, NDArray[np.float64]]] = {}  # draw -> node -> noise, until the draw counts
        self._surviving: dict[int, NDArray[np.float32]] = {}  # weights, -inf where a child is gone
        self._left: dict[int, int] = {}  # children left, for nodes that have lost some
        self._touched: dict[int, dict[int, int]] = {}  # node -> place of a child -> leaves removed below it
        self._gone: set[int] = set()
        self._promised: dict[int, float] = {}  # of nodes below which something was removed
        self._walked: dict[int, tuple[Path, Bears]] = {}  # draw -> its last path and what its removal bore on

    @property
    def finished(self) -> bool:
        """Whether no further draw is due."""
        return self.harvest.enough or len(self.harvest.found) >= len(self.temperatures) or 0 in self._gone

    def advance(self) -> list[int]:
        """Draw as far as the known nodes allow. Returns the nodes to learn before the next call; none when finished."""
        needed: dict[int, None] = {}
        undo: list[Path] = []
        changed: set[int] = set()  # nodes whose choice is not what it was when these draws were last replayed
        ahead = 0  # documents that draws after the first blocked one will bring, at least
        harvest = self.harvest
        for draw in range(len(harvest.found), len(self.temperatures)):
            if self.finished or harvest.documents + ahead >= harvest.wanted:
                # What is replayed later will have been through other states than this.
                self._walked = {d: walked for d, walked in self._walked.items() if d < draw}
                break
            before = self._walked.get(draw)
            kept = before is not None and changed.isdisjoint(node for node, _ in before[0])
            path = self._walk(draw, before[0] if before and kept else [])
            leaf = path[-1][0]
            blocked = len(self.tree.children(leaf)) > 0
            bears = [] if blocked else self._remove(path)
            if before is None or before != (path, bears):
                changed.update(node for node, _ in [*bears, *(before[1] if before else [])])
                self._walked[draw] = path, bears
            if blocked:
                needed[leaf] = None
                ahead += 1
            elif needed:
                undo.append(path)
                ahead += harvest.size(leaf)
            else:
                self._noise.pop(draw, None)
                self._walked.pop(draw, None)
                harvest.add([node for node, _ in path], draw)
        for path in reversed(undo):
            self._restore(path)
        self.waves += bool(needed)
        return list(needed)

    def _walk(self, draw: int, begun: Path) -> Path:
        """The path of a draw, going on where `begun` ends: to a leaf, or to a branching node that is not known yet."""
        T, path, node = float(self.temperatures[draw]), begun[:-1], begun[-1][0] if begun else 0
        left: dict[int, float] = {}
        while True:
            children = self.tree.children(node)
            if len(children) < 2:
                place = len(children) - 1
            elif node not in self.tree.known:
                place = -1
            else:
                place = self._choose(node, draw, T, left)
            path.append((node, place))
            if place < 0:
                return path
            node = int(children[place])

    def _choose(self, node: int, draw: int, T: float, left: dict[int, float]) -> int:
        branch = self.tree.known[node]
        surviving = self._surviving.get(node, branch.weights)
        if T == 0.0 or self._left.get(node) == 1:
            return int(surviving.argmax())
        kept = self._noise.setdefault(draw, {})
        noise = kept.get(node)
        if noise is None:
            noise = kept[node] = gumbel(self.seed, draw, branch.children)
        tempered = surviving / T
        if self.exact and node in self._touched:
            tempered = tempered.astype(np.float64)
            for place in self._touched[node]:
                tempered[place] += self._log_left(int(branch.children[place]), T, left)
        return int((tempered + noise).argmax())

    def _log_left(self, node: int, T: float, memo: dict[int, float]) -> float:
        """Log of the share of a node's probability at temperature T that removals have left below it."""
        if node in self._gone:
            return -np.inf
        touched = self._touched.get(node)
        if not touched:
            return 0.0
        if node not in memo:
            children = self.tree.children(node)
            if len(children) == 1:
                memo[node] = self._log_left(int(children[0]), T, memo)
            else:
                whole = self.tree.known[node].weights.astype(np.float64) / T
                whole -= whole.max()
                left = whole.copy()
                for place in touched:
                    left[place] += self._log_left(int(children[place]), T, memo)
                memo[node] = float(np.log(np.exp(left).sum()) - np.log(np.exp(whole).sum()))
        return memo[node]

    def _remove(self, path: Path) -> Bears:
        """Remove the leaf at the end of `path` and every ancestor left without children.

        Returns the nodes at which this changes what a later draw may choose.
        """
        bears: Bears = []
        if self.exact:
            for node, place in path[:-1]:
                counts = self._touched.setdefault(node, {})
                counts[place] = counts.get(place, 0) + 1
        self._gone.add(path[-1][0])
        for node, place in path[-2::-1]:
            children = self.tree.children(node)
            if len(children) > 1:
                self._weights_left(node)[place] = -np.inf
                bears.append((node, -np.inf))
                self._left[node] = self._left.get(node, len(children)) - 1
                if self._left[node]:
                    break
            self._gone.add(node)
        return [(node, 0.0) for node, _ in path] if self.exact else bears + self._promise_again(path)

    def _restore(self, path: Path) -> None:
        """Undo the last removal, that of `path`."""
        if self.exact:
            for node, place in path[:-1]:
                counts = self._touched[node]
                counts[place] -= 1
                if not counts[place]:
                    del counts[place]
        self._gone.discard(path[-1][0])
        for node, place in path[-2::-1]:
            children = self.tree.children(node)
            if len(children) > 1:
                self._surviving[node][place] = self.tree.known[node].weights[place]
                self._left[node] += 1
                if self._left[node] > 1:
                    break
            self._gone.discard(node)
        if not self.exact:
            self._promise_again(path)

    def _promise_again(self, path: Path) -> Bears:
        """Promise below each node of `path` the best of what is left there; returns where that changes a choice."""
        promises, bears = self.tree.promises, Bears()
        if promises is None:
            return bears
        for (node, place), (child, _) in zip(path[-2::-1], path[:0:-1], strict=True):
            children = self.tree.children(node).tolist()
            if len(children) > 1 and child not in self._gone:
                less = np.float32(self._promised.get(child, promises[child]) - promises[child])
                weights, value = self._weights_left(node), self.tree.known[node].weights[place] + less
                if weights[place] != value:
                    weights[place] = value
                    bears.append((node, float(value)))
            left = [self._promised.get(c, promises[c]) for c in children if c not in self._gone]
            if left:
                self._promised[node] = max(left)
        return bears

    def _weights_left(self, node: int) -> NDArray[np.float32]:
        """Weights of the children of a known node, to write to; -inf where a child is gone."""
        weights = self._surviving.get(node)
        if weights is None:
            weights = self._surviving[node] = self.tree.known[node].weights.copy()
        return weights
