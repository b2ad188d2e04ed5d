"""`zerogr compare`: two run files, one verdict; mistakes get one sentence and exit status 2."""

import json

import pytest

from tests.command import zerogr


def complaint(*arguments):
    """The one sentence of a refused command."""
    status, out, err = zerogr(*arguments)
    assert (status, out) == (2, ""), err
    assert err.startswith("zerogr: ")
    assert len(err.splitlines()) == 1, err
    return err


@pytest.fixture
def files(tmp_path):
    """Eight queries; run a has six of their documents first and lacks one query, run b has two first."""
    qrels, a, b = (tmp_path / name for name in ("qrels.tsv", "a.trec", "b.trec"))
    qrels.write_text("query-id\tcorpus-id\tscore\n" + "".join(f"q{i}\td{i}\t1\n" for i in range(8)))

    def lines(first, queries):
        ranked = [(i, [f"d{i}", "x"] if i in first else ["x", f"d{i}"]) for i in queries]
        return "".join(f"q{i} Q0 {docno} 0 {9 - rank} t\n" for i, pair in ranked for rank, docno in enumerate(pair))

    a.write_text(lines(range(6), range(7)))
    b.write_text(lines([0, 7], range(8)) + "unjudged Q0 d0 1 1.0 t\n")
    return qrels, a, b


def test_it_prints_means_difference_and_p(files):
    status, out, err = zerogr("compare", *files, "--metric", "acc@1")
    rows = [line.split("\t") for line in out.splitlines()]
    assert (status, err) == (0, "")
    assert rows[0] == ["system", "acc@1", "low", "high", "queries", "run"]
    assert [rows[1][i] for i in (0, 1, 4, 5)] == ["A", "0.7500", "7", str(files[1])]
    assert [rows[2][i] for i in (0, 1, 4, 5)] == ["B", "0.2500", "8", str(files[2])]
    # Five wins and one loss: of 64 signs, 2 * (1 + 6) give a sum of 4 or more, up or down.
    assert [rows[3][i] for i in (0, 1, 4, 5)] == ["A-B", "+0.5000", "8", f"p={14 / 64:.4g}"]
    assert rows[4] == ["A wins", "5", "ties", "2", "B wins", "1"]


def test_it_speaks_json(files):
    status, out, _ = zerogr("compare", *files, "--json")
    found = json.loads(out)
    assert status == 0
    assert (found["metric"], found["level"], found["queries"]) == ("ndcg@10", 0.95, 8)
    assert found["found"] == {"A": 7, "B": 8}
    assert found["difference"]["low"] <= found["difference"]["mean"] <= found["difference"]["high"]
    assert found["difference"]["mean"] == pytest.approx(found["a"]["mean"] - found["b"]["mean"])


def test_a_run_against_itself_proves_nothing(files):
    qrels, a, _ = files
    found = json.loads(zerogr("compare", qrels, a, a, "--json")[1])
    assert (found["p"], found["ties"], found["difference"]["high"]) == (1.0, 8, 0.0)


def test_bad_input_gets_one_sentence(files, tmp_path):
    qrels, a, b = files
    other = tmp_path / "other.trec"
    other.write_text("z1 Q0 d1 1 1.0 t\n")
    cut = tmp_path / "cut.trec"
    cut.write_text("q1 Q0 d1 1\n")
    empty = tmp_path / "empty.tsv"
    empty.write_text("")
    assert "ndcg@5" in complaint("compare", qrels, a, b, "--metric", "ndcg@5")
    assert "none of the 8 queries" in complaint("compare", qrels, a, other)
    assert "cut.trec line 1" in complaint("compare", qrels, cut, b)
    assert "missing.trec" in complaint("compare", qrels, a, tmp_path / "missing.trec")
    assert "none of the 0 queries" in complaint("compare", empty, a, b)
    assert "fields" in complaint("compare", a, qrels, b)
    assert "cannot be read" in complaint("compare", tmp_path, a, b)


@pytest.mark.parametrize("verb", ["compare", "overlap", "report", "suite"])
def test_the_help_has_an_example(verb):
    status, out, _ = zerogr(verb, "--help")
    assert status == 0
    assert f"zerogr {verb}" in out.split("Example:")[1]
