"""Ports for tests: each process that runs tests has a hundred of its own, below those of outgoing connections."""

from __future__ import annotations

import itertools
import os
import socket
import tempfile
from collections.abc import Iterator
from contextlib import ExitStack, suppress
from functools import cache
from pathlib import Path

from zerogr_ray.cache import locked

FIRST, BLOCKS, BLOCK = 20_000, 100, 100

_held = ExitStack()
"""The lock on the block that is this process's."""


def free_port() -> int:
    """A port of this machine that nobody listens on, and that no other process with tests is given."""
    for port in itertools.islice(_ports(), BLOCK):
        with suppress(OSError), socket.socket() as probe:
            probe.bind(("127.0.0.1", port))
            return port
    raise RuntimeError(f"all {BLOCK} ports of this process are in use")


@cache
def _ports() -> Iterator[int]:
    """This process's ports over and over, so that one that was free is not soon given again."""
    place = Path(tempfile.gettempdir()) / f"zerogr-ports-{os.getuid()}"
    for block in range(BLOCKS):
        with suppress(BlockingIOError):
            _held.enter_context(locked(place / str(block), wait=False))
            first = FIRST + block * BLOCK
            return itertools.cycle(range(first, first + BLOCK))
    raise RuntimeError(f"{BLOCKS} processes run tests already; see {place}")
