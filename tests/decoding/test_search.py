"""Draws against the sequential algorithm, enumeration and the chi-square test. No model: logits are made up."""

from __future__ import annotations

import zlib

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import chisquare

from tests.decoding.oracle import draw_one_by_one, probabilities_of_first_two
from zerogr_ray.config import DecodeConfig
from zerogr_ray.decoding.schedule import temperatures
from zerogr_ray.decoding.search import Search
from zerogr_ray.index.trie import Trie

END = 0
docid_lists = st.lists(st.lists(st.integers(1, 4), min_size=1, max_size=6), min_size=1, max_size=40)


def made_up_logits(path, tokens):
    """Logits that depend on path and token alone."""
    keys = [zlib.crc32(repr((path, token)).encode()) for token in tokens]
    return np.array([key % 1000 / 200 for key in keys], dtype=np.float32)


def run(trie, T_K, seed, documents=10**9, logits_at=made_up_logits):
    search = Search(trie, np.asarray(T_K, dtype=float), seed, documents)
    asked = []
    while needed := search.advance():
        asked += needed
        for node in needed:
            tokens = [int(t) for t in trie.tokens[slice(*trie.children(node))]]
            search.learn(node, logits_at(tuple(trie.path(node)), tokens))
    return search, asked


@given(docid_lists, st.integers(1, 50), st.integers(0, 2**64 - 1))
def test_draws_ahead_give_exactly_what_drawing_one_by_one_gives(docids, draws, seed):
    trie, _ = Trie.build(docids, END)
    T_K = temperatures(DecodeConfig(draws=draws))
    search, _ = run(trie, T_K, seed)
    assert [drawn.leaf for drawn in search.found] == draw_one_by_one(trie, made_up_logits, T_K, seed)
    assert [drawn.draw for drawn in search.found] == list(range(len(search.found)))


@given(docid_lists, st.integers(0, 1000))
def test_enough_draws_find_every_document_once(docids, seed):
    trie, _ = Trie.build(docids, END)
    search, _ = run(trie, np.linspace(0, 1.5, len(docids) + 3), seed)
    rows = [row for drawn in search.found for row in trie.documents_of(drawn.leaf)]
    assert sorted(rows) == list(range(len(docids)))


@given(docid_lists, st.integers(0, 1000))
def test_every_branching_node_is_asked_for_once_and_no_other(docids, seed):
    trie, _ = Trie.build(docids, END)
    search, asked = run(trie, np.full(len(docids), 1.0), seed)
    assert len(asked) == len(set(asked))
    assert all(trie.children(node)[1] - trie.children(node)[0] > 1 for node in asked)
    deepest = max(len(trie.path(node)) for node in range(trie.nodes))
    assert search.waves <= deepest + 4


@given(docid_lists, st.integers(1, 10))
def test_a_search_for_k_documents_is_the_beginning_of_a_longer_one(docids, k):
    trie, _ = Trie.build(docids, END)
    T_K = temperatures(DecodeConfig(draws=50))
    short, _ = run(trie, T_K, 3, documents=k)
    longer, _ = run(trie, T_K, 3)
    assert short.found == longer.found[: len(short.found)]
    enough = sum(len(trie.documents_of(d.leaf)) for d in short.found)
    assert enough >= min(k, len(docids), sum(len(trie.documents_of(d.leaf)) for d in longer.found))


SMALL, _ = Trie.build([[1, 1], [1, 2], [1, 3, 1], [1, 3, 2], [2], [3, 1], [3, 2], [3, 2]], END)


def pairs_drawn(T, rounds, rule):
    """Counts of (first leaf, second leaf) over `rounds` searches."""
    counts = {}
    for seed in range(rounds):
        if rule == "library":
            search, _ = run(SMALL, [T, T], seed)
            pair = tuple(drawn.leaf for drawn in search.found)
        else:
            pair = tuple(draw_one_by_one(SMALL, made_up_logits, [T, T], seed, rule))
        counts[pair] = counts.get(pair, 0) + 1
    return counts


def p_value(T, rounds, rule):
    expected = probabilities_of_first_two(SMALL, made_up_logits, T)
    counts = pairs_drawn(T, rounds, rule)
    if set(counts) - set(expected):
        return 0.0
    # Cells that expect fewer than 5 are pooled, as the test's approximation asks.
    pairs = sorted(expected, key=lambda pair: expected[pair])
    rare = [pair for pair in pairs if expected[pair] * rounds < 5]
    common = [pair for pair in pairs if expected[pair] * rounds >= 5]
    observed = [counts.get(pair, 0) for pair in common] + ([sum(counts.get(p, 0) for p in rare)] if rare else [])
    wanted = [expected[pair] * rounds for pair in common] + ([sum(expected[p] for p in rare) * rounds] if rare else [])
    return float(chisquare(observed, wanted, sum_check=False).pvalue)


@pytest.mark.parametrize("T", [0.5, 1.0, 1.5])
def test_first_and_second_draw_have_the_probabilities_that_enumeration_gives(T):
    assert p_value(T, 1500, "library") > 1e-3  # the seeds are fixed: this passes always or never


def test_the_chi_square_test_catches_a_broken_removal_rule():
    assert p_value(1.0, 500, "never remove") < 1e-6


def test_the_log_probability_is_that_of_the_whole_trie_at_temperature_one():
    search, _ = run(SMALL, [0.5] * 8, seed=1)
    assert np.isclose(sum(np.exp(drawn.logprob) for drawn in search.found), 1.0, atol=1e-5)


def test_the_first_draw_is_greedy_and_the_last_nears_t_max():
    T_K = temperatures(DecodeConfig(draws=100, t_max=1.5))
    assert T_K[0] == 0
    assert (np.diff(T_K) > 0).all()
    assert 1.49 < T_K[-1] < 1.5
    assert np.isclose(T_K[10], 1.5 * (0.5 - 1 / (1 + np.e)) / (1 / (1 + np.exp(-9)) - 1 / (1 + np.e)))


@settings(max_examples=20)
@given(st.integers(0, 2**63), st.integers(0, 100), st.integers(0, 10**6))
def test_noise_depends_on_seed_draw_and_child_alone(seed, draw, first):
    from zerogr_ray.decoding.noise import gumbel

    whole = gumbel(seed, draw, first, first + 40)
    assert (gumbel(seed, draw, first + 7, first + 9) == whole[7:9]).all()
    assert np.isfinite(whole).all()
    assert not np.array_equal(gumbel(seed, draw + 1, first, first + 40), whole)
