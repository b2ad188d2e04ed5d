"""Attention over a pack, example by example: matrix products run over all its tokens end to end, attention does not.

In one row every token would be compared with every other, most of them hidden by the mask: in a pack of 700 tokens
that is a third of a training step. Here the prefix sees itself, and each example meets the prefix and its own tokens,
on a grid with one row an example.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from contextvars import ContextVar
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.nn.functional import scaled_dot_product_attention
from transformers import AttentionInterface, AttentionMaskInterface
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import sdpa_mask

from zerogr_ray.grid import Grid

if TYPE_CHECKING:
    from zerogr_ray.training.batches import Pack

ATTENTION = "zerogr_packs"


@dataclass(frozen=True, eq=False)
class Layout:
    """The tokens of a pack as attention sees them.

    prefix: how many tokens come before the first example
    grid:   where each token behind them lies, in a grid of shape (examples, places)
    bias:   0 where a place sees a column, -inf elsewhere, (examples, 1, places, prefix + places)
    """

    prefix: int
    grid: Grid
    bias: torch.Tensor

    @classmethod
    def of(cls, pack: Pack, device: torch.device | str) -> Layout:
        """That of `pack`. A place that no token lies on sees itself, since softmax over nothing is no number."""
        row_T, place_T, sees_EPP = pack.rows()
        examples, places = sees_EPP.shape[:2]
        prefix = len(pack.tokens_T) - len(row_T)
        sees = torch.from_numpy(sees_EPP).to(device) | torch.eye(places, dtype=torch.bool, device=device)
        bias = torch.zeros(sees.shape, device=device).masked_fill(~sees, float("-inf"))
        rows, columns = (torch.from_numpy(where).to(device) for where in (row_T, place_T))
        return cls(prefix, Grid(rows, columns, (examples, places)), torch.nn.functional.pad(bias, (prefix, 0))[:, None])


_layout: ContextVar[Layout | None] = ContextVar("layout", default=None)


@contextmanager
def laid_out(layout: Layout) -> Iterator[None]:
    """Inside the block, models prepared by `by_example` take their one row of tokens as those of `layout`."""
    # Rows this short are quicker as plain products than in the fused kernel that torch has for CPUs.
    plain = sdpa_kernel(SDPBackend.MATH) if layout.bias.device.type == "cpu" else nullcontext()
    token = _layout.set(layout)
    try:
        with plain:
            yield
    finally:
        _layout.reset(token)


def by_example(model: Any) -> None:
    """Let `model` attend example by example; outside `laid_out` it runs as it did, with torch's attention."""
    if model.config._attn_implementation != ATTENTION:
        model.set_attn_implementation(ATTENTION)


def _attention(
    module: Any, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, mask: torch.Tensor | None, **more: Any
) -> tuple[torch.Tensor, None]:
    """States are (1, heads, T, width); returns (1, T, heads, width)."""
    layout = _layout.get()
    if layout is None:
        return sdpa_attention_forward(module, query, key, value, mask, **more)  # type: ignore[no-any-return]
    grid, how = layout.grid, {"scale": more.get("scaling"), "dropout_p": more.get("dropout", 0.0)}
    heads, sharing = query.shape[1], query.shape[1] // key.shape[1]
    (q0, q), (k0, k), (v0, v) = (states.tensor_split([layout.prefix], 2) for states in (query, key, value))
    k, v = (torch.cat([a.expand(grid.shape[0], -1, -1, -1), grid.spread(b)], 2) for a, b in ((k0, k), (v0, v)))
    # Heads that share keys come as more places of one head, so that no key is copied.
    q = grid.spread(q).reshape(grid.shape[0], heads // sharing, sharing * grid.shape[1], -1)
    out = scaled_dot_product_attention(q, k, v, attn_mask=grid.for_groups(layout.bias, sharing), **how)
    out = grid.gather(out.reshape(grid.shape[0], heads, grid.shape[1], -1).transpose(1, 2))
    if layout.prefix:
        before = scaled_dot_product_attention(q0, k0, v0, is_causal=True, enable_gqa=sharing > 1, **how)
        out = torch.cat([before.transpose(1, 2), out], 1)
    return out.contiguous(), None


def _mask(*args: Any, **more: Any) -> torch.Tensor | None:
    """The mask over one row, which a pack does not need."""
    return None if _layout.get() else sdpa_mask(*args, **more)


AttentionInterface.register(ATTENTION, _attention)
AttentionMaskInterface.register(ATTENTION, _mask)
