"""What is published lies between the weights before training and the trained ones."""

from __future__ import annotations

import pytest
import torch

from tests.training.test_loop import CFG, StoppedError, assert_same, run
from zerogr_ray.models import load_model

pytestmark = [pytest.mark.model, pytest.mark.usefixtures("write_at_every_step")]


def weights(folder):
    return {name: p.detach() for name, p in load_model(folder, "float32", "cpu").named_parameters()}


@pytest.fixture
def trained(source, shards, tmp_path):
    """The weights before training, and after it."""
    return weights(source), weights(run(source, shards, tmp_path / "whole")[0].product)


def between(trained, share):
    before, after = trained
    return {name: before[name] + share * (after[name] - before[name]) for name in before}


@pytest.mark.parametrize("share", [0.25, 0.5])
def test_a_training_publishes_its_share_of_the_way(source, shards, tmp_path, trained, share):
    result, _, _ = run(source, shards, tmp_path / "out", CFG.model_copy(update={"average": share}))
    found = weights(result.product)
    assert_same(found, between(trained, share), 1e-2)
    moved = max(float((found[name] - trained[0][name]).abs().max()) for name in found)
    assert moved > 1e-3


def test_a_training_that_was_interrupted_publishes_the_same(source, shards, tmp_path, trained):
    cfg = CFG.model_copy(update={"average": 0.5})
    with pytest.raises(StoppedError):
        run(source, shards, tmp_path / "out", cfg, stop_after=5)
    result, _, _ = run(source, shards, tmp_path / "out", cfg)
    assert result.resumed_at == 5
    assert_same(weights(result.product), between(trained, 0.5), 1e-2)


def test_an_adapter_s_change_is_scaled_and_so_is_the_merged_model_s(source, shards, tmp_path):
    pytest.importorskip("peft")
    lora = CFG.model_copy(update={"method": "lora", "lora_rank": 4, "learning_rate": 3e-2})
    [whole, half] = [
        weights(run(source, shards, tmp_path / str(share), lora.model_copy(update={"average": share}))[0].product)
        for share in (1.0, 0.5)
    ]
    before = weights(source)
    change = torch.cat([(whole[name] - before[name]).flatten() for name in before])
    halved = torch.cat([(half[name] - before[name]).flatten() for name in before])
    assert float(halved.norm() / change.norm()) == pytest.approx(0.5, abs=0.02)
    assert float(torch.cosine_similarity(halved, change, dim=0)) > 0.99
