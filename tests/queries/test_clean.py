"""The rule that makes queries of whatever the LM wrote, and what stands in where it wrote nothing."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from zerogr_ray.config import QueryConfig
from zerogr_ray.queries.clean import MAX_CHARS, clean_queries, clean_query, is_copy
from zerogr_ray.queries.generate import stand_ins


@pytest.mark.parametrize(
    ("written", "query"),
    [
        ('Query: "how do plants  make sugar?"\nmore', "how do plants make sugar?"),
        ("\n- Search query 1: sort a list", "sort a list"),
        ("a\tb\x00c", "a b c"),
        ("東京の天気", "東京の天気"),
        ("Q-learning convergence", "Q-learning convergence"),
        ("Q: what is it", "what is it"),
        ("...\n???", ""),
        ("", ""),
        ("one two three four", "one two three"),
    ],
)
def test_what_the_lm_wrote_becomes_one_line(written, query):
    assert clean_query(written, max_words=3 if query == "one two three" else 40) == query


@given(st.lists(st.text(max_size=200), max_size=20), st.integers(1, 50))
def test_as_many_queries_come_out_as_texts_went_in_and_none_is_empty(written, words):
    queries = clean_queries(written, ["stand in"], words)
    assert len(queries) == len(written)
    assert all(query and len(query) <= MAX_CHARS and "\n" not in query for query in queries)


def test_the_documents_own_passages_stand_in_then_its_title_then_its_docno():
    cfg = QueryConfig(per_document=2)
    text = "Plants turn light into energy. Chlorophyll absorbs the light."
    assert clean_queries(["", "…", "real one"], stand_ins("d1", "t", text, cfg), 40)[2] == "real one"
    assert all(query in text for query in clean_queries(["", "…"], stand_ins("d1", "t", text, cfg), 40))
    assert stand_ins("d1", "Title", "", cfg) == ["Title"]
    assert stand_ins("d1", "", "", cfg) == ["d1"]


@pytest.mark.parametrize(
    ("query", "title", "text", "copied"),
    [
        ("i like  APPLES", "", "I like apples.", True),
        ("Fruit I like apples", "Fruit", "I like apples.", True),
        ("I like apples?", "Fruit", "I like apples.", True),
        ("Fruit", "Fruit", "", True),
        ("Fruit", "Fruit", "I like apples.", False),
        ("who likes apples", "", "I like apples.", False),
    ],
)
def test_a_query_that_is_its_document_is_a_copy(query, title, text, copied):
    assert is_copy(query, title, text) is copied
