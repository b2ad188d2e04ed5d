"""The plan loss against its formula in numpy, and what a step compares its queries with."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

from tests.tiny import tiny_model
from zerogr_ray.config import TrainingConfig
from zerogr_ray.corpus.bags import STEPS, UNKNOWN, Bags
from zerogr_ray.training import planning
from zerogr_ray.training.batches import pack
from zerogr_ray.training.examples import Example
from zerogr_ray.training.loop import forward_backward, mean_loss
from zerogr_ray.training.losses import pack_losses
from zerogr_ray.training.planning import SCALE, Planner

pytestmark = pytest.mark.model

VOCAB = 11
WORDS = 20
BEGINS = np.random.default_rng(1).integers(0, VOCAB, WORDS).astype(np.uint32)
BEGINS[9] = UNKNOWN
BAGS = Bags(np.array([0, 2, 2, 5, 6]), np.array([1, 14, 0, 9, 19, 7]), np.array([200, 158, 90, 90, 221, 255]), BEGINS)
EXAMPLES = [Example([1, 2, 3], [5, 0], "a", document=0), Example([1, 2, 8, 4], [6, 7, 0], "b", document=2)]


def by_hand(logits, documents, bags=BAGS):
    """The sum of L, with dense matrices."""
    z = logits - np.log(np.exp(logits).sum(1, keepdims=True))
    g = np.log1p(np.maximum(0, z - z.mean(0) - 1))
    g /= np.maximum(1e-6, np.linalg.norm(g, axis=1, keepdims=True))
    W = np.zeros((len(bags), VOCAB))
    for row in range(len(bags)):
        for place in range(bags.first[row], bags.first[row + 1]):
            if (token := bags.begins[bags.words[place]]) != UNKNOWN:
                W[row, token] += bags.weights[place] / STEPS
    s = SCALE * g @ W.T
    return float(sum(np.log(np.exp(row).sum()) - row[right] for row, right in zip(s, documents, strict=True)))


def test_the_loss_is_that_of_the_formula():
    logits = np.random.default_rng(0).normal(0, 3, (3, VOCAB)).astype(np.float32)
    planner = Planner(BAGS, VOCAB, 0)
    planner.begin(1, [0, 2, 3])
    loss = planner.loss(torch.from_numpy(logits), np.array([0, 2, 3]))
    assert float(loss) == pytest.approx(by_hand(logits, [0, 2, 3]), rel=1e-4)


def test_a_model_that_computes_in_bfloat16_learns_from_it_too():
    logits = torch.randn((3, VOCAB), generator=torch.Generator().manual_seed(0)).requires_grad_()
    planner, rows = Planner(BAGS, VOCAB, 0), np.array([0, 2, 3])
    planner.begin(1, rows)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        loss = planner.loss(logits.bfloat16(), rows)
    loss.backward()
    assert float(loss) == pytest.approx(by_hand(logits.detach().bfloat16().float().numpy(), rows), rel=1e-4)
    assert float(logits.grad.abs().sum()) > 0


def test_the_logits_are_those_behind_the_prompts():
    """Each prompt alone, without a pack, gives the same loss."""
    model, planner = tiny_model(VOCAB).eval(), Planner(BAGS, VOCAB, 0)
    planner.begin(1, [0, 2])
    [one] = pack(EXAMPLES, 64)
    with torch.inference_mode():
        found = pack_losses(model, one, planner=planner)
        order = [next(e for e in EXAMPLES if e.query == query) for query in one.queries]
        alone = [model(input_ids=torch.tensor([e.prompt])).logits[0, -1].numpy() for e in order]
    assert float(found.planning) == pytest.approx(by_hand(np.stack(alone), [e.document for e in order]), rel=1e-3)
    assert pack_losses(model, one).planning is None


def test_its_weight_scales_its_gradient(monkeypatch):
    monkeypatch.setattr(planning, "FLOOR", -2.0)  # an untrained model expects nothing in particular
    gradients = []
    for weight in (0.0, 1.0, 3.0):
        model, planner = tiny_model(VOCAB), Planner(BAGS, VOCAB, 0)
        planner.begin(1, [0, 2])
        cfg = TrainingConfig(plan_weight=weight)
        made = forward_backward(model, pack(EXAMPLES, 64), torch.enable_grad, 1, 1, cfg, planner=planner)
        gradients.append(torch.cat([p.grad.flatten() for p in model.parameters() if p.grad is not None]))
    assert made.planning > 0
    torch.testing.assert_close(gradients[2] - gradients[0], 3 * (gradients[1] - gradients[0]), rtol=1e-2, atol=1e-5)
    assert (gradients[1] - gradients[0]).abs().max() > 1e-4


def test_a_large_corpus_is_compared_by_sample_and_the_right_document_is_always_in_it(monkeypatch):
    monkeypatch.setattr(planning, "CANDIDATES", 8)
    many = Bags(np.arange(101), np.arange(100) % WORDS, np.full(100, 255), BEGINS)
    planner, seen = Planner(many, VOCAB, 3), []
    for step in range(1, 6):
        planner.begin(step, [99, 50])
        assert {50, 99} <= set(planner.rows.tolist())
        assert len(planner.rows) <= 10
        seen.append(tuple(planner.rows))
        assert torch.isfinite(planner.loss(torch.randn(2, VOCAB), np.array([99, 50])))
    assert len(set(seen)) == 5
    again = Planner(many, VOCAB, 3)
    again.begin(5, [99, 50])
    assert tuple(again.rows) == seen[-1], "a resumed training meets the same documents"


def test_held_out_documents_are_measured_against_the_same_sample_whatever_the_step(monkeypatch):
    monkeypatch.setattr(planning, "CANDIDATES", 8)
    many = Bags(np.arange(101), np.arange(100) % WORDS, np.full(100, 255), BEGINS)
    model, planner = tiny_model(VOCAB).eval(), Planner(many, VOCAB, 3)
    held = pack([replace(EXAMPLES[0], document=97), replace(EXAMPLES[1], document=98)], 64)
    losses, cfg = [], TrainingConfig()
    for step in (1, 2):
        planner.begin(step, [0, 1])
        assert not {97, 98} <= set(planner.rows.tolist()), "a step knows only its own documents"
        losses.append(mean_loss(model, held, torch.enable_grad, 1, step, cfg, planner))
        assert {97, 98} <= set(planner.rows.tolist())
    assert losses[0] == losses[1]


def test_a_wider_head_than_the_vocabulary_is_cut():
    planner = Planner(replace(BAGS), VOCAB, 0)
    planner.begin(1, [0])
    wide = torch.randn(2, VOCAB + 5)
    assert float(planner.loss(wide, np.array([0, 3]))) == pytest.approx(
        by_hand(wide[:, :VOCAB].numpy(), [0, 3]), rel=1e-4
    )
