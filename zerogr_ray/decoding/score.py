"""What the LM thinks of whole docids: log-probability of all their tokens, and the rerank head's score.

A docid is drawn by its distinguishing prefix; the tokens after it, which carry most of the evidence, continue the
same prompt. So scoring everything that was drawn is one more wave over the cache that the search leaves behind.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np

from zerogr_ray.decoding.cells import Cell, Key
from zerogr_ray.decoding.tree import SearchTree


@dataclass(frozen=True, slots=True)
class Score:
    """One docid's score.

    logprob:     log-probability of all its tokens and the end of the answer, over the whole vocabulary
    calibrated:  the same less prior_weight times its prior
    rerank:      logit of the reserved token after the docid's end; None without a rerank head
    """

    logprob: float
    calibrated: float
    rerank: float | None


@dataclass(frozen=True, slots=True)
class _Step:
    """One token of a docid: read after `key`, at place `place` among what is read there."""

    key: Key
    place: int


class DocidScores:
    """Scores of the leaves of a search. `cells` is the wave to forward; `of` is for after it."""

    def __init__(self, tree: SearchTree, end: int, rerank_token: int | None = None) -> None:
        self.tree, self.end, self.rerank_token = tree, end, rerank_token
        self._steps: dict[int, list[_Step]] = {}
        self._last: dict[int, Key] = {}

    def cells(self, leaves: Sequence[int], tokens: Sequence[Sequence[int]]) -> list[Cell]:
        """Cells that must be learnt before `of`, parents first; tokens[i] is the whole docid of leaves[i]."""
        cells: dict[Key, Cell] = {}
        for leaf, docid in zip(leaves, tokens, strict=True):
            path = self.tree.path(leaf)
            cells.update((cell.key, cell) for cell in self.tree.cells(path[1:-1]) if cell.key not in cells)
            steps = [
                _Step(parent, int(np.searchsorted(self.tree.children(parent), child)))
                for parent, child in pairwise(path)
            ]
            # Behind the leaf: the rest of the docid and the end, which a docid that is another's prefix has already.
            behind = [*docid[len(path) - 1 :], self.end] if len(path) - 1 <= len(docid) else []
            key: Key = leaf
            parent: Key = path[-2]
            token = self.tree.token(leaf)
            for place, following in enumerate(behind):
                cells[key] = Cell(key, parent, token, np.array([following]))
                steps.append(_Step(key, 0))
                key, parent, token = (leaf, place), key, following
            if self.rerank_token is not None:
                cells[key] = Cell(key, parent, token, np.array([self.rerank_token]))
            self._steps[leaf], self._last[leaf] = steps, key
        return [cell for cell in cells.values() if cell.key not in self.tree.beyond]

    def of(self, leaf: int, tail_prior: float = 0.0) -> Score:
        """Score of a leaf; `tail_prior` is the prior of its docid's tokens after the distinguishing prefix."""
        logprob = calibrated = 0.0
        for step in self._steps[leaf]:
            branch = self.tree.known.get(step.key) if isinstance(step.key, int) else None
            if branch is not None:
                logprob += float(branch.logits[step.place]) - branch.log_total
                calibrated += float(branch.weights[step.place]) - branch.log_total
            else:
                answer = self.tree.beyond[step.key]
                logprob += float(answer.logits[step.place]) - answer.log_total
                calibrated += float(answer.logits[step.place]) - answer.log_total
        calibrated -= self.tree.prior_weight * tail_prior
        rerank = None if self.rerank_token is None else float(self.tree.beyond[self._last[leaf]].logits[0])
        return Score(logprob, calibrated, rerank)
