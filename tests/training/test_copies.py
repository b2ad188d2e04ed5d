"""Checkpoints under s3://: another machine goes on from them, and of two that finish one product counts."""

from __future__ import annotations

import json

import pytest
from safetensors.torch import load_file

from tests.training.test_loop import StoppedError, assert_same, no_number, run
from zerogr_ray.errors import BuildError
from zerogr_ray.store import Folder
from zerogr_ray.training.checkpoints import read_log
from zerogr_ray.training.copies import Copies, fetched

pytestmark = [pytest.mark.model, pytest.mark.usefixtures("write_at_every_step")]


def test_another_machine_goes_on_from_the_newest_whole_checkpoint(source, shards, tmp_path, s3, caplog):
    _, undisturbed, rows = run(source, shards, tmp_path / "whole", held_out=shards[:1])
    for machine, step in (("one", 3), ("two", 5)):
        with pytest.raises(StoppedError):
            run(source, shards, tmp_path / machine, stop_after=step, copies=Copies(s3), held_out=shards[:1])
    names = Folder(s3).names("checkpoint-", ".json")
    assert names == ["checkpoint-00000004.json", "checkpoint-00000005.json"], "the two newest stay"
    assert read_log(tmp_path / "two")[0]["step"] == 1, "the log came along"
    bad = "checkpoint-00000005/optimizer.safetensors"
    Folder(s3).write(bad, Folder(s3).read(bad)[:-1] + b"?")
    Folder(s3).write("checkpoint-00000006/model.safetensors", b"of a machine that died while it copied")
    result, resumed, _ = run(source, shards, tmp_path / "three", copies=Copies(s3), held_out=shards[:1])
    assert result.resumed_at == 4
    assert "checkpoint-00000005 is not used: optimizer.safetensors is not as it was written" in caplog.text
    assert_same(undisturbed, resumed)
    assert [row["step"] for row in read_log(tmp_path / "three")] == [row["step"] for row in rows]
    product = Copies(s3).finished("f", "model")
    assert_same(load_file(product / "model.safetensors"), load_file(result.product / "model.safetensors"))
    assert read_log(product.parent) == read_log(tmp_path / "three")
    assert (Copies(s3).finished("g", "model"), Copies(s3).finished("f", "adapter")) == (None, None)
    assert not Folder(s3).names("checkpoint-", ".json"), "a finished training keeps its product"


def test_of_two_runs_that_finish_the_same_training_the_first_product_stays(source, shards, tmp_path, s3):
    for name in ("one", "two"):
        run(source, shards, tmp_path / name)
    Copies(s3).finish(tmp_path / "one", "f", "model")
    first = Copies(s3).finished("f", "model")
    Copies(s3).finish(tmp_path / "two", "f", "model")
    assert Copies(s3).finished("f", "model") == first
    Copies(s3).finish(tmp_path / "two", "changed", "model")
    assert Copies(s3).finished("f", "model") is None
    assert Copies(s3).finished("changed", "model").name == "model"


def test_a_diverged_batch_lies_beside_the_checkpoints(source, shards, tmp_path, s3, poison):
    poison(no_number, lambda pack: True)
    with pytest.raises(BuildError, match=f"the batch is in {s3}/diverged-00000001-0.jsonl: look"):
        run(source, shards, tmp_path / "one", copies=Copies(s3))
    rows = Folder(s3).read("diverged-00000001-0.jsonl").decode().splitlines()
    assert [json.loads(row)["suspect"] for row in rows] == [True] * 6


def test_shards_on_the_store_are_the_same_shards(shards, s3, tmp_path):
    Folder(f"{s3}/pairs").upload(shards[0].parent)
    copies = fetched([f"{s3}/pairs/{shard.name}" for shard in shards])
    assert [copy.name for copy in copies] == [shard.name for shard in shards]
    assert [copy.read_bytes() for copy in copies] == [shard.read_bytes() for shard in shards]
    assert fetched([str(shard) for shard in shards]) == list(shards)
