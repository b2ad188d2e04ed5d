"""The trie against a tree of dicts."""

from __future__ import annotations

from collections import Counter

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from zerogr_ray.index.trie import Trie

END = 0
docid_lists = st.lists(st.lists(st.integers(1, 4), min_size=1, max_size=6), min_size=1, max_size=40)


def shortest_prefixes(docids: list[list[int]]) -> dict[tuple[int, ...], list[int]]:
    """Brute force: distinguishing prefix (end token included where it is needed) -> numbers of its documents."""
    ended = {(*docid, END) for docid in map(tuple, docids)}
    prefixes = Counter(docid[:n] for docid in ended for n in range(1, len(docid) + 1))
    leaf = {docid: next(docid[:n] for n in range(1, len(docid) + 1) if prefixes[docid[:n]] == 1) for docid in ended}
    found: dict[tuple[int, ...], list[int]] = {}
    for number, docid in enumerate(docids):
        found.setdefault(leaf[(*docid, END)], []).append(number)
    return found


def leaves_of(trie: Trie) -> dict[tuple[int, ...], int]:
    """Path -> leaf node, by walking down from the root."""
    found, todo = {}, [(0, ())]
    while todo:
        node, path = todo.pop()
        first, last = trie.children(node)
        if first == last:
            found[path] = node
        todo += [(child, (*path, int(trie.tokens[child]))) for child in range(first, last)]
    return found


@given(docid_lists)
def test_leaves_are_the_shortest_distinguishing_prefixes_and_hold_their_documents(docids):
    trie, order = Trie.build(docids, END)
    expected = shortest_prefixes(docids)
    leaves = leaves_of(trie)
    assert set(leaves) == set(expected)
    for path, leaf in leaves.items():
        assert [order[row] for row in trie.documents_of(leaf)] == expected[path]
        assert tuple(trie.path(leaf)) == path
    assert sorted(order) == list(range(len(docids)))
    assert (trie.leaves, trie.documents) == (len(expected), len(docids))


@given(docid_lists)
def test_siblings_ascend_and_every_child_knows_its_parent(docids):
    trie, _ = Trie.build(docids, END)
    for node in range(trie.nodes):
        first, last = trie.children(node)
        assert (np.diff(trie.tokens[first:last].astype(int)) > 0).all()
        assert all(trie.parent(child) == node for child in range(first, last))


def test_leaf_ranks_hold_beyond_one_block_of_nodes():
    docids = [[1 + i // 50, 60 + i % 50] for i in range(2000)] + [[3, 61], [3, 61], [40, 99]]
    trie, order = Trie.build(docids, END)
    assert trie.nodes > 3 * 512
    found = {path: [docids[order[row]] for row in trie.documents_of(leaf)] for path, leaf in leaves_of(trie).items()}
    assert all(tuple(docid) == path for path, some in found.items() for docid in some)
    assert sum(map(len, found.values())) == len(docids)
    assert len(found[3, 61]) == 3


def test_the_end_token_is_a_child_only_where_a_docid_is_a_prefix_of_another():
    trie, _ = Trie.build([[1, 2], [1, 2, 3], [4, 5]], END)
    assert set(leaves_of(trie)) == {(1, 2, END), (1, 2, 3), (4,)}


def test_tokens_take_two_bytes_where_the_vocabulary_allows():
    assert Trie.build([[65_535]], END)[0].tokens.dtype == np.uint16
    assert Trie.build([[65_536]], END)[0].tokens.dtype == np.uint32


@pytest.mark.parametrize("docids", [[], [[1], []], [[1, END]]])
def test_what_cannot_be_a_trie_is_refused(docids):
    with pytest.raises(ValueError, match="docid"):
        Trie.build(docids, END)
