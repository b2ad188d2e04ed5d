"""Texts are cut at words, in any script; passages are short, distinct and spread over the document."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from zerogr_ray.corpus.text import WORD, passages, truncate_words

written = st.text(st.sampled_from("ab 生成。. \n\t-é!") | st.characters(), max_size=200)


@given(written, st.integers(0, 20))
def test_a_truncated_text_is_a_beginning_with_at_most_so_many_words(text, words):
    cut = truncate_words(text, words)
    assert text.startswith(cut)
    assert len(WORD.findall(cut)) == min(words, len(WORD.findall(text)))


@given(written, st.integers(1, 10), st.integers(0, 5))
def test_passages_are_few_short_distinct_and_not_empty(text, words, most):
    found = passages(text, words, most)
    assert found == passages(text, words, most)
    assert len(found) == len(set(found)) <= most
    for passage in found:
        assert 0 < len(WORD.findall(passage)) <= words
        assert passage in " ".join(text.split())


@given(written, st.integers(1, 10))
def test_passages_together_hold_every_letter(text, words):
    together = "".join(passages(text, words, most=1000))
    assert {c for c in text if c.isalnum()} <= set(together)


def test_passages_end_at_sentence_ends_where_they_can():
    text = "The fox runs far. The hat is red and old. It rains"
    assert passages(text, words=6, most=9) == ["The fox runs far.", "The hat is red and old.", "It rains"]


def test_passages_of_a_long_text_begin_with_its_opening_and_reach_its_last_quarter():
    found = passages(" ".join(f"w{n}" for n in range(1000)), words=10, most=4)
    assert [passage.split()[0] for passage in found] == ["w0", "w250", "w500", "w750"]


def test_text_without_spaces_is_cut_by_characters():
    text = "生成式检索用语言模型写出文档标识。它不需要倒排索引。"
    assert truncate_words(text, 5) == "生成式检索"
    assert passages(text, words=20, most=3) == ["生成式检索用语言模型写出文档标识。", "它不需要倒排索引。"]


@pytest.mark.parametrize("text", ["", " \n ", "--- *** ___"])
def test_a_text_without_words_has_no_passages(text):
    assert passages(text, words=5, most=5) == []


def test_a_megabyte_without_a_space_is_cut_as_well():
    assert len(truncate_words("x" * 1_000_000, 10)) == 640
