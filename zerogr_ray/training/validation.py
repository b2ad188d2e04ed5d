"""Early stop: the loss on examples that training never sees decides which state is kept and when it ends."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

from zerogr_ray.config import TrainingConfig
from zerogr_ray.store import hash64

FEWEST = 16
"""Held-out examples below which their loss says nothing."""

AIMED = 24
"""Held out at least: hashes decide, and of so many expected they rarely leave fewer than FEWEST."""

FARTHEST = 0.25
"""Share beyond which that would take too much from the training."""


@dataclass
class Validation:
    """What the measurements so far have shown. It travels in every checkpoint."""

    best: float | None = None
    """Lowest loss per label."""
    best_step: int = 0
    worse: int = 0
    """Measurements since the best."""

    def record(self, step: int, loss: float) -> bool:
        """Take in a measurement; returns whether it is the best so far."""
        if self.best is None or loss < self.best:
            self.best, self.best_step, self.worse = loss, step, 0
            return True
        self.worse += 1
        return False

    def over(self, patience: int) -> bool:
        """Whether training has stopped helping."""
        return patience > 0 and self.worse >= patience

    def as_dict(self) -> dict[str, Any]:
        return asdict(self)


def due(step: int, steps: int, cfg: TrainingConfig) -> bool:
    """Whether the loss is measured after `step`: `cfg.validations` times, evenly, the last time after the last step."""
    return step == steps or step % max(1, -(-steps // cfg.validations)) == 0


def held_out_share(examples: float, cfg: TrainingConfig) -> float:
    """Share to hold out of so many examples: `held_out`, or AIMED of them where that is more and at most FARTHEST.

    No more than `held_out_most`; 0 where fewer than FEWEST would come of it.
    """
    wanted = cfg.held_out * examples
    if 0 < wanted < AIMED <= FARTHEST * examples:
        wanted = AIMED
    wanted = min(wanted, cfg.held_out_most)
    return wanted / examples if wanted >= FEWEST else 0.0


def is_held_out(share: float, *key: str) -> bool:
    """Whether the example with this key is among the held-out share. It depends on nothing else.

    h(key) / 2^64 < share, with h a 64-bit hash.
    """
    return hash64(*key) < share * 2.0**64
