"""Postings against dicts of sets."""

from __future__ import annotations

from itertools import pairwise

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from zerogr_ray.corpus.bags import BAG, Bags
from zerogr_ray.errors import IndexRefused
from zerogr_ray.index import postings as module
from zerogr_ray.index.postings import ARRAYS, Postings

VOCAB = 7
docid_lists = st.lists(st.lists(st.integers(0, VOCAB - 1), min_size=1, max_size=6), min_size=1, max_size=30)


def build(docids, vocab=VOCAB):
    return Postings.build(pa.array(docids, type=pa.list_(pa.uint32())), vocab)


def check(postings, docids):
    """Both views hold every distinct token of every docid once."""
    first, offsets = postings.first.tolist(), postings.offsets.tolist()
    assert [postings.tokens[a:b].tolist() for a, b in pairwise(first)] == [sorted(set(docid)) for docid in docids]
    assert [postings.rows[a:b].tolist() for a, b in pairwise(offsets)] == [
        [row for row, docid in enumerate(docids) if token in docid] for token in range(postings.vocab)
    ]


@settings(max_examples=40)
@given(docid_lists, st.integers(1, 9))
def test_a_token_knows_its_documents_and_a_document_its_tokens_however_they_are_sliced(docids, size):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "SLICE", size)
        check(build(docids), docids)


weighted_bags = st.lists(
    st.dictionaries(st.integers(0, VOCAB - 1), st.integers(1, 255), max_size=6), min_size=1, max_size=30
)


def of_bags(bags, vocab=VOCAB):
    rows = [dict(sorted(bag.items())) for bag in bags]
    table = pa.table([[list(r) for r in rows], [list(r.values()) for r in rows]], schema=BAG)
    return Postings.of_bags(Bags.of([table], np.arange(vocab)))


@settings(max_examples=40)
@given(weighted_bags, st.integers(1, 9))
def test_weights_stand_beside_the_tokens_in_both_views_and_a_bag_may_be_empty(bags, size):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "SLICE", size)
        postings = of_bags(bags)
    first, offsets = postings.first.tolist(), postings.offsets.tolist()
    for bag, a, b in zip(bags, first, first[1:], strict=False):
        assert dict(zip(postings.tokens[a:b].tolist(), postings.weights[a:b].tolist(), strict=True)) == bag
    for token, (a, b) in enumerate(pairwise(offsets)):
        found = list(zip(postings.rows[a:b].tolist(), postings.row_weights[a:b].tolist(), strict=True))
        assert found == [(row, bag[token]) for row, bag in enumerate(bags) if token in bag]
    some = np.arange(0, len(bags), 2)
    again = postings.bags.take(some)
    assert [dict(zip(again.words[a:b], again.weights[a:b], strict=True)) for a, b in pairwise(again.first)] == [
        bags[row] for row in some
    ]


def test_weighted_postings_are_saved_and_mapped(tmp_path):
    of_bags([{1: 200, 3: 5}, {}, {0: 255}]).save(tmp_path)
    opened = Postings.open(tmp_path)
    assert opened.weights.tolist() == [200, 5, 255]
    assert opened.row_weights.tolist() == [255, 200, 5]
    assert opened.begins.tolist() == list(range(VOCAB))
    np.save(tmp_path / "begins.npy", np.arange(VOCAB - 1, dtype=np.uint32))
    with pytest.raises(IndexRefused, match="fit together"):
        Postings.open(tmp_path)
    (tmp_path / "row_weights.npy").unlink()
    with pytest.raises(IndexRefused, match="row_weights"):
        Postings.open(tmp_path)


@pytest.mark.parametrize("rows", [[], [[VOCAB]], [[2, 1]], [[1, 1]]])
def test_bags_that_are_none_are_refused(rows):
    with pytest.raises(ValueError, match=r"documents|word"):
        Postings.of_bags(Bags.of([pa.table([rows, [[1] * len(row) for row in rows]], schema=BAG)], np.arange(VOCAB)))


def test_chunks_and_slices_of_a_table_are_read_as_one_list():
    docids = [[3, 1, 3], [2], [5, 0], [6, 6], [1, 2, 4]]
    whole = pa.array([[9], *docids, [9]], type=pa.list_(pa.uint32()))
    check(Postings.build(pa.chunked_array([whole[1:3], whole[3:3], whole[3:6]]), VOCAB), docids)


def test_tokens_take_two_bytes_where_the_vocabulary_allows():
    assert build([[65_535]], 65_536).tokens.dtype == np.uint16
    large = build([[65_536, 3], [3]], 65_537)
    assert large.tokens.dtype == np.uint32
    check(large, [[65_536, 3], [3]])


@pytest.mark.parametrize("docids", [[], [[1], []], [[1], None], [[1, None]], [[VOCAB]]])
def test_what_cannot_be_indexed_is_refused(docids):
    with pytest.raises(ValueError, match=r"docid|null"):
        build(docids)


def test_saved_postings_are_mapped_and_read_the_same(tmp_path):
    docids = [[3, 1, 3], [2], [5, 0]]
    build(docids).save(tmp_path / "postings")
    opened = Postings.open(tmp_path / "postings")
    check(opened, docids)
    assert all(isinstance(getattr(opened, name), np.memmap) for name in ARRAYS)
    with pytest.raises(ValueError, match="read-only"):
        opened.rows[0] = 1


def cut(file):
    file.write_bytes(file.read_bytes()[:-1])


def shorten(file):
    np.save(file, np.load(file)[:-1])


def widen(file):
    np.save(file, np.load(file).astype(np.float64))


def fold(file):
    np.save(file, np.load(file)[:, None])


@pytest.mark.parametrize("name", ARRAYS)
@pytest.mark.parametrize(
    "damage", [cut, shorten, widen, fold, lambda file: file.unlink(), lambda f: f.write_bytes(b"")]
)
def test_damaged_arrays_are_refused_with_their_place(tmp_path, name, damage):
    build([[3, 1, 3], [2], [6, 0]]).save(tmp_path)
    damage(tmp_path / f"{name}.npy")
    with pytest.raises(IndexRefused, match=str(tmp_path)):
        Postings.open(tmp_path)


def test_arrays_that_point_backwards_are_refused(tmp_path):
    build([[3, 1, 3], [2], [6, 0]]).save(tmp_path)
    offsets = np.load(tmp_path / "offsets.npy")
    offsets[3] = 9
    np.save(tmp_path / "offsets.npy", offsets)
    with pytest.raises(IndexRefused, match="do not fit together"):
        Postings.open(tmp_path)
