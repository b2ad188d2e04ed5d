"""How much of its document a docid covers."""

from __future__ import annotations

import math

import numpy as np
import pyarrow as pa
import pytest

from zerogr_ray.corpus.terms import Frequencies
from zerogr_ray.docids.coverage import coverage, covered
from zerogr_ray.docids.statistics import docid_statistics
from zerogr_ray.rows import docid_schema, document_schema
from zerogr_ray.stage import Output
from zerogr_ray.store import Folder

KNOWN = Frequencies(9, {"fox": 2, "red": 5})


def test_words_of_the_docid_in_the_document_and_its_share_of_the_tf_idf_mass():
    words, mass = covered("red json.dumps elephant", "Red fox, red hat; json", KNOWN)
    assert words == 1 / 3  # "dumps" does not occur, so json.dumps does not
    weights = {"red": 2 * math.log(10 / 5), "fox": math.log(10 / 2), "hat": math.log(10), "json": math.log(10)}
    assert mass == pytest.approx((weights["red"] + weights["json"]) / sum(weights.values()))


def test_the_extremes():
    assert covered("red fox", "fox red fox", KNOWN) == (1.0, 1.0)
    assert covered("elephant", "fox", KNOWN) == (0.0, 0.0)
    assert covered("***", "…", KNOWN) == (1.0, 0.0)  # neither has a term


def test_means_over_the_documents_and_the_share_that_the_lm_wrote(tmp_path):
    source, docids = Output("corpus", Folder(tmp_path / "corpus")), Output("docids", Folder(tmp_path / "docids"))
    for number, (title, docid, origin) in enumerate([("Fox", "fox", "lm"), ("Hat", "cat", "fallback")]):
        texts = [{"docno": str(number), "title": title, "text": ""}]
        rows = [{"docno": str(number), "docid": docid, "source": origin}]
        source.folder.write_table(f"part-{number}.parquet", pa.Table.from_pylist(texts, schema=document_schema()))
        docids.folder.write_table(f"part-{number}.parquet", pa.Table.from_pylist(rows, schema=docid_schema()))
    assert coverage(source, docids, {"part-0.parquet": 1, "part-1.parquet": 1}, KNOWN) == {
        "documents": 2, "words_in_document": 0.5, "tfidf_covered": 0.5, "written_by_lm": 0.5,
    }  # fmt: skip


def test_statistics_give_the_share_of_distinct_docids():
    assert docid_statistics(pa.chunked_array([["a", "a", "b"]]), np.ones(3), np.ones(2)).distinct_share == 0.6667
