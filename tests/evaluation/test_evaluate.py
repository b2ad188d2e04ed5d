"""`zerogr evaluate` puts the baselines that were asked for beside ours, and writes every system's run."""

import json

import pytest

from tests.decoding.test_retriever import make_index
from tests.evaluation.test_compare import complaint, zerogr
from tests.tiny import save_tiny
from zerogr_ray.config import DecodeConfig
from zerogr_ray.corpus.trec import read_run

pytestmark = pytest.mark.model

TEXTS = ["red fox", "red hat", "json file", "web"]


@pytest.fixture
def collection(tmp_path):
    folder = tmp_path / "collection"
    (folder / "qrels").mkdir(parents=True)
    (folder / "corpus.jsonl").write_text(
        "".join(json.dumps({"_id": f"d{i}", "text": text}) + "\n" for i, text in enumerate(TEXTS))
    )
    (folder / "queries.jsonl").write_text('{"_id": "q1", "text": "red fox"}\n{"_id": "q2", "text": "json file"}\n')
    (folder / "qrels" / "test.tsv").write_text("query-id\tcorpus-id\tscore\nq1\td0\t1\nq2\td2\t1\n")
    return folder


def test_an_encoder_gets_a_row_and_a_run_that_can_be_compared(tmp_path, collection):
    index = make_index(tmp_path / "index", TEXTS)
    encoder = save_tiny(tmp_path / "encoder")
    runs = tmp_path / "runs"
    runs.mkdir()
    status, out, err = zerogr("evaluate", index, collection, "--encoder", encoder, "--run", runs, "--json", "--quiet")
    figures = json.loads(out)
    assert status == 0, err
    assert figures["encoder"]["acc@1"] == 1.0  # a query that is the document has cosine 1
    assert sorted(file.name for file in runs.iterdir()) == ["bm25.trec", "encoder.trec", "zerogr.trec"]
    status, out, err = zerogr("compare", collection / "qrels" / "test.tsv", runs / "encoder.trec", runs / "bm25.trec")
    assert status == 0, err
    assert out.splitlines()[3].startswith("A-B\t+0.0000")


def test_a_missing_encoder_is_refused(tmp_path, collection):
    index = make_index(tmp_path / "index", TEXTS)
    assert "no model folder" in complaint("evaluate", index, collection, "--encoder", "./nothing", "--quiet")


def test_the_published_algorithm_keeps_its_row_beside_what_the_index_chose(tmp_path, collection):
    own = DecodeConfig(mode="exhaustive", order="docid", draws=3)
    index = make_index(tmp_path / "index", TEXTS, choose=lambda _: {"decode": own.model_dump()})
    runs = {name: tmp_path / name for name in ("chosen", "plain", "alone")}
    for name, more in {"chosen": (), "plain": ("--published", "--draws", "3"), "alone": ("--no-paper",)}.items():
        runs[name].mkdir()
        status, _, err = zerogr("evaluate", index, collection, "--run", runs[name], "--quiet", "--no-bm25", *more)
        assert status == 0, err
    wrote = {name: sorted(file.name for file in folder.iterdir()) for name, folder in runs.items()}
    assert wrote == {"chosen": ["published.trec", "zerogr.trec"], "plain": ["zerogr.trec"], "alone": ["zerogr.trec"]}
    kept, plain = (read_run(str(runs[a] / f"{b}.trec")) for a, b in (("chosen", "published"), ("plain", "zerogr")))
    assert kept == plain
    assert kept != read_run(str(runs["chosen"] / "zerogr.trec"))
    status, out, err = zerogr("evaluate", index, collection, "--json", "--quiet")
    assert status == 0, err
    figures = json.loads(out)
    assert list(figures["per_query"]) == ["zerogr", "published", "bm25"]
    assert all(list(rows) == ["q1", "q2"] for rows in figures["per_query"].values())
    status, out, err = zerogr("evaluate", index, collection, "--quiet")
    assert [line.split()[0] for line in out.splitlines()] == ["system", "zerogr", "published", "bm25"], err
