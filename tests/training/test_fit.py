import json
import os
import signal
import time
from contextlib import suppress

import psutil
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from safetensors.torch import load_file

from tests.tiny import save_tiny
from tests.training.test_examples import write_shards
from zerogr_ray.config import TrainingConfig
from zerogr_ray.errors import BuildError
from zerogr_ray.models import load_format, load_model
from zerogr_ray.training.batches import pack
from zerogr_ray.training.checkpoints import LOG, read_log
from zerogr_ray.training.examples import ExampleStream
from zerogr_ray.training.fit import fit, training_fingerprint
from zerogr_ray.training.loop import train
from zerogr_ray.training.tasks import Retrieve

pytestmark = pytest.mark.ray

TASK = Retrieve("Retrieve.", 96)
CFG = TrainingConfig(
    epochs=20,
    batch_examples=6,
    learning_rate=3e-3,
    checkpoint_seconds=0.2,
    pack_tokens=128,
    warmup=0.02,
    average=1,
)


@pytest.fixture(scope="module", autouse=True)
def _local_ray(float32):
    import ray

    ray.init("local", num_cpus=4, include_dashboard=False, object_store_memory=1 << 27)
    yield
    ray.shutdown()


@pytest.fixture
def shards(tmp_path):
    return write_shards(tmp_path / "shards", [30, 42])


def training_workers() -> list[int]:
    """Processes of Ray Train workers among the descendants of this process."""
    found = []
    for process in psutil.Process().children(recursive=True):
        with suppress(psutil.NoSuchProcess):  # it has just ended
            if "RayTrainWorker" in " ".join(process.cmdline()):
                found.append(process.pid)
    return found


def test_a_killed_worker_costs_nothing_but_time(source, shards, tmp_path, capfd):
    steps, killed, before = [], [], []
    log = tmp_path / "hurt" / LOG

    def kill_once(row):
        steps.append(row["step"])
        kept = [int(path.name.rpartition("-")[2]) for path in log.parent.glob("checkpoint-*")]
        if row["step"] >= 20 and kept and not killed:
            before.extend(log.read_text().splitlines()[: max(kept)])
            killed.extend(training_workers())
            assert len(killed) == 1
            os.kill(killed[0], signal.SIGKILL)

    hurt = fit(source, shards, TASK, CFG, tmp_path / "hurt", kill_once)
    assert killed
    assert steps[-1] == 240
    # They hold how long each step took: made again, they would differ.
    assert before == log.read_text().splitlines()[: len(before)], "steps before the checkpoint have been made again"
    assert [row["step"] for row in read_log(tmp_path / "hurt")] == list(range(1, 241))
    assert "Failed to query" not in capfd.readouterr().err

    stream = ExampleStream(shards, TASK, load_format(source), CFG)
    calm = train(load_model(source, "float32", "cpu"), stream, CFG, tmp_path / "calm", lambda row: None).product
    expected, found = load_file(calm / "model.safetensors"), load_file(hurt / "model.safetensors")
    assert expected.keys() == found.keys()
    for name in expected:  # other threads add up in another order
        torch.testing.assert_close(found[name], expected[name], rtol=1e-2, atol=1e-4)

    began, again = time.monotonic(), []
    assert fit(source, shards, TASK, CFG, tmp_path / "hurt", again.append) == hurt
    assert (again, time.monotonic() - began < 1) == ([], True)


def test_a_training_that_cannot_go_on_says_why_and_is_not_tried_again(source, tmp_path):
    rows = pa.table({"query": ["red fox"] * 30, "docid": ["fox"] * 29 + [""]})
    pq.write_table(rows, tmp_path / "part-0.parquet")
    cfg = CFG.model_copy(update={"workers": 2, "epochs": 1.0})
    steps = []
    with pytest.raises(BuildError, match=r"the docid '' of the query 'red fox' in .*part-0.parquet to nothing"):
        fit(source, [tmp_path / "part-0.parquet"], TASK, cfg, tmp_path / "out", steps.append)
    assert not steps


def share(source, shards, cfg, rank):
    """What rank `rank` of two is given of each step."""
    return list(ExampleStream(shards, TASK, load_format(source), cfg).step_batches(0, rank, 2))


def test_two_workers_share_each_batch_and_learn_what_one_learns(source, shards, tmp_path):
    cfg = CFG.model_copy(update={"epochs": 1.5, "batch_examples": 8})
    workers, rows = set(), []

    def show(row):
        workers.update(training_workers())
        rows.append(row)

    both = fit(source, shards, TASK, cfg.model_copy(update={"workers": 2}), tmp_path / "two", show)
    one = fit(source, shards, TASK, cfg, tmp_path / "one", lambda row: None)
    assert len(workers) == 2
    shares = [share(source, shards, cfg, rank) for rank in range(2)]
    forwarded = [[sum(len(p.tokens_T) for p in pack(some, cfg.pack_tokens)) for some in each] for each in shares]
    assert all(all(each) for each in forwarded), "each rank has examples of every step"
    assert [row["tokens"] for row in rows] == [sum(step) for step in zip(*forwarded, strict=True)]
    wanted = read_log(tmp_path / "one")
    assert [row["step"] for row in rows] == [row["step"] for row in wanted] == list(range(1, 15))
    assert [row["loss"] for row in rows] == pytest.approx([row["loss"] for row in wanted], abs=1e-3)
    expected, found = load_file(one / "model.safetensors"), load_file(both / "model.safetensors")
    assert expected.keys() == found.keys()
    for name in expected:
        torch.testing.assert_close(found[name], expected[name], rtol=1e-2, atol=1e-3)


def test_the_worker_whose_batch_has_no_loss_is_the_one_that_is_heard(source, shards, tmp_path):
    cfg = CFG.model_copy(update={"workers": 2})
    bad = share(source, shards, cfg, 1)[2][0].query  # of the second worker's share of step 3
    for shard in shards:
        rows = pq.read_table(shard).to_pylist()
        rows = [{**row, "query": f"{bad} ~"} if row["query"] == bad else row for row in rows]
        pq.write_table(pa.Table.from_pylist(rows), shard)
    model = load_model(source, "float32", "cpu")
    model.config.tie_word_embeddings = False
    model.lm_head.weight = torch.nn.Parameter(model.lm_head.weight.detach().clone())
    (token,) = load_format(source).tokens([" ~"])[0][-1:]
    model.get_input_embeddings().weight.data[token] = torch.nan
    model.save_pretrained(source)
    out = tmp_path / "out"
    with pytest.raises(BuildError) as caught:
        fit(source, shards, TASK, cfg, out, lambda row: None)
    (file,) = out.glob("diverged-*")
    assert file.name == "diverged-00000003-1.jsonl"
    assert "the loss of step 3 is nan on examples such as 'q" in str(caught.value)
    assert f"; the batch is in {file}: look" in str(caught.value)
    rows = [json.loads(line) for line in file.read_text().splitlines()]
    assert len(rows) == 3, "this worker's share"
    assert [row["query"] for row in rows if row["suspect"]].count(f"{bad} ~") == 1


def test_the_fingerprint_follows_what_is_learned_not_how_fast(source, shards, tmp_path):
    first = training_fingerprint(source, shards, TASK, CFG)
    faster = CFG.model_copy(update={"workers": 4, "pack_tokens": 999, "checkpoint_seconds": 5.0})
    assert training_fingerprint(source, shards, TASK, faster) == first
    others = [
        training_fingerprint(source, shards, Retrieve("Find.", 96), CFG),
        training_fingerprint(source, shards[:1], TASK, CFG),
        training_fingerprint(source, shards, TASK, CFG.model_copy(update={"seed": 1})),
        training_fingerprint(save_tiny(tmp_path / "other", seed=1), shards, TASK, CFG),
    ]
    assert len({first, *others}) == 5
