"""A whole build under s3://, on a real Ray with a tiny model: corpus, model, adapter, work folder and index."""

from __future__ import annotations

import json
import shutil

import pytest

from tests.command import zerogr
from tests.tiny import save_tiny
from zerogr_ray.adapters import read_adapter
from zerogr_ray.build import build_index
from zerogr_ray.cache import cache_folder
from zerogr_ray.cluster import ray_cluster
from zerogr_ray.config import IndexConfig, make_config
from zerogr_ray.decoding.retriever import Retriever
from zerogr_ray.index.manifest import pinned
from zerogr_ray.store import Folder

pytestmark = [pytest.mark.model, pytest.mark.ray, pytest.mark.timeout(400)]

TEXTS = ["the red fox hunts mice", "the red hat of a fox", "open a json file", "the same words", "parse the flags"]


def test_a_build_lives_under_s3_from_its_corpus_to_its_index(s3, tmp_path):
    rows = [{"_id": f"d{number}", "text": text} for number, text in enumerate(TEXTS)]
    Folder(s3).write("corpus/docs.jsonl", "".join(json.dumps(row) + "\n" for row in rows).encode())
    Folder(f"{s3}/tiny").upload(save_tiny(tmp_path / "tiny"))
    triples = [{"query": f"where is {i}", "positive": f"The {i} is here.", "title": str(i)} for i in range(12)]
    (tmp_path / "triples.jsonl").write_text("".join(json.dumps(row) + "\n" for row in triples))
    tuning = ["--set", f"model={s3}/tiny", "--set", "training.batch_examples=6", "--set", "training.lora_rank=2"]
    settings = {
        "model": f"{s3}/tiny",
        "llm.model": f"{s3}/tiny",
        "llm.engine": "transformers",
        "corpus.shard_rows": 3,
        "docids.written_by": "rule",
        "queries.adapter": f"{s3}/adapter",
        "queries.per_document": 2,
        "queries.max_new_tokens": 4,
        "training.epochs": 1,
        "calibration.texts": 2,
    }
    cfg = make_config(IndexConfig, {}, settings)
    with ray_cluster():
        status, _, err = zerogr("train", "queries", tmp_path / "triples.jsonl", f"{s3}/adapter", *tuning, "--quiet")
        assert status == 0, err
        report = build_index(f"{s3}/corpus", f"{s3}/index", cfg, quiet=True)
        assert (report.index, report.documents, report.unchanged) == (f"{s3}/index", 5, False)
        before = Folder(f"{s3}/index.work").files()
        # Another machine, which has nothing yet: all that was done is found on the store.
        shutil.rmtree(cache_folder())
        assert build_index(f"{s3}/corpus", f"{s3}/index", cfg, quiet=True).unchanged
        first = pinned(f"{s3}/index")
        Folder(first).remove("by_docno.npy")
        again = build_index(f"{s3}/corpus", f"{s3}/index", cfg, quiet=True)
    assert not again.unchanged, "an index that is not whole is published again"
    assert {"docids + queries", "training"} <= set(again.seconds)
    assert Folder(f"{s3}/index.work").files() == before, "nothing was written or trained twice"
    assert pinned(f"{s3}/index") != first
    retriever = Retriever.load(f"{s3}/index", "cpu", "float32")
    assert retriever.search("json file", k=1)[0].docno == "d2"
    assert read_adapter(f"{s3}/adapter").task == "queries"
    assert not list((cache_folder() / "scratch").glob("*/*")), "what was made on the way is gone"
