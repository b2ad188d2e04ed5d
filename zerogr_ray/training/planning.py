"""The loss that teaches the LM to plan ahead: what it would write next shall point at what the right document is about.

    g     = ln(1 + max(0, z − z̄ − FLOOR)) / |…|         z: next-token log-probabilities behind the prompt
    s(d)  = SCALE · sum over the words w of d of weight_d[w] · g[begins[w]]
    L     = − ln softmax(s)[right document]              over CANDIDATES documents of the corpus, or all of it

z̄ is the mean of z over the examples of a pack, what the LM says whatever the query; a search takes the mean over
calibration texts in its place (see decoding/plan.py). The logits are those with which the first token of the docid is
learned, so the loss costs no forward.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from zerogr_ray.corpus.bags import FLOOR, STEPS, UNKNOWN, Bags, Ints

if TYPE_CHECKING:
    import torch

SCALE = 25.0
"""Logits per unit of score: a document of mean length that is just what the LM expects has 1."""

CANDIDATES = 16_384
"""Documents that the right one competes with; of a larger corpus, drawn anew for every step."""


class Planner:
    """The documents of a corpus as what a step compares its queries with."""

    def __init__(self, bags: Bags, vocab: int, seed: int, device: torch.device | str = "cpu") -> None:
        self.bags, self.vocab, self.seed, self.device = bags, vocab, seed, device
        self._sampled = len(bags) > CANDIDATES
        if not self._sampled:
            self._compare(np.arange(len(bags)))

    def begin(self, step: int, right: Sequence[int] | Ints) -> None:
        """Choose the candidates of a step; `right` are the documents of this worker's examples, always among them."""
        if self._sampled:
            drawn = np.random.default_rng([self.seed, step]).integers(len(self.bags), size=CANDIDATES)
            self._compare(np.unique(np.concatenate([drawn, np.asarray(right, dtype=np.int64)])))

    def loss(self, logits_EV: torch.Tensor, documents_E: Ints) -> torch.Tensor:
        """Sum of L over the examples of a pack, given the logits behind their prompts."""
        import torch

        # In float32 whatever the model computes in: a sparse product of two precisions has no gradient.
        with torch.autocast(logits_EV.device.type, enabled=False):
            z = logits_EV[:, : self.vocab].float().log_softmax(-1)
            gain = torch.log1p(torch.relu(z - z.mean(0).detach() - FLOOR))
            gain = gain / gain.norm(dim=-1, keepdim=True).clamp_min(1e-6)
            scores = SCALE * torch.sparse.mm(self._matrix, gain.T).T
        right = torch.from_numpy(np.searchsorted(self.rows, documents_E)).to(z.device)
        return torch.nn.functional.cross_entropy(scores, right, reduction="sum")

    def _compare(self, rows: Ints) -> None:
        """Make these documents the candidates: a sparse matrix (documents, vocabulary) of the words' first tokens."""
        import torch

        bags, self.rows = self.bags.take(rows), rows
        owners = np.repeat(np.arange(len(bags)), np.diff(bags.first))
        tokens = bags.begins[bags.words]
        known = tokens != UNKNOWN
        where = torch.from_numpy(np.stack([owners[known], tokens[known].astype(np.int64)]))
        weights = torch.from_numpy(bags.weights[known].astype(np.float32) / STEPS)
        matrix = torch.sparse_coo_tensor(where, weights, (len(bags), self.vocab), check_invariants=True)
        self._matrix = matrix.coalesce().to(self.device)
