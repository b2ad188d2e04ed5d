"""Terms, stems, and how many documents hold each."""

from __future__ import annotations

import pyarrow as pa
import pytest

from zerogr_ray.corpus.terms import FEW, Frequencies, corpus_frequencies, stems, terms
from zerogr_ray.rows import document_schema
from zerogr_ray.stage import Output, sample_shards
from zerogr_ray.store import Folder


def test_terms_are_runs_of_letters_and_digits_or_single_characters_of_an_unspaced_script():
    assert terms("json.dumps(obj) ＦＵＬＬ Straße 3D 東京だ") == [
        "json", "dumps", "obj", "full", "strasse", "3d", "東", "京", "だ",
    ]  # fmt: skip
    assert terms("…!") == []


def test_stems_leave_stop_words_out_unless_there_is_nothing_else():
    assert stems("How does the fox hunt foxes?") == ["fox", "hunt", "fox"]
    assert stems("who is it") == ["who", "is", "it"]


def test_a_common_term_is_in_more_than_half_of_enough_documents():
    known = Frequencies.counted(["red fox", "red hat"] * (FEW // 2))
    assert (known.documents, known.of("red"), known.of("fox"), known.of("unheard")) == (FEW, FEW, FEW // 2, 1)
    assert known.common("red")
    assert not known.common("fox")
    assert not Frequencies.counted(["red"] * (FEW - 1)).common("red")


def test_the_counts_of_a_corpus_are_kept_and_read_again(tmp_path):
    source, output = Output("corpus", Folder(tmp_path / "corpus")), Output("terms", Folder(tmp_path / "terms"))
    rows = [{"docno": "a", "title": "Red", "text": "red fox"}, {"docno": "b", "title": "", "text": "fox"}]
    source.folder.write_table("part-0.parquet", pa.Table.from_pylist(rows, schema=document_schema()))
    first = corpus_frequencies(source, {"part-0.parquet": 2}, output)
    assert first == Frequencies(2, {"fox": 2})
    (tmp_path / "corpus" / "part-0.parquet").unlink()
    assert corpus_frequencies(source, {"part-0.parquet": 2}, output) == first


@pytest.mark.parametrize(("rows", "chosen"), [(100, "abcdef"), (60, "abcdef"), (59, "abcde"), (30, "ace"), (1, "a")])
def test_the_sample_is_spread_evenly_and_is_never_empty(rows, chosen):
    assert "".join(sample_shards(dict.fromkeys("fedcba", 10), rows)) == chosen
