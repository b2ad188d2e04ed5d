"""Two real vLLM engines on one machine: each on cores of its own, together writing what one writes."""

from __future__ import annotations

import os
import time

import pyarrow as pa
import pytest

from zerogr_ray.cluster import ray_cluster
from zerogr_ray.config import DEFAULT_MODEL, DocIdConfig, LLMConfig
from zerogr_ray.docids.generate import WriteDocIds
from zerogr_ray.generation.writer import Writer, engine_resources
from zerogr_ray.models import find_model
from zerogr_ray.stage import Output, map_shards
from zerogr_ray.store import Folder

pytestmark = [pytest.mark.model, pytest.mark.ray, pytest.mark.vllm, pytest.mark.slow, pytest.mark.fault]

SUBJECTS = ["foxes", "tides", "bread", "chess", "glass", "bees", "tea", "trains"]


class SeenWriter(Writer):
    """Notes the cores of all its threads when its first shard is written, and then waits for the other engine."""

    def work(self, shard, task, output):
        done = super().work(shard, task, output)
        cores = {core for thread in os.listdir("/proc/self/task") for core in os.sched_getaffinity(int(thread))}
        self.source.folder.write_json(f"engine-{os.getpid()}.json", sorted(cores))
        until = time.monotonic() + 240
        while len(self.source.folder.names("engine-", ".json")) < 2 and time.monotonic() < until:
            time.sleep(0.1)
        return done


def written(tmp_path, source, engines):
    llm = LLMConfig(engine="vllm", dtype="float32", engines=engines, model=str(find_model(DEFAULT_MODEL)))
    output = Output("docids", Folder(tmp_path / f"docids-{engines}"))
    given = (SeenWriter if engines > 1 else Writer, {"llm": llm}, engine_resources(llm), engines, lambda shard: 1)
    map_shards(source, [(WriteDocIds(DocIdConfig()), output)], *given, quiet=True)
    return [row for shard in output.shards() for row in output.folder.read_table(shard).to_pylist()]


@pytest.mark.skipif(len(os.sched_getaffinity(0)) < 2, reason="there is one core")
def test_two_vllm_engines_write_side_by_side_on_cores_of_their_own_what_one_writes(tmp_path):
    source = Output("corpus", Folder(tmp_path / "corpus"))
    for number, subject in enumerate(SUBJECTS):
        row = {"docno": [f"d{number}"], "title": [subject], "text": [f"All that one has to know of {subject}."]}
        source.folder.write_table(f"part-{number:06d}.parquet", pa.table(row))
    with ray_cluster():
        together = written(tmp_path, source, 2)
        first, second = (set(source.folder.read_json(name)) for name in source.folder.names("engine-", ".json"))
        assert not first & second
        assert written(tmp_path, source, 1) == together
