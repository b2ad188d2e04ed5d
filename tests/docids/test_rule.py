import pytest
from hypothesis import given
from hypothesis import strategies as st

from zerogr_ray.corpus.terms import Frequencies
from zerogr_ray.docids.clean import MAX_CHARS, STOP_WORDS, words_of
from zerogr_ray.docids.rule import MOST, core_terms

DOCUMENTS = [
    ("Merge sort", "Sort a list by merging two sorted lists. The sort is stable."),
    ("Quick sort", "Sort a list by a pivot. The sort is not stable."),
    ("Sourdough bread", "Bread that rises with wild yeast; yeast and bacteria make it sour."),
]
COUNTED = Frequencies.counted((f"{title}\n{text}" for title, text in DOCUMENTS), words_of)


@pytest.mark.parametrize(
    ("document", "docid"),
    [
        # "sort", "list" and "stable" are in two documents, the rest in one: in the document's order.
        (DOCUMENTS[0], "sort list stable merge merging two sorted lists"),
        (DOCUMENTS[1], "sort list stable quick pivot"),
        (
            ("Sourdough bread", "yeast " * 5 + "flour water salt oven crust crumb"),
            "sourdough bread yeast flour water salt oven crust",
        ),
        (("", "the 2019 and 42"), ""),
        (("Apollo 11", "the moon"), "apollo 11 moon"),
    ],
)
def test_a_docid_goes_from_what_many_documents_say_to_what_one_says(document, docid):
    assert core_terms(*document, COUNTED) == docid


def test_idf_is_zero_for_a_word_of_every_document():
    assert Frequencies.counted(["a fox", "b fox"], words_of).idf("fox") == 0
    assert COUNTED.idf("pivot") > COUNTED.idf("sort") > 0


def test_a_title_gives_four_words_at_most_and_fills_up_where_the_text_is_short():
    long = "alpha beta gamma delta epsilon zeta"
    text = "one two three four five six seven"
    assert len(set(core_terms(long, text, COUNTED).split()) & set(long.split())) == 4
    assert set(core_terms(long, "one", COUNTED).split()) == {*long.split(), "one"}


@given(st.text(max_size=80), st.text(max_size=400))
def test_any_document_gets_few_different_words_and_none_that_says_nothing(title, text):
    docid = core_terms(title, text, COUNTED)
    words = docid.split(" ") if docid else []
    assert len(words) == len(set(words)) <= MOST
    assert not STOP_WORDS & set(words)
    assert len(docid) <= MAX_CHARS
    assert docid == docid.lower() or not docid.isascii()
