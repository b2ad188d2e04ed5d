"""Planning ahead against a count of every docid's tokens."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from zerogr_ray.corpus.bags import BAG, STEPS, UNKNOWN, Bags
from zerogr_ray.decoding.plan import bag_scores, plan_ahead, term_gain
from zerogr_ray.index.postings import Postings

VOCAB = 9
docid_lists = st.lists(st.lists(st.integers(0, VOCAB - 1), min_size=1, max_size=6), min_size=1, max_size=40)
# Halves and small whole numbers add up exactly in any order, so ties are ties.
gains = st.lists(st.integers(-12, 8).map(lambda half: half / 2), min_size=VOCAB, max_size=VOCAB)


def build(docids):
    return Postings.build(pa.array(docids, type=pa.list_(pa.uint32())), VOCAB)


def scores_by_hand(docids, gain):
    return [sum(gain[token] for token in Counter(docid)) for docid in docids]


def best_by_hand(docids, gain, n):
    scores = scores_by_hand(docids, gain)
    return sorted(sorted(range(len(docids)), key=lambda row: (-scores[row], row))[:n])


@settings(max_examples=60)
@given(docid_lists, gains, st.integers(1, 45))
def test_the_plan_is_the_best_bags_of_tokens_the_lower_row_first(docids, gain, n):
    planned = plan_ahead(build(docids), np.array(gain), n)
    assert planned.tolist() == best_by_hand(docids, gain, n)
    assert planned.dtype == np.int64


@settings(max_examples=60)
@given(docid_lists, gains, st.integers(1, 45), st.sets(st.integers(0, 39)))
def test_a_plan_among_some_rows_is_the_best_of_them(docids, gain, n, rows):
    among = np.array(sorted(row for row in rows if row < len(docids)), dtype=np.int64)
    best = best_by_hand([docids[row] for row in among], gain, n)
    assert plan_ahead(build(docids), np.array(gain), n, among).tolist() == among[best].tolist()


weighted_bags = st.lists(
    st.dictionaries(st.integers(0, VOCAB - 1), st.integers(1, 255), max_size=6), min_size=1, max_size=40
)


def of_bags(bags):
    rows = [dict(sorted(bag.items())) for bag in bags]
    table = pa.table([[list(r) for r in rows], [list(r.values()) for r in rows]], schema=BAG)
    return Postings.of_bags(Bags.of([table], np.arange(VOCAB)))


@settings(max_examples=60)
@given(weighted_bags, gains, st.integers(1, 45))
def test_weights_multiply_what_a_token_brings(bags, gain, n):
    scores = [sum(weight * gain[token] for token, weight in bag.items()) for bag in bags]
    best = sorted(sorted(range(len(bags)), key=lambda row: (-scores[row], row))[:n])
    postings = of_bags(bags)
    assert plan_ahead(postings, np.array(gain), n).tolist() == best
    rows = np.arange(len(bags))
    np.testing.assert_allclose(bag_scores(postings, np.array(gain), rows), np.array(scores) / STEPS, atol=1e-5)


def test_reading_a_few_weighted_postings_finds_the_documents_that_stand_out():
    rng = np.random.default_rng(0)
    bags = [{int(v): int(rng.integers(1, 255)) for v in rng.choice(6, 4, replace=False)} for _ in range(4000)]
    wanted = list(range(5, 4000, 100))
    for row in wanted:
        bags[row] = {6: 255, 7: 255}
    gain = np.array([0, 0, 0, 0, 0, 0.1, 4, 3, 5], dtype=np.float32)
    postings = of_bags(bags)
    assert len(postings.tokens) > 16 * 400
    assert plan_ahead(postings, gain, len(wanted), read=400).tolist() == wanted


def test_the_gain_of_a_word_is_what_the_lm_expects_more_than_ever_and_what_the_query_says():
    z, prior = np.log(np.array([0.5, 0.3, 0.1, 0.1])), np.log(np.array([0.02, 0.3, 0.01, 0.67]))
    begins = np.array([2, 0, UNKNOWN, 0, 3, UNKNOWN], dtype=np.uint32)
    own = np.array([3, 5]), np.array([0.6, 0.8], dtype=np.float32)
    g = np.log1p([max(0, np.log(25) - 1), 0, max(0, np.log(10) - 1), 0])
    g /= np.linalg.norm(g)
    gain = term_gain(z.astype(np.float32), prior, begins, own, 0.5)
    np.testing.assert_allclose(gain, [g[2], g[0], 0, g[0] + 0.3, 0, 0.4], rtol=1e-5)


def test_a_prompt_that_expects_nothing_in_particular_leaves_the_query_s_own_words():
    z = np.log(np.full(4, 0.25, dtype=np.float32))
    gain = term_gain(z, None, np.arange(4), (np.array([2]), np.array([1.0], dtype=np.float32)), 0.3)
    np.testing.assert_allclose(gain, [0, 0, 0.3, 0])


class Counted:
    """The rows of postings, counting how many are read."""

    def __init__(self, rows):
        self.rows, self.read = rows, 0

    def __getitem__(self, part):
        self.read += len(self.rows[part])
        return self.rows[part]


@settings(max_examples=60)
@given(docid_lists, gains, st.integers(1, 10), st.integers(0, 12))
def test_a_truncated_plan_reads_no_more_than_it_may_and_still_has_n_rows(docids, gain, n, read):
    whole = build(docids)
    counted = Counted(whole.rows)
    planned = plan_ahead(replace(whole, rows=counted), np.array(gain), n, read=read)
    assert len(planned) == min(n, len(docids))
    assert (np.diff(planned) > 0).all()
    assert counted.read <= read
    if len(whole.tokens) <= 16 * read:
        assert counted.read == 0
        assert planned.tolist() == best_by_hand(docids, gain, n)


def test_the_budget_is_spent_and_not_exceeded():
    whole = build([[v] for v in range(8)] * 25 + [[8]] * 2000)
    counted = Counted(whole.rows)
    planned = plan_ahead(replace(whole, rows=counted), -np.arange(VOCAB), 50, read=100)
    assert counted.read == 100  # the first four tokens, 25 documents each
    assert whole.tokens[planned].tolist() == [0, 1] * 25


def test_reading_a_few_postings_finds_the_documents_that_stand_out():
    rng = np.random.default_rng(0)
    docids = [[int(v) for v in rng.choice(6, 4, replace=False)] for _ in range(4000)]
    wanted = list(range(5, 4000, 100))
    for row in wanted:
        docids[row] = [6, 7, int(rng.integers(6))]
    gain = np.array([-1, -0.5, 0, -1, -0.5, 0, 4, 3, 5], dtype=np.float32)
    postings = build(docids)
    planned = plan_ahead(postings, gain, len(wanted), read=400)
    assert len(postings.tokens) > 16 * 400
    assert planned.tolist() == wanted


def test_a_candidate_s_score_counts_the_tokens_that_were_not_read():
    """Token 8 alone is rare enough to be read. Rows 0 to 5 hold it beside a bad token, row 6 beside a better one."""
    docids = [[8, 0]] * 6 + [[8, 2]] + [[2, 3, 0]] * 500
    gain = np.array([-9, 0, -1, -1, -1, -1, -1, -1, 4])
    assert plan_ahead(build(docids), gain, 1, read=60).tolist() == [6]


def test_too_few_candidates_are_not_the_end():
    docids = [[8]] + [[2, 3]] * 500
    gain = np.arange(VOCAB) - 4.0
    assert plan_ahead(build(docids), gain, 20, read=4).tolist() == list(range(20))


def test_equal_gains_and_n_beyond_the_corpus():
    docids = [[1], [2], [3], [4]]
    assert plan_ahead(build(docids), np.zeros(VOCAB), 2).tolist() == [0, 1]
    assert plan_ahead(build(docids), np.zeros(VOCAB), 9).tolist() == [0, 1, 2, 3]


@pytest.mark.parametrize("bad", [np.nan, -np.inf, np.inf])
@pytest.mark.parametrize("read", [8, 4_000_000])  # some are read, or all are scored
def test_what_is_not_a_number_counts_as_very_low(bad, read):
    docids = [[1, 8], [2, 8], [3], [1, 2]] + [[4, 5]] * 70
    gain = np.array([0, -3, bad, -4, -5, -5, 0, 0, 2])
    assert plan_ahead(build(docids), gain, 2, read=read).tolist() == [0, 2]
    assert plan_ahead(build(docids), np.full(VOCAB, bad), 2, read=read).tolist() == [0, 2]  # row 2 is the shortest


def test_a_padded_lm_head_is_cut_and_a_short_one_refused():
    postings = build([[1], [2]])
    padded = np.array([0, 1, 2] + [0] * (VOCAB - 3) + [np.nan, 99])
    assert plan_ahead(postings, padded, 1).tolist() == [1]
    with pytest.raises(ValueError, match=r"3 gains .* 9"):
        plan_ahead(postings, np.zeros(3), 1)
    with pytest.raises(ValueError, match="n is 0"):
        plan_ahead(postings, padded, 0)
