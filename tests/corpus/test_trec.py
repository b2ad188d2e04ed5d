"""TREC files read back as written; a line that is wrong is named."""

import tempfile
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from zerogr_ray.corpus.trec import ranked, read_qrels, read_run, write_qrels, write_run
from zerogr_ray.errors import InputError

ids = st.text(st.characters(exclude_categories=["Cs"], exclude_characters=" \t\n\r\v\f"), min_size=1, max_size=8)
# A byte order mark at the beginning of a file is dropped.
qids = ids.filter(lambda qid: qid[0] != "\ufeff")
scores = st.floats(allow_nan=False)


@settings(max_examples=100, deadline=None)
@given(st.dictionaries(qids, st.dictionaries(ids, scores, min_size=1, max_size=5), max_size=4))
def test_a_run_reads_back_as_written_best_first(run):
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "run.txt"
        write_run(str(path), run, "tag")
        assert read_run(str(path)) == run
        rows = [line.split(b" ") for line in path.read_bytes().split(b"\n") if line]
        for qid, found in run.items():
            mine = [row for row in rows if row[0] == qid.encode()]
            assert [row[2].decode() for row in mine] == ranked(found)
            assert [int(row[3]) for row in mine] == list(range(1, len(found) + 1))


@settings(max_examples=50, deadline=None)
@given(st.dictionaries(qids, st.dictionaries(ids, st.integers(-1, 4), min_size=1)))
def test_judgements_read_back_as_written(qrels):
    with tempfile.TemporaryDirectory() as folder:
        write_qrels(f"{folder}/qrels.txt", qrels)
        assert read_qrels(f"{folder}/qrels.txt") == qrels


def test_equal_scores_rank_by_docno_last_first():
    assert ranked({"a": 1.0, "c": 1.0, "b": 2.0}) == ["b", "c", "a"]


def test_beir_judgements_may_have_spaces_in_their_ids(tmp_path):
    path = tmp_path / "test.tsv"
    path.write_text("query-id\tcorpus-id\tscore\nq 1\tAlan Turing\t2\n")
    assert read_qrels(str(path)) == {"q 1": {"Alan Turing": 2}}


@pytest.mark.parametrize(
    ("line", "reason"),
    [
        ("q d 1", "3 fields"),
        ("q 0 d high", "'high', not a whole number"),
        ("q 0 d1 1", "contradicts"),
        ("query-id corpus-id score", "3 fields"),
    ],
)
def test_a_bad_judgement_names_file_and_line(tmp_path, line, reason):
    path = tmp_path / "qrels.txt"
    path.write_text(f"q 0 d1 2\n\n{line}\n")
    with pytest.raises(InputError, match=rf"qrels\.txt line 3: .*{reason}"):
        read_qrels(str(path))


@pytest.mark.parametrize(
    ("line", "reason"),
    [
        (b"q Q0 d 1 2.0", "5 fields"),
        (b"q Q0 d 1 best tag", "'best', not a number"),
        (b"q Q0 d 1 nan tag", "'nan', not a number"),
        (b"q Q0 d1 1 2.0 tag", "second time"),
        (b"q Q0 \xff 1 2.0 tag", "not UTF-8"),
    ],
)
def test_a_bad_run_line_names_file_and_line(tmp_path, line, reason):
    path = tmp_path / "run.txt"
    path.write_bytes(b"q Q0 d1 1 3.0 tag\n" + line + b"\n")
    with pytest.raises(InputError, match=rf"run\.txt line 2: .*{reason}"):
        read_run(str(path))


@pytest.mark.parametrize("docno", ["", "Alan Turing", "a\tb", "\ud800"])
def test_an_id_that_the_format_cannot_carry_writes_nothing(tmp_path, docno):
    with pytest.raises(InputError, match="cannot stand in a TREC file"):
        write_run(str(tmp_path / "run.txt"), {"q": {"d": 1.0}, "r": {docno: 1.0}}, "tag")
    assert not (tmp_path / "run.txt").exists()


def test_a_score_that_is_nan_writes_nothing(tmp_path):
    with pytest.raises(InputError, match="NaN"):
        write_run(str(tmp_path / "run.txt"), {"q": {"d": float("nan")}}, "tag")
    assert not (tmp_path / "run.txt").exists()


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(InputError, match="no file or folder"):
        read_run(str(tmp_path / "run.txt"))
    with pytest.raises(InputError, match="cannot be written"):
        write_run(str(tmp_path / "nowhere" / "run.txt"), {}, "tag")
