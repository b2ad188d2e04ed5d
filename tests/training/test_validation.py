import json

import pytest
from safetensors.torch import load_file

from tests.training.test_examples import write_shards
from tests.training.test_loop import CFG, StoppedError, assert_same, no_space, run
from zerogr_ray.config import TrainingConfig
from zerogr_ray.errors import BuildError
from zerogr_ray.models import load_model
from zerogr_ray.training import loop
from zerogr_ray.training.checkpoints import read_log
from zerogr_ray.training.pairs import held_out
from zerogr_ray.training.validation import AIMED, FARTHEST, FEWEST, Validation, due, held_out_share, is_held_out

pytestmark = [pytest.mark.model, pytest.mark.usefixtures("write_at_every_step")]

EARLY = CFG.model_copy(update={"epochs": 4.0, "validations": 8, "patience": 2})
"""16 steps, measured after every second."""


@pytest.fixture
def held(tmp_path):
    return write_shards(tmp_path / "held", [5])


@pytest.fixture
def measured(monkeypatch):
    """Held-out losses as if by step: best at step 6, so that two more measurements end the training at step 10."""
    losses = {2: 5.0, 4: 4.0, 6: 3.0, 8: 3.5, 10: 3.0, 12: 1.0}
    monkeypatch.setattr(loop, "mean_loss", lambda model, packs, cast, step, *more: losses[step])


def test_training_stops_after_its_patience_and_publishes_its_best(
    source, shards, held, tmp_path, measured, monkeypatch
):
    kept = {}
    real = loop.save_best

    def save_best(folder, model, step):
        kept[step] = {name: p.detach().clone() for name, p in model.named_parameters()}
        real(folder, model, step)

    monkeypatch.setattr(loop, "save_best", save_best)
    out = tmp_path / "out"
    result, _, seen = run(source, shards, out, EARLY, held_out=held)
    assert (result.steps, result.stopped_at, result.best_step, result.validation_loss) == (16, 10, 6, 3.0)
    assert {row["step"]: row["validation_loss"] for row in seen if "validation_loss" in row} == {
        2: 5.0,
        4: 4.0,
        6: 3.0,
        8: 3.5,
        10: 3.0,
    }
    assert list(kept) == [2, 4, 6]
    published = {name: p.detach() for name, p in load_model(result.product, "float32", "cpu").named_parameters()}
    assert_same(published, {name: p.bfloat16().float() for name, p in kept[6].items()})
    assert sorted(p.name for p in out.iterdir()) == ["finished.json", "log.jsonl", "model"]


@pytest.mark.parametrize("stop_after", [(3,), (6, 7), (9,), (10,)])
def test_early_stop_survives_interruptions(source, shards, held, tmp_path, measured, stop_after):
    whole, undisturbed, rows = run(source, shards, tmp_path / "whole", EARLY, held_out=held)
    for step in stop_after:
        with pytest.raises(StoppedError):
            run(source, shards, tmp_path / "broken", EARLY, stop_after=step, held_out=held)
    result, resumed, _ = run(source, shards, tmp_path / "broken", EARLY, held_out=held)
    assert result.resumed_at == stop_after[-1]
    assert (
        (result.stopped_at, result.best_step, result.validation_loss)
        == (10, 6, 3.0)
        == (
            whole.stopped_at,
            whole.best_step,
            whole.validation_loss,
        )
    )
    assert_same(undisturbed, resumed)
    assert [row["step"] for row in read_log(tmp_path / "broken")] == [row["step"] for row in rows]
    published = [load_file(tmp_path / name / "model" / "model.safetensors") for name in ("whole", "broken")]
    assert_same(*published)


def test_the_best_state_of_a_checkpoint_is_kept_as_long_as_the_checkpoint(source, shards, held, tmp_path, measured):
    out = tmp_path / "out"
    with pytest.raises(StoppedError):
        run(source, shards, out, EARLY, stop_after=6, held_out=held)
    assert sorted(p.name for p in out.glob("*-*")) == [
        "best-00000004",  # of the older checkpoint
        "best-00000006",
        "checkpoint-00000005",
        "checkpoint-00000006",
    ]
    state = json.loads((out / "checkpoint-00000006" / "state.json").read_text())
    assert state["validation"] == {"best": 3.0, "best_step": 6, "worse": 0}


def test_the_measured_loss_is_the_mean_over_all_held_out_labels(source, shards, held, tmp_path):
    import torch

    from tests.training.test_batches import padded_training
    from zerogr_ray.models import load_format
    from zerogr_ray.training.examples import ExampleStream
    from zerogr_ray.training.tasks import Retrieve

    cfg = CFG.model_copy(update={"epochs": 0.25, "learning_rate": 1e-12, "validations": 1})
    _, _, seen = run(source, shards, tmp_path / "out", cfg, held_out=held)
    examples = ExampleStream(shards, Retrieve("Retrieve.", 96), load_format(source), cfg).held_out(held)
    assert len(examples) == 5
    total, _ = padded_training(load_model(source, "float32", "cpu"), examples)
    labels = sum(len(example.answer) for example in examples)
    assert seen[-1]["validation_loss"] == pytest.approx(total / labels, rel=1e-4)
    assert not torch.is_inference_mode_enabled()


def test_a_held_out_loss_that_is_no_number_stops_with_its_examples(source, shards, held, tmp_path, monkeypatch):
    import torch

    real = loop.pack_losses

    def poisoned(model, pack, *more, **named):
        losses = real(model, pack, *more, **named)
        return losses if torch.is_grad_enabled() else losses._replace(answers=losses.answers * float("nan"))

    monkeypatch.setattr(loop, "pack_losses", poisoned)
    with pytest.raises(BuildError, match=r"held-out loss of step 2 is nan on examples such as 'q\d'"):
        run(source, shards, tmp_path / "out", EARLY, held_out=held)


def test_a_disk_full_of_best_states_keeps_the_last_checkpoint(source, shards, held, tmp_path, measured, monkeypatch):
    out = tmp_path / "out"
    with pytest.raises(StoppedError):
        run(source, shards, out, EARLY, stop_after=3, held_out=held)
    monkeypatch.setattr("safetensors.torch.save_file", no_space)
    with pytest.raises(BuildError, match=r"checkpoint of step 4|best state so far, of step 4, cannot be written"):
        run(source, shards, out, EARLY, held_out=held)
    monkeypatch.undo()
    monkeypatch.setattr(loop, "mean_loss", lambda *_: 1.0)
    assert run(source, shards, out, EARLY, held_out=held)[0].resumed_at == 3


def test_measurements_are_even_and_the_last_is_at_the_end():
    cfg = TrainingConfig(validations=4)
    assert [step for step in range(1, 11) if due(step, 10, cfg)] == [3, 6, 9, 10]
    assert [step for step in range(1, 3) if due(step, 2, cfg)] == [1, 2]


def test_only_a_new_low_counts_and_patience_zero_never_ends():
    state = Validation()
    assert [state.record(step, loss) for step, loss in enumerate([2.0, 2.0, 1.5, 1.6], start=1)] == [
        True,
        False,
        True,
        False,
    ]
    assert (state.best, state.best_step, state.worse) == (1.5, 3, 1)
    assert state.over(1)
    assert not state.over(2)
    assert not state.over(0)
    assert Validation(**state.as_dict()) == state


def test_what_is_held_out_depends_on_the_example_alone():
    keys = [("d1", f"query {i}") for i in range(4000)]
    share = sum(is_held_out(0.1, *key) for key in keys) / len(keys)
    assert 0.08 < share < 0.12
    assert {key for key in keys if is_held_out(0.1, *key)} <= {key for key in keys if is_held_out(0.2, *key)}
    assert not any(is_held_out(0.0, *key) for key in keys)


def test_a_small_corpus_holds_out_enough_to_say_something_and_a_tiny_one_nothing():
    cfg = TrainingConfig(held_out=0.1, held_out_most=50)
    assert held_out_share(400, cfg) == 0.1
    assert held_out_share(5000, cfg) == 0.01
    assert held_out_share(2 * AIMED / FARTHEST, cfg) * 2 * AIMED / FARTHEST == AIMED
    assert held_out_share(AIMED / FARTHEST, cfg) == FARTHEST
    assert held_out_share(AIMED / FARTHEST - 1, cfg) == 0
    assert held_out_share(0, cfg) == 0
    assert held_out_share(1000, TrainingConfig(held_out=0)) == 0
    assert held_out_share(1000, TrainingConfig(held_out_most=FEWEST - 1)) == 0
    assert held_out_share(54, TrainingConfig(held_out=0.4)) == 0.4, "who asks for more gets it"


def test_passages_stay_in_training_and_no_document_loses_all_it_has():
    written = [f"q{i}" for i in range(50)]
    apart = held_out("d1", ["the passage", *written], written, 0.5)
    assert "the passage" not in apart
    assert 10 < len(apart) < 40
    assert held_out("d1", written, written, 1.0) == written[:-1]
    assert held_out("d1", ["q1"], ["q1"], 1.0) == []
