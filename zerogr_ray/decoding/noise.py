"""Gumbel noise that depends on (seed, draw, child) and on nothing else.

arg max over children of logit / T + gumbel is a sample from softmax(logit / T). Because the noise is a function of
its key and not of a generator's state, draws can be computed in any order, ahead of each other or again, and every
child gets the same noise each time.
"""

from __future__ import annotations

from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

_GOLDEN = 0x9E3779B97F4A7C15
_MIX_1 = 0xBF58476D1CE4E5B9
_MIX_2 = 0x94D049BB133111EB
_64 = 0xFFFFFFFFFFFFFFFF


def gumbel(seed: int, draw: int, nodes: NDArray[np.int64]) -> NDArray[np.float64]:
    """Standard Gumbel noise of draw number `draw` for each of `nodes`, shape (nodes,)."""
    bits = nodes.astype(np.uint64)
    bits *= np.uint64(_GOLDEN)
    bits += np.uint64(_stream(seed, draw))
    bits ^= bits >> np.uint64(30)
    bits *= np.uint64(_MIX_1)
    bits ^= bits >> np.uint64(27)
    bits *= np.uint64(_MIX_2)
    bits ^= bits >> np.uint64(31)
    bits >>= np.uint64(11)
    uniform = bits.astype(np.float64)
    uniform += 0.5
    uniform *= 2.0**-53  # in (0, 1), never 0 or 1
    noise = np.log(uniform, out=uniform)
    np.negative(noise, out=noise)
    np.log(noise, out=noise)
    np.negative(noise, out=noise)
    return noise


@lru_cache(maxsize=4096)
def _stream(seed: int, draw: int) -> int:
    return (_mix(_mix(seed & _64) + draw * _GOLDEN) + _GOLDEN) & _64


def _mix(x: int) -> int:
    """The output function of SplitMix64 (Steele, Lea, Flood: Fast splittable pseudorandom number generators, 2014)."""
    x = (x + _GOLDEN) & _64
    x = ((x ^ (x >> 30)) * _MIX_1) & _64
    x = ((x ^ (x >> 27)) * _MIX_2) & _64
    return x ^ (x >> 31)
