"""Bags of weighted tokens against BM25 by hand."""

from __future__ import annotations

import math

import numpy as np
import pytest

from tests.tiny import tiny_tokenizer
from zerogr_ray.chat import PromptFormat
from zerogr_ray.corpus import bags as module
from zerogr_ray.corpus.bags import STEPS, count_tokens, make_bags, query_bag

pytestmark = pytest.mark.model

TEXTS = ["The red fox, the fox!", "open the web browser", "red hat", "and the of"]


@pytest.fixture(scope="module")
def fmt():
    return PromptFormat(tiny_tokenizer())


def token(fmt, term):
    [tokens] = fmt.tokens([f" {term}"])
    assert len(tokens) == 1, "the tiny vocabulary has this word"
    return tokens[0]


def test_stop_words_do_not_count_and_terms_count_as_often_as_they_come(fmt):
    found = count_tokens(fmt, TEXTS)
    assert found[0] == {token(fmt, "red"): 1, token(fmt, "fox"): 2}
    assert not found[3]


def test_weights_are_those_of_bm25_at_unit_length(fmt):
    row = make_bags(fmt, TEXTS).to_pylist()[0]
    red, fox = token(fmt, "red"), token(fmt, "fox")
    lengths = [some.total() for some in count_tokens(fmt, TEXTS)]
    mean = sum(lengths) / 4

    def bm25(times, held):
        idf = math.log(1 + (4 - held + 0.5) / (held + 0.5))
        return idf * times * 2.2 / (times + 1.2 * (0.5 + 0.5 * lengths[0] / mean))

    raw = {red: bm25(1, 2), fox: bm25(2, 1)}
    length = math.hypot(*raw.values())
    assert dict(zip(row["tokens"], row["weights"], strict=True)) == {
        t: round(STEPS * w / length) for t, w in raw.items()
    }
    assert row["tokens"] == sorted(row["tokens"])


def test_a_text_without_terms_has_an_empty_bag(fmt):
    row = make_bags(fmt, TEXTS).to_pylist()[3]
    assert row == {"tokens": [], "weights": []}


def test_only_the_heaviest_tokens_are_kept(fmt, monkeypatch):
    whole = make_bags(fmt, TEXTS).to_pylist()[1]
    monkeypatch.setattr(module, "MOST", 2)
    cut = make_bags(fmt, TEXTS).to_pylist()[1]
    assert len(whole["tokens"]) > len(cut["tokens"]) == 2
    assert set(cut["tokens"]) < set(whole["tokens"])


def test_a_query_is_its_own_tokens_at_unit_length(fmt):
    tokens, weights = query_bag(fmt, "the fox and the red fox")
    np.testing.assert_allclose(
        dict(zip(tokens.tolist(), weights.tolist(), strict=True))[token(fmt, "fox")], 2 / math.sqrt(5), rtol=1e-6
    )
    assert np.linalg.norm(weights) == pytest.approx(1)
    tokens, weights = query_bag(fmt, "the of?")
    assert (len(tokens), len(weights)) == (0, 0)
