"""What the parts of a plan count is learned from pseudo-queries, and stays as it is where they say nothing."""

from __future__ import annotations

import numpy as np
import pyarrow as pa
import pytest

from zerogr_ray.config import DecodeConfig
from zerogr_ray.corpus.bags import BAG, BUCKETS, STEPS, Bags, make_bags, query_bag
from zerogr_ray.decoding.plan import bag_scores, term_gain
from zerogr_ray.decoding.weights import ASKED, LITERAL, PARTS, fit_weights, plan_scores
from zerogr_ray.index.postings import Postings

USUAL = DecodeConfig()


def asked(weights, scale, queries=4000, documents=12):
    """Scores of each part, and for each query a document drawn as the model in weights.py says it is."""
    rng = np.random.default_rng(3)
    scores = rng.random((queries, documents, len(PARTS))).astype(np.float32)
    total = scale * scores @ np.array(weights) + rng.gumbel(size=scores.shape[:2])
    return scores, total.argmax(1).tolist()


def test_the_weights_under_which_documents_were_asked_for_are_found_again():
    for weights in ([1.0, 2.0, 0.5], [0.2, 1.0, 3.0]):
        learned = fit_weights(*asked(weights, 4.0))
        # own_terms stays, so the others are seen beside it; a query's own words count LITERAL times too much.
        expected = LITERAL * USUAL.own_terms / weights[1]
        assert learned["lm_terms"] == pytest.approx(expected * weights[0], rel=0.15)
        assert learned["gist"] == pytest.approx(expected * weights[2], rel=0.15)
        assert learned["asked"] == pytest.approx(ASKED * learned["gist"], abs=1e-3)
        DecodeConfig(**learned)


def test_queries_that_say_nothing_leave_the_weights_as_they_are():
    scores = np.zeros((20, 5, len(PARTS)), dtype=np.float32)
    learned = fit_weights(scores, [0] * 20)
    assert learned["lm_terms"] == pytest.approx(USUAL.lm_terms)
    assert learned["gist"] == pytest.approx(USUAL.gist)


def test_few_queries_move_the_weights_less_than_many():
    few, many = (fit_weights(*asked([0.1, 1.0, 3.0], 4.0, queries)) for queries in (20, 2000))
    assert USUAL.gist < few["gist"] < many["gist"]
    assert fit_weights(*asked([0.1, 1.0, 3.0], 4.0, 20)) == few


def test_the_scores_of_the_parts_add_up_to_that_of_the_plan():
    rng = np.random.default_rng(0)
    vocab = 50
    begins = np.full(BUCKETS, np.uint32(0xFFFFFFFF))
    texts = ["red fox jumps", "blue web browser", "read json files", "red hat and fox"]
    table = make_bags(texts)
    words = np.unique(np.concatenate([row["words"] for row in table.to_pylist()]))
    begins[words] = rng.integers(0, vocab, len(words))
    held = np.arange(BUCKETS, BUCKETS + vocab)
    gists = pa.table([[held] * 4, [rng.integers(1, STEPS, vocab) for _ in texts]], schema=BAG)
    prior = np.full(vocab, -np.log(vocab), dtype=np.float32)
    postings = Postings.of_bags(Bags.of([table], begins).with_gists([gists], prior))
    queries, weights = ["the red fox", "files"], (0.7, 0.4, 0.3)
    logprobs = np.log(rng.dirichlet(np.full(vocab, 0.1), len(queries)) + 1e-9).astype(np.float32)
    parts = plan_scores(logprobs, queries, postings)
    assert parts.shape == (2, 4, 3)
    assert (parts > 0).any(axis=(0, 1)).all(), "every part says something"
    for query, z, found in zip(queries, logprobs, parts, strict=True):
        lm, own, gist = weights
        gain = term_gain(z, prior, postings.begins, query_bag(query), own, gist, lm_weight=lm)
        np.testing.assert_allclose(found @ np.array(weights), bag_scores(postings, gain, np.arange(4)), atol=1e-5)
