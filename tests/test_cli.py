"""The command line as a new user meets it: mistakes get one sentence and exit status 2."""

from __future__ import annotations

import gzip
import json
import shutil
import subprocess
import sys

import pytest

from tests.command import zerogr
from tests.decoding.test_retriever import make_index
from tests.tiny import save_tiny

pytestmark = pytest.mark.model


def complaint(*arguments):
    """The one sentence of a refused command."""
    status, out, err = zerogr(*arguments)
    assert (status, out) == (2, ""), err
    lines = [line for line in err.splitlines() if line.startswith("zerogr: ")]
    assert len(lines) == 1, err
    assert "Traceback" not in err
    return lines[0]


@pytest.fixture(scope="module")
def index(tmp_path_factory):
    return make_index(tmp_path_factory.mktemp("cli"), ["red fox", "red hat", "open json file", "web browser"])


@pytest.fixture(scope="module")
def tiny(tmp_path_factory):
    return save_tiny(tmp_path_factory.mktemp("tiny"))


@pytest.fixture
def collection(tmp_path):
    folder = tmp_path / "collection"
    (folder / "qrels").mkdir(parents=True)
    rows = [
        {"_id": f"d{i}", "title": "", "text": text} for i, text in enumerate(["red fox", "red hat", "json file", "web"])
    ]
    (folder / "corpus.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (folder / "queries.jsonl").write_text('{"_id": "q1", "text": "which fox is red"}\n{"_id": "q2", "text": "json"}\n')
    (folder / "qrels" / "test.tsv").write_text("query-id\tcorpus-id\tscore\nq1\td0\t1\nq2\td2\t1\n")
    return folder


def test_search_prints_one_line_per_document(index):
    status, out, _ = zerogr("search", index, "fox", "-k", "3")
    lines = [line.split("\t") for line in out.splitlines()]
    assert status == 0
    assert [line[0] for line in lines] == ["1", "2", "3"]
    assert {line[1] for line in lines} < {"d0", "d1", "d2", "d3"}


def test_search_speaks_json(index):
    status, out, _ = zerogr("search", index, "fox", "--json")
    hits = json.loads(out)["hits"]
    assert status == 0
    assert list(hits[0])[:7] == ["docno", "docid", "rank", "score", "draw", "temperature", "logprob"]
    assert len(hits) == 4


def test_a_search_takes_the_settings_of_the_decoder(index):
    status, out, _ = zerogr("search", index, "fox", "--json", "--set", "mode=exhaustive")
    hits = json.loads(out)["hits"]
    assert status == 0
    assert all(hit["score"] == hit["calibrated"] == hit["docid_logprob"] for hit in hits)
    status, _, err = zerogr("search", index, "fox", "--set", "mode=best")
    assert status == 2
    assert "mode" in err
    assert "best_first" in err


def test_evaluate_prints_a_table_beside_bm25_and_writes_a_run(index, collection, tmp_path):
    status, out, err = zerogr("evaluate", index, collection, "--run", tmp_path / "run.trec", "--json")
    figures = json.loads(out)
    assert status == 0, err
    assert figures["queries"] == 2
    assert set(figures["zerogr"]) == set(figures["bm25"]) == {"ndcg@10", "acc@1", "recall@100", "mrr@10"}
    assert figures["zerogr"]["recall@100"] == 1.0
    each = figures["per_query"]
    assert each.keys() == {"zerogr", "bm25"}, "the index is searched as published: that needs no second row"
    for system, queries in each.items():
        for metric, mean in figures[system].items():
            assert mean == pytest.approx(sum(row[metric] for row in queries.values()) / 2)
    assert len((tmp_path / "run.trec").read_text().splitlines()) == 8


def test_inspect_says_what_is_in_an_index(index):
    status, out, _ = zerogr("inspect", index, "--json")
    facts = json.loads(out)
    assert status == 0
    assert facts["docids"]["documents"] == facts["docids"]["distinct"] == 4
    assert facts["docids"]["prefix_max"] >= facts["docids"]["prefix_mean"] > 1
    assert len(facts["samples"]) == 4


@pytest.mark.parametrize("verb", ["index", "search", "evaluate", "inspect", "demo"])
def test_every_verb_has_help_with_an_example(verb):
    status, out, _ = zerogr(verb, "--help")
    assert status == 0
    assert f"zerogr {verb}" in out.split("Example:")[1]


def test_wrong_corpora_get_one_sentence(tmp_path, tiny):
    out = tmp_path / "out"
    (tmp_path / "empty.jsonl").write_text("")
    (tmp_path / "misspelt.jsonl").write_text('{"_id": "1", "txet": "hello"}\n')
    (tmp_path / "cut.jsonl.gz").write_bytes(gzip.compress(b'{"_id": "1", "text": "x"}\n' * 9999)[:-20])
    models = ("--set", f"model={tiny}", "--set", f"llm.model={tiny}")
    assert "missing.jsonl" in complaint("index", tmp_path / "missing.jsonl", out, *models)
    assert "empty.jsonl" in complaint("index", tmp_path / "empty.jsonl", out, *models)
    assert "txet" in complaint("index", tmp_path / "misspelt.jsonl", out, *models)
    assert "cut.jsonl.gz" in complaint("index", tmp_path / "cut.jsonl.gz", out, *models)
    assert not out.exists()
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.txt").write_text("precious")
    (tmp_path / "good.jsonl").write_text('{"_id": "1", "text": "x"}\n')
    assert "is not an index" in complaint("index", tmp_path / "good.jsonl", tmp_path / "mine", *models)


def test_wrong_models_get_one_sentence(tmp_path, tiny):
    corpus = tmp_path / "c.jsonl"
    corpus.write_text('{"_id": "1", "text": "hello"}\n')
    broken = shutil.copytree(tiny, tmp_path / "no-tokenizer")
    (broken / "tokenizer.json").unlink()
    assert "has no tokenizer" in complaint(
        "index", corpus, tmp_path / "o", "--set", f"model={broken}", "--set", f"llm.model={tiny}"
    )
    broken = shutil.copytree(tiny, tmp_path / "no-template")
    for file in (broken / "chat_template.jinja", broken / "tokenizer_config.json"):
        if file.exists():
            text = file.read_text() if file.suffix == ".json" else ""
            file.unlink()
            if text:
                file.write_text(json.dumps({k: v for k, v in json.loads(text).items() if k != "chat_template"}))
    assert "has no chat template" in complaint(
        "index", corpus, tmp_path / "o", "--set", f"model={broken}", "--set", f"llm.model={tiny}"
    )
    assert "no model folder" in complaint("index", corpus, tmp_path / "o", "--set", "model=./nothing")


def test_wrong_settings_get_one_sentence(tmp_path):
    corpus = tmp_path / "c.jsonl"
    corpus.write_text('{"_id": "1", "text": "hello"}\n')
    assert "did you mean 'epochs'" in complaint("index", corpus, tmp_path / "o", "--set", "training.epoch=1")
    assert "NAME=VALUE" in complaint("index", corpus, tmp_path / "o", "--set", "training.epochs")
    assert "there is no run file" in complaint("index", corpus, tmp_path / "o", "--config", tmp_path / "no.toml")
    assert "there is no run file" in complaint("index", corpus, tmp_path / "o", "--config", tmp_path)
    status, _, err = zerogr("search", "--no-such-option")
    assert status == 2
    assert "No such option" in err


def test_wrong_searches_get_one_sentence(index, tmp_path):
    assert "k is 0" in complaint("search", index, "fox", "-k", "0")
    assert "the query is empty" in complaint("search", index, "")
    assert "does not exist" in complaint("search", tmp_path / "nothing", "fox")
    assert "is a file" in complaint("search", index / "manifest.json", "fox")
    broken = shutil.copytree(index, tmp_path / "broken")
    tokens = broken / "trie" / "tokens.npy"
    tokens.write_bytes(tokens.read_bytes()[:-1])
    assert "tokens.npy" in complaint("search", broken, "fox")
    assert "queries" in complaint("evaluate", index, tmp_path)


def test_a_very_long_query_works(index):
    status, out, _ = zerogr("search", index, "word " * 20_000, "-k", "1")
    assert (status, len(out.splitlines())) == (0, 1)


def test_the_installed_command_refuses_with_status_2_and_no_traceback(tmp_path):
    done = subprocess.run(
        [sys.executable, "-m", "zerogr_ray.cli", "search", tmp_path / "nothing", "fox"],
        capture_output=True,
        text=True,
        timeout=240,
        check=False,
    )
    assert done.returncode == 2
    assert done.stderr.splitlines()[-1].startswith("zerogr: ")
    assert "Traceback" not in done.stderr
