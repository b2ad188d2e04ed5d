"""What trainings in tests start from. Torch is loaded by those that use it."""

from __future__ import annotations

import math

import pytest


@pytest.fixture
def source(tmp_path):
    """Folder of a tiny model."""
    from tests.tiny import save_tiny

    return save_tiny(tmp_path / "source")


@pytest.fixture
def shards(tmp_path):
    """24 rows in two shards."""
    from tests.training.test_examples import write_shards

    return write_shards(tmp_path / "shards", [10, 14])


@pytest.fixture
def write_at_every_step(monkeypatch):
    """A checkpoint whenever one is due, however long the last one took to write."""
    monkeypatch.setattr("zerogr_ray.training.loop.WRITING_SHARE", math.inf)


@pytest.fixture
def poison(monkeypatch):
    """`poison(harm, when)`: the answers' loss of the packs that are to be harmed is harm(losses, model)."""
    from zerogr_ray.training import loop

    pack_losses = loop.pack_losses

    def put(harm, when):
        def poisoned(model, pack, *more):
            losses = pack_losses(model, pack, *more)
            return losses._replace(answers=harm(losses, model)) if when(pack) else losses

        monkeypatch.setattr(loop, "pack_losses", poisoned)

    return put
