"""The loss that teaches the LM to plan ahead: what it would write next shall point at what the right document is about.

    g     = ln(1 + max(0, z − z̄ − FLOOR)) / |…|         z: next-token log-probabilities behind the prompt
    s(d)  = SCALE · sum over the tokens v of d of weight_d[v] · g[v]
    L     = − ln softmax(s)[right document]              over CANDIDATES documents of the corpus, or all of it

z̄ is the mean of z over the examples of a pack, what the LM says whatever the query; a search takes the mean over
calibration texts in its place (see decoding/plan.py). The logits are those with which the first token of the docid is
learned, so the loss costs no forward.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from zerogr_ray.corpus.bags import FLOOR, STEPS, Bags, Ints

if TYPE_CHECKING:
    import torch

SCALE = 25.0
"""Logits per unit of cosine."""

CANDIDATES = 16_384
"""Documents that the right one competes with; of a larger corpus, drawn anew for every step."""


class Planner:
    """The documents of a corpus as what a step compares its queries with."""

    def __init__(self, bags: Bags, vocab: int, seed: int) -> None:
        self.bags, self.vocab, self.seed = bags, vocab, seed
        self._step = -1

    def begin(self, step: int, right: Sequence[int]) -> None:
        """Choose the candidates of a step; `right` are the documents of this worker's examples."""
        rows = np.arange(len(self.bags))
        if len(rows) > CANDIDATES:
            drawn = np.random.default_rng([self.seed, step]).integers(len(rows), size=CANDIDATES)
            rows = np.unique(np.concatenate([drawn, np.asarray(right, dtype=np.int64)]))
        elif self._step >= 0:
            return  # the whole corpus, as before
        self._step, self.rows = step, rows
        self._matrix = self._sparse(self.bags.take(rows))

    def loss(self, logits_EV: torch.Tensor, documents_E: Ints) -> torch.Tensor:
        """Sum of L over the examples of a pack, given the logits behind their prompts."""
        import torch

        z = logits_EV[:, : self.vocab].log_softmax(-1)
        gain = torch.log1p(torch.relu(z - z.mean(0).detach() - FLOOR))
        gain = gain / gain.norm(dim=-1, keepdim=True).clamp_min(1e-6)
        scores = SCALE * torch.sparse.mm(self._matrix.to(z.device), gain.T).T
        right = torch.from_numpy(np.searchsorted(self.rows, documents_E)).to(z.device)
        return torch.nn.functional.cross_entropy(scores, right, reduction="sum")

    def _sparse(self, bags: Bags) -> torch.Tensor:
        """(documents, vocabulary), a weight of STEPS being 1."""
        import torch

        rows = np.repeat(np.arange(len(bags)), np.diff(bags.first))
        where = torch.from_numpy(np.stack([rows, bags.tokens.astype(np.int64)]))
        weights = torch.from_numpy(bags.weights.astype(np.float32) / STEPS)
        return torch.sparse_coo_tensor(where, weights, (len(bags), self.vocab), check_invariants=True).coalesce()
