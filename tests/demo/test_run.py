"""The demo's table, with an index of a tiny model in the place of the one it builds."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.decoding.test_retriever import make_index
from zerogr_ray import build
from zerogr_ray.config import DecodeConfig
from zerogr_ray.corpus.collections import read_collection
from zerogr_ray.decoding.retriever import Retriever
from zerogr_ray.demo.run import SAMPLES, run_demo
from zerogr_ray.evaluation.evaluate import as_run, search_collection
from zerogr_ray.evaluation.metrics import evaluate, mean

pytestmark = pytest.mark.model

OWN = DecodeConfig(mode="exhaustive", order="docid")


@pytest.fixture
def built(tmp_path, monkeypatch):
    """Builds end with an index that is not searched as published."""

    def build_index(corpus, out, config, quiet):
        rows = (Path(corpus) / "corpus.jsonl").read_text("utf-8").splitlines()
        docnos = [json.loads(row)["_id"] for row in rows]
        made = make_index(tmp_path, docnos, docnos, choose=lambda _: {"decode": OWN.model_dump()})
        made.rename(out)
        return build.BuildReport(str(out), len(docnos), len(docnos), 0, "", unchanged=False)

    monkeypatch.setattr(build, "build_index", build_index)


def test_the_published_algorithm_has_a_row_on_the_same_queries(built, tmp_path):
    report = run_demo(tmp_path / "demo", quiet=True)
    assert list(report.figures) == ["zerogr", "published", "bm25"]
    collection, retriever = read_collection(str(tmp_path / "demo" / "stdlib")), Retriever.load(report.index)
    for system, config in (("zerogr", OWN), ("published", DecodeConfig())):
        found = as_run(search_collection(retriever, collection, config, 100, quiet=True))
        assert report.figures[system] == mean(evaluate(collection.qrels, found))
    assert report.figures["zerogr"] != report.figures["published"]
    assert [line.split()[0] for line in report.as_text().splitlines()[2:6]] == ["system", "zerogr", "published", "bm25"]
    assert list(report.answers) == list(SAMPLES)
