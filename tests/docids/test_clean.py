"""The rule that makes a docid of whatever the LM wrote."""

from __future__ import annotations

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from zerogr_ray.docids.clean import MAX_CHARS, STOP_WORDS, clean_docid
from zerogr_ray.docids.statistics import docid_statistics


@pytest.mark.parametrize(
    ("written", "docid"),
    [
        ("Photosynthesis, Plants; Light-Energy.", "photosynthesis plants light-energy"),
        ('Keywords: "json encode dict"\nand more', "json encode dict"),
        ("\n\n1. sorting the list of a merge", "1 sorting list merge"),
        ("json.dumps json.dumps object", "json.dumps object"),
        ("C++ and C# are languages", "c++ c# languages"),
        ("ＦＵＬＬ width Ünïcode 東京", "full width ünïcode 東京"),
        ("one two three four five six seven eight nine", "one two three four five six seven eight"),
        ("document-level relation extraction", "document-level relation extraction"),
        ("हिन्दी भाषा สวัสดี ที่นี่", "हिन्दी भाषा สวัสดี ที่นี่"),
        ("...x. -y", "x y"),
        (
            "relative_inverse_depth_from_image_multi-objective_image_depth",
            "relative inverse depth image multi objective",
        ),
        ("of the and", "of the and"),  # nothing but stop words is still better than nothing
    ],
)
def test_what_the_lm_wrote_becomes_a_few_words(written, docid):
    assert clean_docid(written, "title", "text", "d1", 8) == (docid, "lm")


@pytest.mark.parametrize(
    ("title", "text", "docno", "docid"),
    [
        ("The Title", "text", "d1", "title"),
        ("", "Some text.", "d1", "some text" if "some" not in STOP_WORDS else "text"),
        ("!!!", "…", "D-1", "d-1"),
        ("", "", "***", "***"),
    ],
)
def test_unusable_output_falls_back_to_title_text_and_docno(title, text, docno, docid):
    for written in ("", "\n \n", "...!?", "\x00\x01"):
        assert clean_docid(written, title, text, docno, 8) == (docid, "fallback")


@given(
    st.text(max_size=300),
    st.text(max_size=30),
    st.text(max_size=60),
    st.text(min_size=1, max_size=20),
    st.integers(1, 12),
)
def test_every_document_ends_with_a_short_docid_in_lower_case(written, title, text, docno, words):
    docid, source = clean_docid(written, title, text, docno, words)
    assert docid
    if docid != docno:
        assert len(docid) <= MAX_CHARS
        assert len(docid.split()) <= words
        assert "\n" not in docid
    assert source in {"lm", "fallback"}


def test_statistics_count_collisions():
    facts = docid_statistics(pa.chunked_array([["red fox", "red fox"], ["hat"]]), np.array([2, 2, 1]), np.array([1, 1]))
    assert (facts.documents, facts.distinct, facts.largest_collision) == (3, 2, 2)
    assert (facts.words_mean, facts.prefix_mean) == (1.67, 1.0)
