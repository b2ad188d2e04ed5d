import json
import math
import multiprocessing

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from safetensors.torch import load_file, save_file

from tests.training.test_examples import write_shards
from zerogr_ray.config import TrainingConfig
from zerogr_ray.errors import BuildError
from zerogr_ray.models import load_format, load_model
from zerogr_ray.training.checkpoints import finished, read_log
from zerogr_ray.training.examples import ExampleStream
from zerogr_ray.training.loop import learning_rate, train
from zerogr_ray.training.tasks import Retrieve

pytestmark = [pytest.mark.model, pytest.mark.usefixtures("write_at_every_step")]

CFG = TrainingConfig(
    epochs=2, batch_examples=6, learning_rate=3e-3, checkpoint_seconds=1e-6, pack_tokens=128, average=1
)
UNEVEN = CFG.model_copy(update={"batch_examples": 5})
"""Two workers get 3 and 2 examples of a step, and 2 and 1 of the last."""


TASK = Retrieve("Retrieve.", 96)


class StoppedError(Exception):
    pass


def run(
    source, shards, folder, cfg=CFG, stop_after=None, fingerprint="f", rank=0, world=1, beside=(), watch=None, **more
):
    """One training; returns (result, weights by name, steps reported)."""
    seen = []

    def report(row):
        seen.append(row)
        if watch:
            watch(row)
        if row["step"] == stop_after:
            raise StoppedError

    model = load_model(source, "float32", device="cpu")
    stream = ExampleStream(shards, TASK, load_format(source), cfg, beside, buffer_rows=8)
    result = train(model, stream, cfg, folder, report, rank, world, fingerprint, **more)
    return result, {name: p.detach().clone() for name, p in model.named_parameters()}, seen


def assert_same(weights, others, tolerance=1e-6):
    assert weights.keys() == others.keys()
    for name in weights:
        torch.testing.assert_close(weights[name], others[name], rtol=tolerance, atol=tolerance)


def test_loss_falls_and_each_step_is_reported(source, shards, tmp_path):
    cfg = CFG.model_copy(update={"epochs": 12.0, "learning_rate": 1e-2})
    result, _, seen = run(source, shards, tmp_path / "out", cfg)
    assert [row["step"] for row in seen] == list(range(1, 49)) == [row["step"] for row in read_log(tmp_path / "out")]
    assert seen[-1]["loss"] < 0.5 * seen[0]["loss"]
    assert set(seen[0]) == {
        "step",
        "steps",
        "epoch",
        "loss",
        "tokens_per_second",
        "examples_per_second",
        "learning_rate",
        "tokens",
        "seconds",
    }
    assert (result.steps, result.resumed_at, seen[-1]["epoch"]) == (48, 0, 12.0)


def test_the_published_model_loads_and_is_what_was_trained(source, shards, tmp_path):
    result, weights, _ = run(source, shards, tmp_path / "out")
    assert result.product == tmp_path / "out" / "model" == finished(tmp_path / "out", "f")
    assert finished(tmp_path / "out", "another") is None
    assert {t.dtype for t in load_file(result.product / "model.safetensors").values()} == {torch.bfloat16}
    assert json.loads((result.product / "config.json").read_text())["dtype"] == "bfloat16"
    assert load_format(result.product).fingerprint == load_format(source).fingerprint
    saved = {name: p.detach() for name, p in load_model(result.product, "float32", "cpu").named_parameters()}
    assert_same(saved, {name: w.bfloat16().float() for name, w in weights.items()})
    assert sorted(p.name for p in (tmp_path / "out").iterdir()) == ["finished.json", "log.jsonl", "model"]


def test_an_interrupted_run_ends_with_the_weights_of_an_undisturbed_one(source, shards, tmp_path):
    _, undisturbed, rows = run(source, shards, tmp_path / "whole")
    for step in (1, 4, 6):  # more than once, in either epoch
        with pytest.raises(StoppedError):
            run(source, shards, tmp_path / "broken", stop_after=step)
    result, resumed, _ = run(source, shards, tmp_path / "broken")
    assert result.resumed_at == 6
    assert_same(undisturbed, resumed)
    losses = [(row["step"], pytest.approx(row["loss"])) for row in rows]
    assert [(row["step"], row["loss"]) for row in read_log(tmp_path / "broken")] == losses


def test_two_checkpoints_are_kept_and_the_older_serves_when_the_newer_is_broken(source, shards, tmp_path, caplog):
    _, undisturbed, _ = run(source, shards, tmp_path / "whole")
    out = tmp_path / "out"
    with pytest.raises(StoppedError):
        run(source, shards, out, stop_after=5)
    assert sorted(p.name for p in out.glob("checkpoint-*")) == ["checkpoint-00000004", "checkpoint-00000005"]
    broken = out / "checkpoint-00000005" / "optimizer.safetensors"
    broken.write_bytes(broken.read_bytes()[:-100])
    (out / ".writing-checkpoint-00000006").mkdir()
    result, resumed, _ = run(source, shards, out)
    assert result.resumed_at == 4
    assert "optimizer.safetensors is" in caplog.text
    assert_same(undisturbed, resumed)
    assert not list(out.glob(".*"))


def test_a_checkpoint_of_another_run_is_not_used(source, shards, tmp_path):
    with pytest.raises(StoppedError):
        run(source, shards, tmp_path / "out", stop_after=3, fingerprint="other")
    assert run(source, shards, tmp_path / "out")[0].resumed_at == 0
    assert [row["step"] for row in read_log(tmp_path / "out")] == list(range(1, 9))


def test_a_full_disk_keeps_the_last_good_checkpoint(source, shards, tmp_path, monkeypatch):
    out = tmp_path / "out"
    with pytest.raises(StoppedError):
        run(source, shards, out, stop_after=2)
    monkeypatch.setattr("safetensors.torch.save_file", no_space)
    with pytest.raises(BuildError, match=r"checkpoint of step 3 cannot be written.*No space left"):
        run(source, shards, out)
    monkeypatch.undo()
    assert run(source, shards, out)[0].resumed_at == 2


def test_a_log_that_finds_no_room_says_so_and_training_goes_on_from_the_last_checkpoint(source, shards, tmp_path):
    out = tmp_path / "out"

    def fill_the_disk(row):
        if row["step"] == 2:
            (out / "log.jsonl").replace(out / "log.before")
            (out / "log.jsonl").symlink_to("/dev/full")

    with pytest.raises(BuildError, match=r"the log of step 3 cannot be written.*No space left.*run the same command"):
        run(source, shards, out, watch=fill_the_disk)
    (out / "log.before").replace(out / "log.jsonl")
    assert run(source, shards, out)[0].resumed_at == 2
    assert [row["step"] for row in read_log(out)] == list(range(1, 9))


def no_space(*_):
    raise OSError(28, "No space left on device")


def no_number(losses, model):
    return losses.answers * math.nan


def no_gradient(losses, model):
    """The loss as it is, and a gradient that is inf * 0."""
    return losses.answers + (next(model.parameters()) * 0).sum().sqrt()


def holds_q7(pack):
    return "q7" in [example.query for example in pack.examples]


@pytest.mark.parametrize(
    ("what", "value", "harm", "when"),
    [
        ("loss", "nan", no_number, holds_q7),
        ("gradient", "nan", no_gradient, holds_q7),
        ("held-out loss", "nan", no_number, lambda pack: not torch.is_grad_enabled()),
    ],
)
def test_a_diverged_step_stops_and_leaves_the_batch_that_caused_it(
    source, shards, tmp_path, poison, what, value, harm, when
):
    poison(harm, when)
    held = write_shards(tmp_path / "held", [5])
    cfg = CFG.model_copy(update={"pack_tokens": 60})  # two packs a step
    with pytest.raises(BuildError) as caught:
        run(source, shards, tmp_path / "out", cfg, held_out=held)
    (file,) = (tmp_path / "out").glob("diverged-*")
    rows = [json.loads(line) for line in file.read_text().splitlines()]
    suspects = [row["query"] for row in rows if row["suspect"]]
    step = int(file.name.split("-")[1])
    for said in (
        f"the {what} of step {step} is {value} on examples such as {', '.join(map(repr, suspects[:3]))}; the batch is "
        f"in {file}: look",
        "lower training.learning_rate",
    ):
        assert said in str(caught.value)
    assert not (tmp_path / "out" / "model").exists()
    if what == "held-out loss":
        assert suspects == [row["query"] for row in rows]
        assert sorted(suspects) == [f"q{number}" for number in range(5)]
        return
    stream = ExampleStream(shards, TASK, load_format(source), CFG, buffer_rows=8)
    batch = list(stream.step_batches())[step - 1]
    decode = stream.fmt.tokenizer.decode
    wanted = [(e.query, decode(e.prompt), decode(e.answer), []) for e in batch]
    assert sorted((row["query"], row["prompt"], row["answer"], row["wrong"]) for row in rows) == sorted(wanted)
    assert "q7" in suspects
    assert (len(suspects) == CFG.batch_examples) == (what == "gradient"), "a loss tells its pack from the others"


def test_where_the_batch_cannot_be_written_the_refusal_says_so(source, shards, tmp_path, poison, monkeypatch):
    poison(no_number, lambda pack: True)
    monkeypatch.setattr("zerogr_ray.store.Folder.write", no_space)
    with pytest.raises(BuildError, match=r"diverged-00000001-0.jsonl \(not written: .*No space left on device\): look"):
        run(source, shards, tmp_path / "out")


def worker(rank, source, shards, folder, address, cfg, more):
    import torch.distributed as dist

    dist.init_process_group("gloo", init_method=address, rank=rank, world_size=2)
    _, weights, _ = run(source, shards, folder, cfg, rank=rank, world=2, **more)
    save_file(weights, folder / f"rank{rank}.safetensors")
    dist.destroy_process_group()


@pytest.mark.slow
@pytest.mark.parametrize("everything", [False, True])
def test_two_workers_end_with_the_weights_of_one(source, shards, tmp_path, everything, float32):
    cfg, more = UNEVEN, {}
    if everything:
        wrong = [[[f"d{n}", f"d{n + 1}"] for n in range(size)] for size in (10, 14)]
        beside = [tmp_path / f"beside-{number}.parquet" for number in range(2)]
        for path, lists in zip(beside, wrong, strict=True):
            pq.write_table(pa.table({"wrong": lists}), path)
        cfg = cfg.model_copy(update={"method": "lora", "rerank_every": 3, "validations": 4, "patience": 0})
        more = {"beside": beside, "held_out": write_shards(tmp_path / "held", [5]), "product": "adapter"}
    _, alone, rows = run(source, shards, tmp_path / "one", cfg, **more)
    context = multiprocessing.get_context("spawn")
    out = tmp_path / "two"
    out.mkdir()
    address = f"file://{tmp_path / 'meet'}"
    processes = [
        context.Process(target=worker, args=(rank, source, shards, out, address, cfg, more)) for rank in range(2)
    ]
    for process in processes:
        process.start()
    for process in processes:
        process.join(timeout=300)
        assert process.exitcode == 0
    for rank in range(1 if everything else 2):  # with a best state, rank 0 has gone back to it
        assert_same(alone, load_file(out / f"rank{rank}.safetensors"), tolerance=1e-4)
    for name in ("loss", *(("validation_loss", "rerank_loss") if everything else ())):
        wanted = [row[name] for row in rows if name in row]
        assert [row[name] for row in read_log(out) if name in row] == pytest.approx(wanted, abs=1e-4)
        assert wanted


def test_the_rate_rises_in_a_line_and_falls_as_a_cosine_to_a_tenth():
    cfg = TrainingConfig(learning_rate=1.0, warmup=0.1)
    rates = [learning_rate(step, 100, cfg) for step in range(1, 101)]
    assert rates[:10] == pytest.approx([0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 1.0])
    assert rates[54] == pytest.approx(0.55)
    assert rates[-1] == pytest.approx(0.1)
    assert learning_rate(1, 1, cfg) == pytest.approx(0.1)
