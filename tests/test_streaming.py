"""A corpus far larger than the object store goes through all stages that need no language model."""

from __future__ import annotations

import json
import random
import threading
from contextlib import contextmanager

import numpy as np
import pyarrow.compute as pc
import pytest

from benchmarks.scale import Measured
from tests.tiny import save_tiny
from zerogr_ray.build import build_index
from zerogr_ray.cluster import ray_cluster
from zerogr_ray.config import IndexConfig, make_config
from zerogr_ray.index import dataset
from zerogr_ray.index.bundle import open_index

pytestmark = [pytest.mark.model, pytest.mark.ray]

NO_LM = {
    "docids.written_by": "rule",
    "queries.per_document": 0,
    "queries.passages": 0,
    "training.epochs": 0,
    "calibration.texts": 0,
    "calibration.queries": 0,
    "postings": "none",
    "corpus.shard_rows": 1 << 13,
}

SORTED = 120
"""Bytes of a docid that may be spilled: its keys of 16 tokens, as they are packed, dealt into ranges, and sorted."""


def write_corpus(file, documents):
    """Short documents: a title and a sentence, of eight words out of 20,000; every hundredth is there twice."""
    rng = random.Random(0)
    words = [f"{first}{second}" for first in "bcdfghklmn" for second in range(2000)]
    with file.open("w") as rows:
        for row in range(documents):
            some = words[:8] if row % 100 == 0 else rng.choices(words, k=8)
            rows.write(json.dumps({"_id": f"d{row}", "title": " ".join(some[:3]), "text": " ".join(some[3:])}) + "\n")


@contextmanager
def watched_store():
    """The most bytes that Ray's object store held, held beyond its limit, and has spilled."""
    import ray
    from ray._private.internal_api import get_memory_info_reply, get_state_from_address

    state = get_state_from_address(ray.get_runtime_context().gcs_address)
    most, ended = {"used": 0, "fallback": 0, "spilled": 0}, threading.Event()

    def watch():
        while not ended.wait(0.5):
            stats = get_memory_info_reply(state).store_stats
            most["used"] = max(most["used"], stats.object_store_bytes_used)
            most["fallback"] = max(most["fallback"], stats.object_store_bytes_fallback)
            most["spilled"] = stats.spilled_bytes_total

    thread = threading.Thread(target=watch)
    thread.start()
    try:
        yield most
    finally:
        ended.set()
        thread.join()


@pytest.mark.parametrize(
    ("documents", "store"),
    [
        pytest.param(20_000, 80_000_000, id="20 thousand"),
        pytest.param(5_000_000, 200_000_000, id="5 million", marks=[pytest.mark.fault, pytest.mark.timeout(7200)]),
    ],
)
def test_memory_and_object_store_stay_bounded_while_a_corpus_streams_through(tmp_path, monkeypatch, documents, store):
    write_corpus(tmp_path / "corpus.jsonl", documents)
    model = str(save_tiny(tmp_path / "tiny"))
    cfg = make_config(IndexConfig, {}, {**NO_LM, "model": model, "llm.model": model})
    monkeypatch.setattr(dataset, "NEAR", 0)
    if documents > 1_000_000:
        monkeypatch.setattr(dataset, "FAR", 0)  # the sort goes through the store too
    with ray_cluster(object_store=store), watched_store() as stored, Measured() as measured:
        before = measured.anonymous_now()
        report = build_index(str(tmp_path / "corpus.jsonl"), tmp_path / "index", cfg, quiet=True)
    grown = measured.anonymous - before
    print(report, measured.figures(), stored, f"{grown / documents:.0f} bytes a document")
    assert (report.documents, report.rejected) == (documents, 0)
    assert stored["used"] <= store
    assert stored["fallback"] == 0
    assert stored["spilled"] <= SORTED * documents
    assert grown < 250e6 + 250 * documents
    index = open_index(tmp_path / "index")
    assert pc.count_distinct(index.documents["docno"]).as_py() == documents
    assert report.collisions["identical"] == -(-documents // 100)
    wanted = np.linspace(0, documents - 1, 50).astype(int)
    rows, unknown = index.rows_of([f"d{row}" for row in wanted])
    assert (len(rows), unknown) == (50, [])
