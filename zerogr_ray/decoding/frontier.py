"""Modes that follow the most probable paths instead of drawing: beam, top_k, best_first, exhaustive."""

from __future__ import annotations

import heapq
from collections.abc import Callable

import numpy as np

from zerogr_ray.decoding.search import Harvest
from zerogr_ray.decoding.tree import Branch, Floats

WIDTH = 32
"""Nodes that best-first search asks for in one wave, at most."""


def over_trie(branch: Branch) -> Floats:
    """Score of each child, (C,): what the mode decides by, less log sum exp over the children of the logits."""
    return branch.weights - np.float32(branch.log_rest)


def over_vocabulary(branch: Branch) -> Floats:
    """Score of each child, (C,), where the whole vocabulary competes: how likely the branch was at all."""
    return branch.weights - np.float32(branch.log_total)


class Beam:
    """The `width` most probable prefixes of each length; finished docids keep their place among them."""

    def __init__(self, harvest: Harvest, width: int) -> None:
        self.harvest, self.tree, self.width = harvest, harvest.tree, width
        self.waves = 0
        self._beam: list[tuple[float, int]] = [(0.0, 0)]  # (score, node), best first

    def advance(self) -> list[int]:
        """Grow the beam as far as the known nodes allow. Returns the nodes to learn; none when finished."""
        tree = self.tree
        while any(len(tree.children(node)) for _, node in self._beam):
            branching = [node for _, node in self._beam if len(tree.children(node)) > 1]
            if needed := [node for node in branching if node not in tree.known]:
                self.waves += 1
                return needed
            grown: list[tuple[float, int]] = []
            for score, node in self._beam:
                children = tree.children(node)
                if len(children) < 2:
                    grown.append((score, int(children[0]) if len(children) else node))
                    continue
                scores = over_trie(tree.known[node])
                best = np.argsort(-scores, kind="stable")[: self.width]
                grown += [(score + float(scores[i]), int(children[i])) for i in best]
            self._beam = sorted(grown, key=lambda entry: -entry[0])[: self.width]
        for _, leaf in self._beam:
            if self.harvest.enough:
                break
            self.harvest.add(tree.path(leaf), len(self.harvest.found))
        self._beam = []
        return []


class BestFirst:
    """Expands the node with the best score so far; a leaf is found when nothing scores better.

    With `over_trie` scores no child scores above its parent: the docids found are exactly the most probable ones, best
    first (mode `top_k`). With `over_vocabulary` scores, calibrated or with promises, that is a heuristic (mode
    `best_first`).
    """

    def __init__(self, harvest: Harvest, score: Callable[[Branch], Floats]) -> None:
        self.harvest, self.tree, self.score = harvest, harvest.tree, score
        self.waves = 0
        self._queue: list[tuple[float, int]] = [(0.0, 0)]  # (−score, node)

    def advance(self) -> list[int]:
        """Expand as far as the known nodes allow. Returns the nodes to learn before the next call; none when finished.

        Nodes that come after the first unknown one are looked at as well: they will be asked for in the same wave.
        """
        harvest, needed = self.harvest, list[int]()
        later: list[tuple[float, int]] = []
        ahead = 0  # documents of leaves that wait behind an unknown node
        while self._queue and not harvest.enough and harvest.documents + ahead < harvest.wanted:
            entry = heapq.heappop(self._queue)
            cost, node = entry
            children = self.tree.children(node)
            if len(children) == 1:
                heapq.heappush(self._queue, (cost, int(children[0])))
            elif node in self.tree.known:
                branch = self.tree.known[node]
                costs = cost - self.score(branch).astype(np.float64)
                for child in zip(costs.tolist(), branch.children.tolist(), strict=True):
                    heapq.heappush(self._queue, child)
            elif len(children):
                needed.append(node)
                later.append(entry)
                if len(needed) == WIDTH:
                    break
            elif needed:
                later.append(entry)
                ahead += harvest.size(node)
            else:
                harvest.add(self.tree.path(node), len(harvest.found))
        for entry in later:
            heapq.heappush(self._queue, entry)
        self.waves += bool(needed)
        return needed


class Exhaustive:
    """Every docid there is; ordering them by their scores is the caller's. For small indexes: the others' yardstick."""

    def __init__(self, harvest: Harvest) -> None:
        self.harvest, self.tree = harvest, harvest.tree
        self.waves = 0

    def advance(self) -> list[int]:
        """All branching nodes at once, then all leaves."""
        branching, leaves, todo = list[int](), list[int](), [0]
        while todo:  # depth first, so that neighbours share what is cached
            node = todo.pop()
            children = self.tree.children(node)
            (branching if len(children) > 1 else leaves if not len(children) else []).append(node)
            todo += reversed(children.tolist())
        if needed := [node for node in branching if node not in self.tree.known]:
            self.waves += 1
            return needed
        for leaf in leaves:
            self.harvest.add(self.tree.path(leaf), len(self.harvest.found))
        return []
