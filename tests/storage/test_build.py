"""A whole build under s3://, on a real Ray with a tiny model: corpus, model, adapter, work folder and index."""

from __future__ import annotations

import json
import shutil

import pytest

from tests.command import zerogr
from tests.storage.server import OWNER
from tests.test_publish import CFG, make_left
from tests.tiny import save_tiny
from zerogr_ray.adapters import read_adapter
from zerogr_ray.build import build_index
from zerogr_ray.cache import cache_folder
from zerogr_ray.cluster import ray_cluster
from zerogr_ray.config import IndexConfig, make_config
from zerogr_ray.decoding.retriever import Retriever
from zerogr_ray.index.bundle import open_index
from zerogr_ray.index.manifest import pinned
from zerogr_ray.publish import Left, publish
from zerogr_ray.stage import Output
from zerogr_ray.store import Folder

pytestmark = [pytest.mark.model, pytest.mark.ray, pytest.mark.timeout(400)]

TEXTS = ["the red fox hunts mice", "the red hat of a fox", "open a json file", "the same words", "parse the flags"]


@pytest.fixture(scope="module", autouse=True)
def _ray(server, tmp_path_factory):
    """Workers have another cache than the driver, as on another machine."""
    with pytest.MonkeyPatch.context() as patch:
        server.use(patch, *OWNER)
        patch.setenv("ZEROGR_CACHE", str(tmp_path_factory.mktemp("node")))
        with ray_cluster():
            yield


@pytest.fixture(autouse=True)
def _blind(monkeypatch):
    """No node sees a folder of the driver's machine: all that they share goes through the store."""
    monkeypatch.setattr("zerogr_ray.cluster._blind_node", lambda path: "10.0.0.7")


def test_priors_and_ways_of_decoding_are_measured_by_workers_that_see_nothing_but_the_store(s3, tmp_path):
    work, local = Folder(f"{s3}/index.work"), make_left(tmp_path)
    work.upload(tmp_path / "work")
    outputs = [Output.at(work, name, "k") for name in ("corpus", "docids", "pairs")]
    left = Left(*outputs, local.bags, local.tuned, local.format)
    manifest = publish(f"{s3}/index", left, CFG, {"key": "k"}, work, quiet=True)
    assert len(manifest["decode_tried"]) > 1
    assert open_index(f"{s3}/index").priors is not None
    kept = {name.partition("/")[2].partition("/")[0] for name in work.files() if name.startswith("shared/")}
    assert len(kept) == 2, "of what was shared the model stays, with its note; the index has gone"


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
    status, _, err = zerogr("train", "queries", tmp_path / "triples.jsonl", f"{s3}/adapter", *tuning, "--quiet")
    assert status == 0, err
    report = build_index(f"{s3}/corpus", f"{s3}/index", cfg, quiet=True)
    assert (report.index, report.documents, report.unchanged) == (f"{s3}/index", 5, False)
    before = made_by_stages(f"{s3}/index.work")
    # Another machine, which has nothing yet: all that was done is found on the store.
    shutil.rmtree(cache_folder())
    assert build_index(f"{s3}/corpus", f"{s3}/index", cfg, quiet=True).unchanged
    first = pinned(f"{s3}/index")
    Folder(first).write("by_docno.npy", Folder(first).read("by_docno.npy")[:-1] + b"?")
    again = build_index(f"{s3}/corpus", f"{s3}/index", cfg, quiet=True)
    assert not again.unchanged, "an index that is not whole is published again"
    assert {"docids + queries", "training"} <= set(again.seconds)
    assert made_by_stages(f"{s3}/index.work") == before, "nothing was written or trained twice"
    assert pinned(f"{s3}/index") != first
    retriever = Retriever.load(f"{s3}/index", "cpu", "float32")
    assert retriever.search("json file", k=1)[0].docno == "d2"
    assert read_adapter(f"{s3}/adapter").task == "queries"
    assert not list((cache_folder() / "scratch").glob("*/*")), "what was made on the way is gone"


def made_by_stages(work):
    return {name: stamp for name, stamp in Folder(work).files().items() if not name.startswith("shared/")}
