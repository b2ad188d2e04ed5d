"""Docids that no LM writes."""

from __future__ import annotations

import pyarrow as pa

from zerogr_ray.config import DocIdConfig, LLMConfig
from zerogr_ray.corpus.terms import Frequencies
from zerogr_ray.docids.generate import WriteDocIds
from zerogr_ray.docids.rule import core_terms
from zerogr_ray.generation.writer import CountingEngine
from zerogr_ray.rows import document_schema

TEXTS = ["The red fox sleeps in the snow.", "A web browser opens pages.", "!!", "Red hats are warm; the fox has none."]
KNOWN = Frequencies.counted(TEXTS * 2)


def write(written_by, docnos=("a", "b", "c", "d"), **more):
    documents = pa.table([list(docnos), ["", "Web", "", ""], TEXTS], schema=document_schema())
    nobody = CountingEngine(LLMConfig(model="no model of this name"))  # asked for anything, it would fail
    return WriteDocIds(DocIdConfig(written_by=written_by, **more), KNOWN)(documents, nobody).to_pylist()


def test_the_rule_writes_docids_without_a_model():
    rows = write("rule", max_words=3)
    by_rule = [core_terms("", TEXTS[0], KNOWN, 3), core_terms("Web", TEXTS[1], KNOWN, 3)]
    assert [row["docid"] for row in rows[:2]] == by_rule
    assert [row["source"] for row in rows] == ["rule", "rule", "fallback", "rule"]
    assert rows[2]["docid"] == "c", "every document ends with a docid"


def test_random_docids_are_words_of_the_corpus_that_depend_on_the_docno_alone():
    rows, again = write("random", max_words=4), write("random", ("a", "x", "c", "d"), max_words=4)
    assert all(set(row["docid"].split()) <= set(KNOWN.counts) for row in rows)
    assert [a["docid"] == b["docid"] for a, b in zip(rows, again, strict=True)] == [True, False, True, True]
    assert {row["source"] for row in rows} == {"random"}
