"""A batch of search trees without padding: matrix products run over the new tokens of all queries, end to end.

Only attention has to know which token is whose. It lays them out on a grid, one row per query, where each row meets
its own cache, and takes the results back. On a CPU, where products cost in proportion to tokens, this is what makes a
batch cheaper than its queries one by one.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any

import torch
from transformers import AttentionInterface, AttentionMaskInterface, DynamicCache
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import sdpa_mask

from zerogr_ray.grid import Grid

ATTENTION = "zerogr_tree"

_grid: ContextVar[Grid | None] = ContextVar("grid", default=None)


@contextmanager
def laid_out(grid: Grid) -> Iterator[None]:
    """Inside the block, models prepared by `pack` take the tokens of one row as those of `grid`."""
    token = _grid.set(grid)
    try:
        yield
    finally:
        _grid.reset(token)


class TreeCache(DynamicCache):  # type: ignore[misc]
    """Keys and values with one row per query, from tokens that come end to end.

    Each layer's are views of a buffer with room to grow: a wave adds its columns without copying those before it.
    """

    def __init__(self) -> None:
        super().__init__()
        self._buffers: dict[tuple[int, str], torch.Tensor] = {}

    def update(self, key_states: torch.Tensor, value_states: torch.Tensor, layer_idx: int, *_: Any, **__: Any) -> Any:
        """Add the columns; returns all keys and values of the layer, (queries, heads, columns, width)."""
        grid = _grid.get()
        if grid is not None:
            key_states, value_states = grid.spread(key_states), grid.spread(value_states)
        if layer_idx == len(self.layers) or not self.layers[layer_idx].is_initialized:
            super().update(key_states[:, :, :0], value_states[:, :, :0], layer_idx)
        layer = self.layers[layer_idx]
        layer.keys = self._grown(layer.keys, key_states, (layer_idx, "keys"))
        layer.values = self._grown(layer.values, value_states, (layer_idx, "values"))
        return layer.keys, layer.values

    def _grown(self, held: torch.Tensor, new: torch.Tensor, name: tuple[int, str]) -> torch.Tensor:
        """`held` and `new` side by side, in the buffer if it holds `held` and has room."""
        columns = held.shape[2] + new.shape[2]
        buffer = self._buffers.get(name)
        if buffer is None or buffer.data_ptr() != held.data_ptr() or buffer.shape[2] < columns:
            room = (*held.shape[:2], max(columns + columns // 2, columns + 32), held.shape[3])
            buffer = self._buffers[name] = held.new_empty(room)
            buffer[:, :, : held.shape[2]] = held
        buffer[:, :, held.shape[2] : columns] = new
        return buffer[:, :, :columns]


def pack(model: Any) -> None:
    """Let `model` run on packed tokens; outside `laid_out` it runs as it did, with torch's attention."""
    model.set_attn_implementation(ATTENTION)


def _attention(
    module: Any, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, mask: torch.Tensor | None, **more: Any
) -> tuple[torch.Tensor, None]:
    grid = _grid.get()
    if grid is None:
        return sdpa_attention_forward(module, query, key, value, mask, **more)  # type: ignore[no-any-return]
    assert mask is not None
    query = grid.spread(query)
    rows, heads, places, width = query.shape
    # Heads that share keys come as more places of one head: copying the keys for each would cost more than attention.
    groups = heads // key.shape[1]
    query = query.reshape(rows, key.shape[1], groups * places, width)
    bias = grid.for_groups(mask, groups)
    out = torch.nn.functional.scaled_dot_product_attention(query, key, value, attn_mask=bias, scale=more.get("scaling"))
    return grid.gather(out.reshape(rows, heads, places, width).transpose(1, 2)).contiguous(), None


AttentionInterface.register(ATTENTION, _attention)
AttentionMaskInterface.register(ATTENTION, sdpa_mask)
