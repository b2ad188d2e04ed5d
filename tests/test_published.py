"""What the decoding benchmark compares with, and how it counts."""

from __future__ import annotations

import numpy as np
import pytest

from benchmarks.decode import Sequential, tokens_needed
from benchmarks.published import dict_tree, draw_published
from tests.decoding.oracle import draw_one_by_one
from tests.tiny import tiny_model
from zerogr_ray.index.trie import Trie

pytestmark = pytest.mark.model

END, PROMPT = 40, [41, 42, 43]
DOCIDS = [[1, 2, 3], [1, 2, 4], [1, 5], [6], [6, 7], [8, 9, 9], [8, 1, 1, 2]]


def test_the_published_algorithm_draws_every_docid_once_and_leaves_the_tree_as_it_was():
    tree = dict_tree(DOCIDS, END)
    drawn, seconds = draw_published(tiny_model(64), tree, PROMPT, [0.0, 0.5] * 10, END, longest=4)
    assert sorted(drawn) == sorted([*docid, END] for docid in DOCIDS)
    assert tree == dict_tree(DOCIDS, END)
    assert seconds > 0


def test_without_noise_the_published_algorithm_the_oracle_and_plain_decoding_agree():
    model = tiny_model(64)
    trie, order = Trie.build(DOCIDS, END)
    greedy = np.zeros(len(DOCIDS))
    drawn, _ = draw_published(model, dict_tree(DOCIDS, END), PROMPT, greedy, END, longest=4)
    leaves = draw_one_by_one(trie, Sequential(model, PROMPT), greedy, seed=0)
    assert [docid[:-1] for docid in drawn] == [DOCIDS[order[trie.documents_of(leaf)[0]]] for leaf in leaves]


def test_a_token_is_needed_where_a_draw_has_a_choice_at_it_or_below():
    trie, order = Trie.build(DOCIDS, END)
    leaf_of = {int(order[trie.documents_of(n)[0]]): n for n in range(trie.nodes) if len(set(trie.children(n))) == 1}
    assert tokens_needed(trie, [leaf_of[0]]) == 2  # 1, and 2 below it
    assert tokens_needed(trie, [leaf_of[2]]) == 1  # at 1: 2 or 5
    assert tokens_needed(trie, [leaf_of[2], leaf_of[0]]) == 2
    assert tokens_needed(trie, [leaf_of[0], leaf_of[1], leaf_of[2], leaf_of[3]]) == 3
    assert tokens_needed(trie, []) == 0
