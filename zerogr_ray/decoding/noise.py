"""Gumbel noise that depends on (seed, draw, child) and on nothing else.

arg max over children of logit / T + gumbel is a sample from softmax(logit / T). Because the noise is a function of
its key and not of a generator's state, draws can be computed in any order, ahead of each other or again, and every
child gets the same noise each time.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

_GOLDEN = np.uint64(0x9E3779B97F4A7C15)
_MIX_1 = np.uint64(0xBF58476D1CE4E5B9)
_MIX_2 = np.uint64(0x94D049BB133111EB)


def gumbel(seed: int, draw: int, nodes: NDArray[np.int64]) -> NDArray[np.float64]:
    """Standard Gumbel noise of draw number `draw` for each of `nodes`, shape (nodes,)."""
    with np.errstate(over="ignore"):
        stream = _mix(_mix(np.array([seed & 0xFFFFFFFFFFFFFFFF], dtype=np.uint64)) + np.uint64(draw) * _GOLDEN)
        bits = _mix(stream + nodes.astype(np.uint64) * _GOLDEN)
    uniform = ((bits >> np.uint64(11)).astype(np.float64) + 0.5) * 2.0**-53  # in (0, 1), never 0 or 1
    return np.asarray(-np.log(-np.log(uniform)))


def _mix(x: NDArray[np.uint64]) -> NDArray[np.uint64]:
    """The output function of SplitMix64 (Steele, Lea, Flood: Fast splittable pseudorandom number generators, 2014)."""
    x = x + _GOLDEN
    x = (x ^ (x >> np.uint64(30))) * _MIX_1
    x = (x ^ (x >> np.uint64(27))) * _MIX_2
    return x ^ (x >> np.uint64(31))
