"""What a search asks of the LM, and what it is told."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Key = int | tuple[int, int]
"""Name of a cell: a trie node, or (leaf, i) for the i-th token after a leaf's own."""
ROOT = 0
"""Key of the prompt's last token."""

Ints = NDArray[np.int64]


@dataclass(frozen=True, slots=True)
class Cell:
    """A token to forward behind its parent cell, and the next tokens whose logits are asked for."""

    key: Key
    parent: Key
    token: int
    read: Ints


@dataclass(frozen=True, slots=True)
class Answer:
    """What the LM says after a cell.

    logits:     (read,) of the tokens asked for
    log_total:  log sum exp of the logits of the whole vocabulary; nan where nobody needs it
    """

    logits: NDArray[np.float32]
    log_total: float
