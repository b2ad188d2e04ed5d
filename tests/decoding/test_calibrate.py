"""Priors are the mean log-probabilities that a plain forward gives, on the edges and behind the leaves of the trie."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from tests.decoding.test_forward import tiny
from zerogr_ray.config import CacheConfig
from zerogr_ray.decoding.calibrate import docid_logprobs, edge_priors
from zerogr_ray.decoding.forward import TreeForward
from zerogr_ray.index.trie import Trie

pytestmark = pytest.mark.model

END = 2
PROMPTS = [[5, 6, 7, 8, 9], [5, 6, 30, 31], [5, 6, 40]]
DOCIDS = [[10, 11, 12], [10, 11], [10, 13, 14, 15], [20], [20], [10, 11, 12, 16, 17]]


def plain(model, prompt, docid):
    """Log-probability of each token of `docid` and of the end behind `prompt`."""
    tokens = [*docid, END]
    with torch.inference_mode():
        logits = model(input_ids=torch.tensor([[*prompt, *tokens]])).logits[0].float()
    return logits.log_softmax(-1)[len(prompt) - 1 :][range(len(tokens)), tokens].numpy()


@pytest.mark.parametrize("room", [1024, 6])
def test_docids_forwarded_as_one_tree_have_the_probabilities_of_each_alone(room, monkeypatch):
    monkeypatch.setattr("zerogr_ray.decoding.calibrate.AT_ONCE", room)
    model = tiny("Llama")
    found, first = docid_logprobs(TreeForward(model, CacheConfig()), PROMPTS, [[*d, END] for d in sorted(DOCIDS)], 2)
    for docid, logprobs in zip(sorted(DOCIDS), found, strict=True):
        expected = [plain(model, prompt, docid) for prompt in PROMPTS]
        np.testing.assert_allclose(logprobs, expected, atol=1e-4)
    np.testing.assert_allclose(np.exp(first).sum(-1), 1.0, atol=1e-4)
    assert first[1, 20] == pytest.approx(plain(model, PROMPTS[1], [20])[0], abs=1e-4)


def test_every_edge_gets_the_prior_of_its_token_and_tails_the_rest():
    trie, order = Trie.build(DOCIDS, END)
    rng = np.random.default_rng(0)
    of_prefix = {}  # any number, as long as a prefix has one

    def prior(tokens):
        return of_prefix.setdefault(tuple(tokens), rng.uniform(-9, -1))

    whole = [[*DOCIDS[row], END] for row in order]
    priors = [np.array([prior(docid[: n + 1]) for n in range(len(docid))], dtype=np.float32) for docid in whole]
    arrays = edge_priors(trie, np.concatenate(priors), np.array([len(some) for some in priors]))
    for node in range(1, trie.nodes):
        assert arrays["priors"][node] == np.float16(np.float32(prior(trie.path(node)))), trie.path(node)
    for leaf in range(1, trie.nodes):
        if trie.children(leaf)[0] == trie.children(leaf)[1]:
            for row in trie.documents_of(leaf):
                tail = priors[row][len(trie.path(leaf)) :].sum()
                assert arrays["tail_priors"][row] == pytest.approx(tail, rel=2e-3)
