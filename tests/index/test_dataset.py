"""The trie's rows from a real Ray Dataset."""

from __future__ import annotations

from itertools import pairwise

import numpy as np
import pyarrow as pa
import pytest

from zerogr_ray.cluster import ray_cluster
from zerogr_ray.index.dataset import trie_rows
from zerogr_ray.index.trie import ARRAYS, Trie

pytestmark = pytest.mark.ray

END = 0


def letters(texts):
    """A tokenizer without a vocabulary."""
    return [[ord(letter) for letter in text] for text in texts]


@pytest.fixture(scope="module")
def data():
    with ray_cluster():
        import ray.data

        yield ray.data


def dataset_of(data, docids, blocks=7):
    """The docids in blocks of growing size, so that they finish out of order."""
    cuts = [len(docids) * n * n // blocks**2 for n in range(blocks + 1)]
    parts = [docids[first:past] for first, past in pairwise(cuts)]
    return data.from_arrow([pa.table({"docid": part, "other": [1] * len(part)}) for part in parts])


def test_rows_are_those_of_the_dataset_in_its_order_and_make_the_same_trie(data):
    rng = np.random.default_rng(0)
    docids = ["".join(rng.choice(list("abcdé"), size=rng.integers(1, 9))) for _ in range(3000)]
    docids[-1] = "😀 is beyond sixteen bits"
    dataset = dataset_of(data, docids)
    rows = trie_rows(dataset, letters, END)
    assert ["".join(map(chr, row[row != END])) for row in rows] == docids
    (trie, order), (expected, expected_order) = Trie.from_rows(rows), Trie.build(letters(docids), END)
    assert order.tolist() == expected_order.tolist()
    for name in ARRAYS:
        np.testing.assert_array_equal(getattr(trie, name), getattr(expected, name), strict=True)
    assert not dataset.context.execution_options.preserve_order


def test_what_cannot_be_a_trie_is_refused_in_plain_words(data):
    with pytest.raises(ValueError, match="no docid may be empty"):
        trie_rows(dataset_of(data, ["a", "b", "", "c"]), letters, END)
    with pytest.raises(ValueError, match="at least one docid"):
        trie_rows(data.from_arrow(pa.table({"docid": pa.array([], pa.string())})), letters, END)
