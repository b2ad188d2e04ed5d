"""The trie against a tree of dicts."""

from __future__ import annotations

from collections import Counter
from unittest import mock

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from zerogr_ray.index import trie_build
from zerogr_ray.index.trie import ARRAYS, Trie

END = 0
docid_lists = st.lists(st.lists(st.integers(1, 4), min_size=1, max_size=6), min_size=1, max_size=40)


@st.composite
def wide_docids(draw):
    """Docids of tokens of any width that share long beginnings: over the borders of the words they are packed in."""
    tokens = st.sampled_from(draw(st.sampled_from([[1], [1, 2], [1, 60_000, 65_535], [1, 70_000, 2**32 - 1]])))
    stems = draw(st.lists(st.lists(tokens, min_size=1, max_size=18), min_size=1, max_size=3))
    stem = st.builds(lambda stem, length: stem[:length], st.sampled_from(stems), st.integers(0, 18))
    docid = st.builds(list.__add__, stem, st.lists(tokens, min_size=1, max_size=2))
    return draw(st.lists(docid, min_size=1, max_size=30))


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


def dict_levels(docids: list[list[int]]) -> list[tuple[int, int]]:
    """(token, children) of every node of a tree of dicts, in level order, cut where one docid alone goes on."""
    root: dict = {}
    for docid in {(*docid, END) for docid in map(tuple, docids)}:
        node = root
        for token in docid:
            node = node.setdefault(token, {})
    found, level = [], [(0, root)]

    def branches(node: dict) -> bool:
        return len(node) > 1 or any(map(branches, node.values()))

    while level:
        # Only the root keeps a child that nothing competes with.
        cut = [(token, node if node is root or branches(node) else {}) for token, node in level]
        found += [(token, len(node)) for token, node in cut]
        level = [child for _, node in cut for child in sorted(node.items())]
    return found


SIZES = {"one part": {}, "many parts": {"PART": 2, "SLICE": 3}, "short keys": {"KEY": 2, "SLICE": 3}, "one": {"KEY": 1}}


@pytest.mark.parametrize("sizes", SIZES.values(), ids=SIZES)
@given(docids=wide_docids())
def test_every_node_is_that_of_a_tree_of_dicts_whatever_the_width_of_tokens(sizes, docids):
    with mock.patch.multiple(trie_build, **{"PART": trie_build.PART, **sizes}):
        trie, order = Trie.build(docids, END)
        same, same_order = Trie.from_rows(trie_build.docid_rows(docids, END))
    assert all(np.array_equal(getattr(trie, name), getattr(same, name)) for name in ARRAYS)
    assert order.tolist() == same_order.tolist()
    assert list(zip(trie.tokens.tolist(), np.diff(trie.first_child).tolist(), strict=True)) == dict_levels(docids)
    expected = shortest_prefixes(docids)
    documents = {path: [int(order[row]) for row in trie.documents_of(leaf)] for path, leaf in leaves_of(trie).items()}
    assert documents == expected


@given(wide_docids(), st.integers(1, 5), st.sampled_from([pa.list_, pa.large_list]))
def test_arrow_lists_make_the_trie_that_plain_lists_make(docids, chunk, list_type):
    trie, order = Trie.build(docids, END)
    width = pa.uint16() if trie.tokens.dtype == np.uint16 else pa.uint32()
    whole = pa.array([[9], *docids], list_type(width))[1:]  # a slice: its values do not begin at 0
    parts = [whole[start : start + chunk] for start in range(0, len(whole), chunk)]
    for given_as in (whole, pa.chunked_array(parts)):
        same, same_order = Trie.build(given_as, END)
        np.testing.assert_array_equal(order, same_order)
        for name in ARRAYS:
            np.testing.assert_array_equal(getattr(trie, name), getattr(same, name), strict=True)


def test_a_saved_trie_is_opened_as_it_was(tmp_path):
    trie, _ = Trie.build([[1, 2], [1, 3], [1, 3]], END)
    trie.save(tmp_path / "trie")
    opened = Trie.open(tmp_path / "trie")
    for name in ARRAYS:
        np.testing.assert_array_equal(getattr(trie, name), getattr(opened, name), strict=True)
        assert isinstance(getattr(opened, name).base, np.memmap)  # read from the file, not into memory


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


ARROW = pa.list_(pa.uint16())
REFUSED = [[], [[1], []], [[1, END]], pa.array([], ARROW), pa.array([[1], None], ARROW), pa.chunked_array([], ARROW)]


@pytest.mark.parametrize("docids", REFUSED)
def test_what_cannot_be_a_trie_is_refused(docids):
    with pytest.raises(ValueError, match="docid"):
        Trie.build(docids, END)
