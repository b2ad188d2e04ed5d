"""Shards mapped on a real Ray: what is done is not done again, and a worker's own words reach the user."""

from __future__ import annotations

import os
import time

import pyarrow as pa
import pytest

from zerogr_ray.cluster import ray_cluster
from zerogr_ray.errors import BuildError
from zerogr_ray.stage import Output, ShardWorker, map_shards
from zerogr_ray.store import Folder

pytestmark = pytest.mark.ray

SHARDS = [f"part-{number:06d}.parquet" for number in range(6)]


class Upper:
    """A task without a model."""

    name = "upper"

    def __call__(self, documents, engine):
        return pa.table({"docno": documents["docno"], "text": [text.upper() for text in documents["text"].to_pylist()]})


class PlainWorker(ShardWorker):
    """What Writer is, without a model: reads, computes, commits."""

    def __init__(self, source, tasks, fail_on=""):
        super().__init__(source, tasks)
        self.fail_on = fail_on

    def work(self, shard, task, output):
        if shard == self.fail_on:
            raise ValueError(f"the ink ran out on {shard}")
        output.folder.write_table(shard, task(self.source.folder.read_table(shard), None))
        return 2, 0


class DyingWorker(PlainWorker):
    """Its process dies on one shard, the first time."""

    def __init__(self, source, tasks, die_on):
        super().__init__(source, tasks)
        self.die_on = die_on

    def __call__(self, batch):
        if self.die_on in batch["shard"] and not self.source.folder.exists("died"):
            self.source.folder.write("died", b"")
            os._exit(1)
        return super().__call__(batch)


class WaitingWorker(PlainWorker):
    """Does nothing before a second one is there."""

    def work(self, shard, task, output):
        self.source.folder.write(f"worker-{os.getpid()}", b"")
        until = time.monotonic() + 60
        while len(self.source.folder.names("worker-", "")) < 2 and time.monotonic() < until:
            time.sleep(0.1)
        return super().work(shard, task, output)


@pytest.fixture(scope="module")
def ray():
    with ray_cluster():
        yield


@pytest.fixture
def source(tmp_path):
    output = Output("corpus", Folder(tmp_path / "corpus"))
    for shard in SHARDS:
        output.folder.write_table(shard, pa.table({"docno": [f"{shard}-a", f"{shard}-b"], "text": ["x", "y"]}))
    return output


def run(source, output, worker=PlainWorker, **arguments):
    return map_shards(source, [(Upper(), output)], worker, arguments, {"num_cpus": 1}, 2, lambda shard: 2, quiet=True)


def everything(output):
    return [row for shard in output.shards() for row in output.folder.read_table(shard).to_pylist()]


def test_rows_come_in_the_order_asked_for_whatever_their_shards(source):
    places = [(SHARDS[4], 1), (SHARDS[0], 0), (SHARDS[4], 0), (SHARDS[0], 0)]
    assert [row["docno"] for row in source.rows_at(places)] == [f"{shard}-{'ab'[row]}" for shard, row in places]
    assert source.rows_at(places[:1], ["text"]) == [{"text": "y"}]


def test_only_missing_shards_are_made(ray, source, tmp_path):
    output = Output("upper", Folder(tmp_path / "upper"))
    mine = pa.table({"docno": ["kept"], "text": ["KEPT"]})
    output.folder.write_table(SHARDS[2], mine)
    run(source, output)
    assert output.shards() == SHARDS
    assert output.folder.read_table(SHARDS[2]).equals(mine)
    assert len(everything(output)) == 11


def test_a_task_that_fails_is_reported_in_its_own_words_and_keeps_what_was_done(ray, source, tmp_path):
    output = Output("upper", Folder(tmp_path / "upper"))
    with pytest.raises(BuildError, match=r"writing upper failed: .*the ink ran out on part-000004"):
        run(source, output, fail_on=SHARDS[4])
    run(source, output)
    assert len(everything(output)) == 12


def test_a_worker_that_dies_is_replaced_and_no_row_is_lost_or_doubled(ray, source, tmp_path):
    output = Output("upper", Folder(tmp_path / "upper"))
    run(source, output, worker=DyingWorker, die_on=SHARDS[3])
    assert source.folder.exists("died")
    docnos = [row["docno"] for row in everything(output)]
    assert docnos == [f"{shard}-{x}" for shard in SHARDS for x in "ab"]


def test_actors_grow_with_the_backlog_and_every_shard_is_timed(ray, source, tmp_path):
    output = Output("upper", Folder(tmp_path / "upper"))
    spent = run(source, output, worker=WaitingWorker)["upper"]
    assert len(source.folder.names("worker-", "")) == 2
    assert (spent.rows, len(spent.seconds)) == (12, 6)
    assert max(spent.seconds) < 60
    assert spent.memory > 1 << 26
