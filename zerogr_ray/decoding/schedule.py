"""Reverse-annealed temperature: precise first, diverse later."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from zerogr_ray.config import DecodeConfig


def temperatures(cfg: DecodeConfig, draws: int | None = None) -> NDArray[np.float64]:
    """Temperature of each draw (ZeroGR, Eq. 5-6).

        T_i = T_max * (s(k(i/K - m)) - s(-km)) / (s(k(1 - m)) - s(-km)),    s = sigmoid

    Returns T_K, shape (K,), K = `draws` or cfg.draws: 0 first (greedy), rising toward T_max.
    """
    K = draws or cfg.draws
    rise = _sigmoid(cfg.slope * (np.arange(K) / K - cfg.midpoint))
    low, high = _sigmoid(np.array([-cfg.slope * cfg.midpoint, cfg.slope * (1 - cfg.midpoint)]))
    if high == low:  # a slope so small that only its limit can be computed: a straight line
        rise, low, high = np.arange(K) / K, np.float64(0), np.float64(1)
    return np.asarray(cfg.t_max * (rise - low) / (high - low))


def _sigmoid(x: NDArray[np.float64]) -> NDArray[np.float64]:
    return np.asarray((1 + np.tanh(x / 2)) / 2)  # as 1 / (1 + exp(-x)), but never too large for a float
