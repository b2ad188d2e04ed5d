"""Bags of weighted words against BM25 by hand."""

from __future__ import annotations

import math

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.tiny import tiny_tokenizer
from zerogr_ray.chat import PromptFormat
from zerogr_ray.corpus import bags as module
from zerogr_ray.corpus.bags import BUCKETS, STEPS, UNKNOWN, first_tokens, make_bags, query_bag, words_of

TEXTS = ["The red fox, the fox!", "open the web browsers", "red hat", "and the of"]


def word(term):
    [bucket] = words_of(term)
    return bucket


def test_a_word_is_its_stem_and_counts_as_often_as_it_comes_and_stop_words_do_not():
    found = words_of("The red fox, the foxes!")
    assert found == {word("red"): 1, word("fox"): 2}
    assert not words_of("and the of")
    assert all(0 <= bucket < BUCKETS for bucket in words_of("σοφία 東京 crème x86_64"))


def test_weights_are_those_of_bm25_over_the_root_of_their_length_and_of_the_mean_length():
    counts = [words_of(text) for text in TEXTS]
    held = {some: sum(some in other for other in counts) for count in counts for some in count}
    mean = sum(count.total() for count in counts) / 4

    def bm25(count):
        def idf(some):
            return math.log(1 + (4 - held[some] + 0.5) / (held[some] + 0.5))

        k = 1.2 * (0.25 + 0.75 * count.total() / mean)
        return {some: idf(some) * times * 2.2 / (times + k) for some, times in count.items()}

    lengths = [math.hypot(*bm25(count).values()) for count in counts[:3]]
    rows = make_bags(TEXTS).to_pylist()
    for row, count, length in zip(rows, counts, lengths, strict=False):
        expected = {w: round(STEPS * x / math.sqrt(length * sum(lengths) / 3)) for w, x in bm25(count).items()}
        assert dict(zip(row["words"], row["weights"], strict=True)) == expected
        assert row["words"] == sorted(row["words"])


def test_a_text_without_terms_has_an_empty_bag():
    assert make_bags(TEXTS).to_pylist()[3] == {"words": [], "weights": []}


def test_only_the_heaviest_words_are_kept(monkeypatch):
    whole = make_bags(TEXTS).to_pylist()[1]
    monkeypatch.setattr(module, "MOST", 2)
    cut = make_bags(TEXTS).to_pylist()[1]
    assert len(whole["words"]) > len(cut["words"]) == 2
    assert set(cut["words"]) < set(whole["words"])


def test_a_query_is_its_own_words_each_as_much_as_any_other_at_unit_length():
    words, weights = query_bag("the fox and the red foxes")
    assert words.tolist() == sorted([word("fox"), word("red")])
    np.testing.assert_allclose(weights, [math.sqrt(0.5)] * 2, rtol=1e-6)
    words, weights = query_bag("the of?")
    assert (len(words), len(weights)) == (0, 0)


@pytest.mark.model
def test_a_word_begins_with_the_token_of_the_form_that_is_written_most_often():
    fmt = PromptFormat(tiny_tokenizer())
    [write], [writes] = (tokens[:1] for tokens in fmt.tokens([" write", " writes"]))
    assert word("write") == word("writes")
    assert first_tokens(fmt, ["write", "writes it and writes"])[word("write")] == writes
    begins = first_tokens(fmt, ["writes", "write the red fox"])
    assert begins[word("write")] == write, "of equals, the first in the alphabet"
    assert (begins != UNKNOWN).sum() == 3, "what no text holds is unknown"
    assert len(begins) == BUCKETS


def test_words_that_english_derives_from_each_other_are_one():
    for one, other in (
        ("classify", "classification"),
        ("recognize", "recognition"),
        ("describe", "description"),
        ("resolve", "resolution"),
        ("assume", "assumption"),
        ("synthesize", "synthesis"),
        ("international", "internationally"),
    ):
        assert word(one) == word(other), (one, other)
    assert word("unit") != word("un")
    assert word("part number 20231105".split()[2]) != word("20231106"), "what has a digit is told apart to its end"


@given(st.lists(st.tuples(st.integers(0, 9), st.integers(0, 9)), max_size=12), st.integers(1, 5))
def test_two_bags_of_a_document_add_up_and_come_apart_again(pairs, documents):
    def table(number):
        rows = [{} for _ in range(documents)]
        for place, (word, weight) in enumerate(pairs):
            if place % 2 == number:
                rows[place % documents][word] = weight * 28
        return rows, pa.table(
            [[sorted(row) for row in rows], [[row[w] for w in sorted(row)] for row in rows]], schema=module.BAG
        )

    (some, one), (more, other) = table(0), table(1)
    found = module.added(one, other)
    assert found.schema == module.BAG
    for row, a, b in zip(found.to_pylist(), some, more, strict=True):
        assert row["words"] == sorted({*a, *b})
        assert row["weights"] == [min(255, a.get(w, 0) + b.get(w, 0)) for w in row["words"]]
    apart = module.taken_off(found, other)
    assert apart.schema == module.BAG
    for row, a, b in zip(apart.to_pylist(), some, more, strict=True):
        assert dict(zip(row["words"], row["weights"], strict=True)) == {
            word: left for word, weight in a.items() if (left := min(255, weight + b.get(word, 0)) - b.get(word, 0)) > 0
        }
