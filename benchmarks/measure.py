"""What the decoding benchmarks measure with: counters of objects, a clock around the model."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch

from zerogr_ray.index.trie import Trie


@contextmanager
def made(*kinds: type) -> Iterator[list[Any]]:
    """The objects of these kinds that are made inside the block: counters that no public result carries."""
    new: list[Any] = []
    plain = {kind: kind.__init__ for kind in kinds}  # type: ignore[misc]

    def recording(init: Any) -> Any:
        def __init__(self: Any, *args: Any, **kwargs: Any) -> None:  # noqa: N807
            init(self, *args, **kwargs)
            new.append(self)

        return __init__

    for kind, init in plain.items():
        kind.__init__ = recording(init)  # type: ignore[misc]
    try:
        yield new
    finally:
        for kind, init in plain.items():
            kind.__init__ = init  # type: ignore[misc]


@contextmanager
def forward_clock(model: Any) -> Iterator[list[float]]:
    """Seconds of every forward of `model` inside the block, also of its trunk or its head where called alone."""
    spent: list[float] = []
    running = False
    wait: Any = torch.cuda.synchronize if model.device.type == "cuda" else (lambda: None)

    def timed(forward: Any) -> Any:
        def call(*args: Any, **kwargs: Any) -> Any:
            nonlocal running
            if running:  # a part, called by the whole
                return forward(*args, **kwargs)
            running = True
            wait()
            started = time.perf_counter()
            try:
                return forward(*args, **kwargs)
            finally:
                wait()
                spent.append(time.perf_counter() - started)
                running = False

        return call

    parts = [model, model.base_model, model.get_output_embeddings()]
    for part in parts:
        part.forward = timed(part.forward)
    try:
        yield spent
    finally:
        for part in parts:
            del part.forward  # the class's own comes back


def depth_of(trie: Trie) -> int:
    """Edges on the longest path: nodes are numbered level by level, so the last node is a deepest one."""
    return len(trie.path(trie.nodes - 1))
