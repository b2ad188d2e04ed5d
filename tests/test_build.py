"""A whole build on Ray with a tiny model: what the stages between writing and training did is said and kept."""

from __future__ import annotations

import json
import shutil

import pyarrow.parquet as pq
import pytest

from tests.tiny import save_tiny
from zerogr_ray.build import build_index, writers_of
from zerogr_ray.cluster import ray_cluster
from zerogr_ray.config import IndexConfig, make_config
from zerogr_ray.decoding.choose import usual
from zerogr_ray.decoding.retriever import Retriever
from zerogr_ray.index.bundle import open_index
from zerogr_ray.index.inspect import inspect_index
from zerogr_ray.models import load_tokenizer
from zerogr_ray.queries.filter import COUNTED

pytestmark = [pytest.mark.model, pytest.mark.ray, pytest.mark.timeout(900)]

TEXTS = ["the red fox hunts mice", "the red hat of a fox", "open a json file", "the same words", "the same words"]


def write_corpus(folder):
    rows = [{"_id": f"d{number}", "text": text} for number, text in enumerate(TEXTS)]
    (folder / "corpus.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))


def small_build(folder):
    """The corpus in `folder`, and settings of a build of it with a tiny model, four queries a document."""
    write_corpus(folder)
    model = str(save_tiny(folder / "tiny"))
    return {
        "model": model,
        "llm.model": model,
        "llm.engine": "transformers",
        "corpus.shard_rows": 3,
        "queries.examples": 0,
        "queries.per_document": 4,
        "queries.max_new_tokens": 4,
    }


def test_a_build_says_what_it_did_keeps_it_and_does_again_only_what_another_setting_asks_for(tmp_path):
    settings = small_build(tmp_path) | {
        "docids.examples": 0,
        "docids.max_new_tokens": 4,
        "training.epochs": 0.1,
    }

    cfg = make_config(IndexConfig, {}, settings)
    with ray_cluster():
        report = build_index(str(tmp_path / "corpus.jsonl"), tmp_path / "index", cfg, quiet=True)
        _another_prompt(tmp_path, settings)
    counts, facts = report.queries, inspect_index(tmp_path / "index")
    assert counts["written"] == 20 == sum(counts[name] for name in ("kept", *COUNTED))
    # Random weights may write what they like: two identical documents share a docid, no others do.
    assert (report.docids, facts["docids"]["distinct"], facts["docids"]["largest_collision"]) == (4, 4, 2)
    assert (report.collisions, report.queries) == (facts["collisions"], facts["queries"])
    assert facts["collisions"]["identical"] == 2
    assert facts["coverage"]["documents"] == 5
    assert 0 <= facts["coverage"]["tfidf_covered"] <= 1


def test_a_second_training_learns_from_the_queries_that_the_first_retriever_answers(tmp_path):
    settings = small_build(tmp_path) | {
        "docids.written_by": "rule",
        "queries.filter.repeats": 0,
        "queries.filter.shared": False,
        "queries.filter.round_trip": 0,
        "queries.filter.retriever": 2,
    }
    given = (str(tmp_path / "corpus.jsonl"), tmp_path / "index", make_config(IndexConfig, {}, settings))
    with ray_cluster():
        counts = build_index(*given, quiet=True).queries
        assert build_index(*given, quiet=True).unchanged
        shutil.rmtree(tmp_path / "index")
        before = {path: path.stat().st_mtime_ns for path in _stages(tmp_path, "first", "filtered", "training")}
        build_index(*given, quiet=True)
        assert before == {path: path.stat().st_mtime_ns for path in before}, "what was done is done again"
    assert counts["written"] == 20 == counts["kept"] + counts["not found again"]
    [written], [kept], [first] = (_stages(tmp_path, name) for name in ("queries", "filtered", "first"))
    assert len(_stages(tmp_path, "training")) == 2
    retriever = Retriever.load(first, "cpu")
    own = dict(zip(*(retriever.bundle.documents[name].to_pylist() for name in ("docno", "docid")), strict=True))
    for docno, queries in _queries(written).items():
        found = retriever.search_many(queries, 2, config=usual(retriever.bundle))
        answered = [q for q, hits in zip(queries, found, strict=True) if own[docno] in [hit.docid for hit in hits]]
        assert _queries(kept)[docno] == answered
    assert 0 < counts["kept"] < 20


def _stages(folder, *names):
    return [path for name in names for path in sorted((folder / "index.work").glob(f"{name}-*"))]


def _queries(stage):
    tables = [pq.read_table(path).to_pylist() for path in sorted(stage.glob("part-*.parquet"))]
    return {row["docno"]: row["queries"] for rows in tables for row in rows}


def test_what_an_lm_with_other_tokens_expects_is_left_out(tmp_path):
    model, other = save_tiny(tmp_path / "tiny"), save_tiny(tmp_path / "other")
    tokenizer = load_tokenizer(other)
    tokenizer.add_tokens(["another"])
    tokenizer.save_pretrained(other)
    for writer, expected in ((model, True), (other, False)):
        cfg = make_config(IndexConfig, {}, {"model": str(model), "llm.model": str(writer)})
        assert writers_of(cfg)[0].expected is expected


def test_docids_by_rule_without_queries_and_training_need_no_language_model_to_write(tmp_path):
    write_corpus(tmp_path)
    model = str(save_tiny(tmp_path / "tiny"))
    writer = tmp_path / "writer"
    shutil.copytree(model, writer)
    next(writer.glob("*.safetensors")).write_bytes(b"not weights")  # read, it would fail
    settings = {
        "model": model,
        "llm.model": str(writer),
        "docids.written_by": "rule",
        "queries.per_document": 0,
        "training.epochs": 0,
        "calibration.texts": 2,
    }
    with ray_cluster():
        build_index(
            str(tmp_path / "corpus.jsonl"), tmp_path / "index", make_config(IndexConfig, {}, settings), quiet=True
        )
    retriever = Retriever.load(tmp_path / "index", "cpu", "float32")
    assert retriever.bundle.decode == usual(retriever.bundle)
    assert retriever.bundle.decode.plan_ahead
    assert retriever.search("json", k=1)[0].docno == "d2"


def _another_prompt(folder, settings):
    """Another docid prompt rebuilds docids and what follows, but no queries."""

    def written(*names):
        found = [path for name in names for path in (folder / "index.work").glob(f"{name}-*/part-*.parquet")]
        return {path: path.stat().st_mtime_ns for path in found}

    queries, docids = written("queries", "filtered"), written("docids")
    cfg = make_config(IndexConfig, {}, {**settings, "docids.prompt": "Name the document.", "training.epochs": 0})
    report = build_index(str(folder / "corpus.jsonl"), folder / "other", cfg, folder / "index.work", quiet=True)
    assert not report.unchanged
    assert written("queries", "filtered") == queries
    assert len(written("docids")) == 2 * len(docids)
    assert not open_index(folder / "other").training, "no epoch, no training"
