"""BM25 finds documents by their words, title or text, in any amount."""

import pytest

from zerogr_ray.errors import InputError
from zerogr_ray.evaluation.baselines import bm25
from zerogr_ray.rows import Document, Query

DOCUMENTS = [
    Document("fox", "the quick brown fox jumps over the lazy dog"),
    Document("hat", "a hat of felt", title="Red hats"),
    Document("code", "json serialises a dictionary"),
    Document("dots", "..."),
]


def test_the_document_with_the_query_words_comes_first():
    run = bm25(iter(DOCUMENTS), [Query("q1", "brown fox"), Query("q2", "red"), Query("q3", "a json dictionary")], k=2)
    assert {qid: max(found, key=found.__getitem__) for qid, found in run.items()} == {
        "q1": "fox", "q2": "hat", "q3": "code",
    }  # fmt: skip


def test_documents_without_a_word_of_the_query_are_not_returned():
    queries = [Query("q1", "zebra"), Query("q2", "the"), Query("q3", ""), Query("q4", "felt")]
    run = bm25(DOCUMENTS, queries, k=100)
    assert [len(run[query.qid]) for query in queries] == [0, 0, 0, 1]


def test_small_and_wordless_corpora_work():
    assert bm25([Document("d", "...")], [Query("q", "fox")], k=5) == {"q": {}}
    assert bm25([Document("d", "fox")], [Query("q", "fox")], k=5)["q"].keys() == {"d"}
    assert bm25(DOCUMENTS, [], k=5) == {}


def test_no_documents_is_an_error():
    with pytest.raises(InputError, match="at least one document"):
        bm25([], [Query("q", "fox")], k=5)
