"""What one search knows: the LM's answers at the nodes it has visited. All modes share it.

The LM's logits at a node depend on (prompt, path) alone, so whatever the mode, each visited node is asked for once.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
from numpy.typing import NDArray

from zerogr_ray.decoding.cells import ROOT, Answer, Cell, Key
from zerogr_ray.index.view import View

Ints = NDArray[np.int64]
Floats = NDArray[np.float32]


@dataclass(frozen=True, slots=True)
class Branch:
    """A visited node that is not a leaf, with its C living children in ascending order.

    logits:     (C,) as the LM gave them
    weights:    (C,) what every mode decides by: logits less the weighted priors of the edges, plus what a plan promises
                below each child beyond what it promises below this node
    log_rest:   log sum exp of `logits`: over the children
    log_total:  the same over the whole vocabulary
    """

    children: Ints
    logits: Floats
    weights: Floats
    log_rest: float
    log_total: float


class SearchTree:
    """The visited part of a trie, for one prompt."""

    def __init__(self, view: View, prior_weight: float = 0.0, promises: Mapping[int, float] | None = None) -> None:
        """Decide by logit − prior_weight · prior (λ in the README; 0 is the published algorithm).

        `promises` says of every node in the view the most that is promised of a leaf below it, in nats. Along a path
        the differences add up to the promise of its leaf.
        """
        self.view, self.prior_weight, self.promises = view, prior_weight, promises
        self.known: dict[int, Branch] = {}
        self.beyond: dict[Key, Answer] = {}  # after leaves and the cells behind them
        self._children: dict[int, Ints] = {}
        self._rows: dict[int, list[int]] = {}

    def children(self, node: int) -> Ints:
        """Living children of `node`, ascending; none for a leaf."""
        found = self._children.get(node)
        if found is None:
            found = self._children[node] = self.view.children(node)
        return found

    def rows(self, leaf: int) -> list[int]:
        """Living rows of a leaf, ascending."""
        found = self._rows.get(leaf)
        if found is None:
            found = self._rows[leaf] = self.view.rows(leaf).tolist()
        return found

    def cells(self, nodes: Iterable[int]) -> list[Cell]:
        """Cells of `nodes` and of those of their ancestors that are not known yet, ancestors first."""
        cells: dict[Key, Cell] = {}
        for node in nodes:
            chain = []
            while node != ROOT and node not in self.known and node not in cells:
                parent = self.view.parent(node)
                chain.append(Cell(node, parent, self.token(node), self.view.tokens(self.children(node))))
                node = parent
            cells.update((cell.key, cell) for cell in reversed(chain))
        return list(cells.values())

    def token(self, node: int) -> int:
        """Token on the edge into `node`."""
        return int(self.view.tokens(np.array([node]))[0])

    def path(self, node: int) -> list[int]:
        """Nodes from the root to `node`, both included."""
        path = [node]
        while path[-1] != ROOT:
            path.append(self.view.parent(path[-1]))
        return path[::-1]

    def learn(self, key: Key, answer: Answer) -> None:
        """Take the LM's answer at a cell that `cells` asked for, or behind a leaf."""
        if isinstance(key, tuple) or not len(self.children(key)):
            self.beyond[key] = answer
            return
        children, logits = self.children(key), answer.logits
        weights = logits
        if self.prior_weight:
            weights = weights - np.float32(self.prior_weight) * self.view.priors(children)
        if self.promises is not None:
            below = np.array([self.promises[child] for child in children.tolist()], dtype=np.float32)
            weights = weights + (below - np.float32(self.promises[key]))
        top = float(logits.max())
        log_rest = top + float(np.log(np.exp(logits - top, dtype=np.float64).sum()))
        self.known[key] = Branch(children, logits, weights, log_rest, answer.log_total)

    def logprob(self, path: list[int]) -> float:
        """Log-probability of the nodes `path`, root first, among the living children at temperature 1: the model's own,
        without priors. A node with one child has been no choice."""
        total = 0.0
        for parent, child in pairwise(path):
            children = self.children(parent)
            if len(children) > 1:
                branch = self.known[parent]
                total += float(branch.logits[np.searchsorted(children, child)]) - branch.log_rest
        return min(total, 0.0)
