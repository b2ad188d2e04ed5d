"""The LM over many queries' search trees at once: one forward per wave, over the prompts' key-value cache.

Tree attention: every new token is a cell of one query's tree; it sees that query's prompt, its own ancestors and
itself. Queries of different lengths share a batch. What prompts begin with alike, the instruction, is forwarded once
and kept for later batches.

The columns of the cache, for every query of a batch:  [ instruction | query | cells, wave after wave ]
with padding on the left of the first two parts, so that all prompts end in the same column.
"""

from __future__ import annotations

from collections import OrderedDict, deque
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from zerogr_ray.config import CacheConfig
from zerogr_ray.decoding.cells import ROOT, Answer, Cell, Ints, Key
from zerogr_ray.decoding.packed import TreeCache, laid_out, pack
from zerogr_ray.grid import Grid

KEPT_PREFIXES = 8

Layers = list[tuple[torch.Tensor, torch.Tensor]]


class Head(torch.nn.Module):
    """The model's output projection, for some tokens of the vocabulary where no others are read."""

    def __init__(self, whole: torch.nn.Linear) -> None:
        super().__init__()
        self.whole = whole
        self.tokens: torch.Tensor | None = None

    def forward(self, hidden: torch.Tensor) -> torch.Tensor:
        """Logits of `tokens`, or of the whole vocabulary while there are none."""
        if self.tokens is None:
            return self.whole(hidden)  # type: ignore[no-any-return]
        bias = None if self.whole.bias is None else self.whole.bias[self.tokens]
        return torch.nn.functional.linear(hidden, self.whole.weight.index_select(0, self.tokens), bias)


def head_of(model: Any) -> Head | None:
    """The model's head, put in place of its output projection at the first call; None where that is no plain matrix."""
    head = model.get_output_embeddings()
    if isinstance(head, Head):
        return head
    if type(head) is not torch.nn.Linear:
        return None
    # What models do to logits (scaling, soft capping) they do to each on its own: it works on any part of them.
    model.set_output_embeddings(Head(head))
    return model.get_output_embeddings()  # type: ignore[no-any-return]


class Prefixes:
    """Key-value caches of the token sequences that many prompts begin with; the least recently used one goes."""

    def __init__(self, model: Any) -> None:
        self.model = model
        self._kept: OrderedDict[tuple[int, ...], Layers] = OrderedDict()

    def get(self, tokens: tuple[int, ...]) -> tuple[Layers, int]:
        """Keys and values of each layer, each (1, heads, len(tokens), width), and how many tokens were forwarded."""
        if tokens in self._kept:
            self._kept.move_to_end(tokens)
            return self._kept[tokens], 0
        cache = TreeCache()
        ids = torch.tensor([tokens], device=self.model.device)
        self.model(input_ids=ids, past_key_values=cache, use_cache=True, logits_to_keep=1)
        self._kept[tokens] = [(layer.keys, layer.values) for layer in cache.layers]
        if len(self._kept) > KEPT_PREFIXES:
            self._kept.popitem(last=False)
        return self._kept[tokens], len(tokens)


class TreeForward:
    """Key-value cache of a batch of prompts and of the cells that have been forwarded behind each."""

    def __init__(self, model: Any, limits: CacheConfig, prefixes: Prefixes | None = None) -> None:
        self.model, self.limits = model, limits
        self.prefixes = prefixes or Prefixes(model)
        self.head = head_of(model)
        pack(model)
        self.tokens_forwarded = self.forwards = 0

    @torch.inference_mode()
    def prompt(self, prompts: Sequence[Sequence[int]], shared: Sequence[int] | None = None) -> torch.Tensor:
        """Forward the prompts; shared[b] tokens at the beginning of prompt b come from the kept prefixes.

        Returns the logits of what follows each prompt, shape (queries, vocabulary), float32, on the model's device.
        """
        kept = np.array(shared if shared is not None else [0] * len(prompts))
        rests = np.array([len(prompt) for prompt in prompts]) - kept
        before, width = int(kept.max()), int(rests.max())
        self.cache = TreeCache()
        if before:
            self._fill([tuple(prompt[:n]) for prompt, n in zip(prompts, kept, strict=True)], before)
        place = _right_aligned(width, rests)
        self._places = np.concatenate([_right_aligned(before, kept), np.where(place < 0, -1, place + kept[:, None])], 1)
        self._visible, self._lengths = self._places >= 0, rests + kept
        mask = np.broadcast_to(self._visible[:, None, :], (len(prompts), width, before + width)).copy()
        mask[:, :, before:] &= np.tri(width, dtype=bool)
        mask[:, np.arange(width), before + np.arange(width)] = True  # also padding: a row must see something
        rows, columns = np.nonzero(place >= 0)
        ids = np.concatenate([prompt[n:] for prompt, n in zip(prompts, kept, strict=True)])
        last = self._tensor(np.cumsum(rests) - 1)
        logits = self._run(ids, self._places[rows, before + columns], rows, columns, mask, logits_to_keep=last)
        self.tokens_forwarded += len(ids)
        self._columns: list[dict[Key, list[int]]] = [{ROOT: []} for _ in prompts]  # cell -> columns of its path
        self._origin: list[dict[Key, Cell]] = [{} for _ in prompts]
        return logits.float()

    def read(self, logits: torch.Tensor, wanted: Sequence[Ints], tokens: Ints | None = None) -> list[Answer]:
        """An Answer for each row of `logits`, shape (rows, vocabulary), with the tokens wanted[row] read.

        With `tokens`, ascending, the columns of `logits` are those tokens, and there are no totals.
        """
        sizes = [len(some) for some in wanted]
        rows = self._tensor(np.repeat(np.arange(len(sizes)), sizes))
        columns = np.concatenate(wanted)
        columns = columns if tokens is None else tokens.searchsorted(columns)
        picked = logits[rows, self._tensor(columns)].float().cpu().numpy()
        totals = [np.nan] * len(sizes) if tokens is not None else torch.logsumexp(logits.float(), dim=-1).tolist()
        parts = np.split(picked, np.cumsum(sizes)[:-1])
        return [Answer(part, total) for part, total in zip(parts, totals, strict=True)]

    @property
    def cached_tokens(self) -> int:
        """Cached tokens of the batch, padding included."""
        return int(self._visible.size)

    @torch.inference_mode()
    def wave(self, asked: Sequence[Sequence[Cell]], totals: bool = True) -> list[list[Answer]]:
        """Forward asked[b] for each query b, parents before their children; each parent is ROOT or was asked before.

        Without `totals` only the logits that are asked for are computed. It takes one forward, unless the limits on
        cached tokens ask for several: then cached cells are dropped between them, and the paths to what is still to
        come are forwarded again.
        """
        queues = [deque(cells) for cells in asked]
        answers: list[list[Answer]] = [[] for _ in asked]
        for origin, cells in zip(self._origin, asked, strict=True):
            origin.update((cell.key, cell) for cell in cells)
        while any(queues):
            new, wanted = self._next_forward(queues)
            for (b, _), answer in zip(wanted, self._forward(new, wanted, totals), strict=True):
                answers[b].append(answer)
        return answers

    def keep(self, queries: Sequence[int]) -> None:
        """Let the other queries leave the batch."""
        self.cache.batch_select_indices(self._tensor(np.array(queries)))
        self._visible, self._places = self._visible[list(queries)], self._places[list(queries)]
        self._lengths = self._lengths[list(queries)]
        self._columns = [self._columns[b] for b in queries]
        self._origin = [self._origin[b] for b in queries]

    def _fill(self, prefixes: list[tuple[int, ...]], width: int) -> None:
        """Put the kept prefixes into the empty cache, each aligned on the right of `width` columns."""
        found = []
        for prefix in prefixes:
            if prefix:
                layers, forwarded = self.prefixes.get(prefix)
                self.tokens_forwarded += forwarded
            found.append(layers if prefix else [])
        pattern = next(layers for layers in found if layers)
        for number, (keys, values) in enumerate(pattern):
            if len(set(prefixes)) == 1:
                keys, values = (part.expand(len(prefixes), -1, -1, -1) for part in (keys, values))
            else:
                keys, values = (
                    self._padded([layers[number][i] if layers else None for layers in found], part, width)
                    for i, part in enumerate((keys, values))
                )
            self.cache.update(keys, values, number)

    def _padded(self, parts: list[torch.Tensor | None], like: torch.Tensor, width: int) -> torch.Tensor:
        stacked = like.new_zeros(len(parts), like.shape[1], width, like.shape[3])
        for row, part in zip(stacked, parts, strict=True):
            if part is not None:
                row[:, width - part.shape[2] :] = part[0]
        return stacked

    def _next_forward(self, queues: list[deque[Cell]]) -> tuple[list[list[Cell]], list[tuple[int, Key]]]:
        """The cells of the next forward for each query, and the (query, key) of those whose answers are due."""
        limit = min(self.limits.tokens_per_query, self.limits.tokens_per_batch // len(queues))
        for fresh in (False, True):
            if fresh:
                self._forget()
            room = limit - self._visible.shape[1]
            new: list[list[Cell]] = []
            wanted: list[tuple[int, Key]] = []
            for b, queue in enumerate(queues):
                cells: dict[Key, Cell] = {}
                while queue:
                    missing = self._missing(b, queue[0], cells)
                    # With nothing else cached, one path is let through whatever the limit: the search must end.
                    if len(cells) + len(missing) > room and not (fresh and not cells):
                        break
                    cells.update((cell.key, cell) for cell in missing)
                    wanted.append((b, queue.popleft().key))
                new.append(list(cells.values()))
            if wanted:
                return new, wanted
        raise AssertionError("unreachable: a fresh cache takes at least one path")

    def _missing(self, b: int, cell: Cell, coming: dict[Key, Cell]) -> list[Cell]:
        """`cell` and those of its ancestors that are neither cached nor coming, parents first."""
        chain = []
        while cell.key not in coming and cell.key not in self._columns[b]:
            chain.append(cell)
            if cell.parent == ROOT:
                break
            cell = self._origin[b][cell.parent]
        return chain[::-1]

    def _forget(self) -> None:
        """Drop all cells from the cache; the prompts stay."""
        width = self._places.shape[1]
        for layer in self.cache.layers:
            layer.keys, layer.values = layer.keys[:, :, :width], layer.values[:, :, :width]
        self._visible = self._visible[:, :width]
        self._columns = [{ROOT: []} for _ in self._columns]

    def _forward(self, new: list[list[Cell]], wanted: list[tuple[int, Key]], totals: bool) -> list[Answer]:
        past, width = self._visible.shape[1], max(map(len, new))
        mask = np.zeros((len(new), width, past + width), dtype=bool)
        mask[:, :, :past] = self._visible[:, None, :]
        mask[:, np.arange(width), past + np.arange(width)] = True
        flat: list[tuple[int, int, int, int]] = []  # token, position, query, place
        number: dict[tuple[int, Key], int] = {}
        for b, cells in enumerate(new):
            columns = self._columns[b]
            for t, cell in enumerate(cells):
                path = columns[cell.parent]
                columns[cell.key] = [*path, past + t]
                mask[b, t, path] = True
                number[b, cell.key] = len(flat)
                flat.append((cell.token, int(self._lengths[b]) + len(path), b, t))
        ids, positions, rows, places = np.array(flat, dtype=np.int64).T
        reads = [self._origin[b][key].read for b, key in wanted]
        tokens = None if totals or self.head is None else np.unique(np.concatenate(reads))
        keep = self._tensor(np.array([number[which] for which in wanted]))
        logits = self._run(ids, positions, rows, places, mask, tokens, logits_to_keep=keep)
        self.tokens_forwarded += len(flat)
        self._visible = np.pad(self._visible, ((0, 0), (0, width)))
        return self.read(logits, reads, tokens)

    def _run(
        self,
        ids: Ints,
        positions: Ints,
        rows: Ints,
        places: Ints,
        mask: NDArray[np.bool_],
        tokens: Ints | None = None,
        **more: Any,
    ) -> torch.Tensor:
        """Logits of new tokens, (kept, vocabulary or `tokens`). Token t belongs to query rows[t], at places[t] of its
        new columns; `mask`, (queries, new, cached + new), says what each column sees."""
        self.forwards += 1
        if self.head is not None:
            self.head.tokens = None if tokens is None else self._tensor(tokens)
        seen_from = np.zeros(mask.shape[:2], dtype=np.int64)
        seen_from[rows, places] = positions
        try:
            with laid_out(Grid(self._tensor(rows), self._tensor(places), mask.shape[:2])):
                out = self.model(
                    input_ids=self._tensor(ids[None]),
                    attention_mask=self._masks(seen_from, mask),
                    position_ids=self._tensor(positions[None]),
                    past_key_values=self.cache,
                    use_cache=True,
                    **more,
                )
        finally:
            if self.head is not None:
                self.head.tokens = None
        return out.logits[0]  # type: ignore[no-any-return]

    def _masks(self, positions: Ints, mask: NDArray[np.bool_]) -> torch.Tensor | dict[str, torch.Tensor]:
        """The mask, or one for each kind of layer where some layers see a sliding window only."""
        config = self.model.config.get_text_config()
        window, kinds = getattr(config, "sliding_window", None), set(getattr(config, "layer_types", None) or [])
        whole = self._bias(mask)
        if not window or kinds == {"full_attention"}:
            return whole
        # Only what the prompt holds can be out of a window's sight, as long as docids are shorter than the window.
        prompt = self._places.shape[1]
        near = mask.copy()
        near[:, :, :prompt] &= positions[:, :, None] - self._places[:, None, :] < window
        windowed = self._bias(near)
        return {"full_attention": whole, "sliding_attention": windowed} if "full_attention" in kinds else windowed

    def _bias(self, mask: NDArray[np.bool_]) -> torch.Tensor:
        """What attention adds to its scores, (queries, 1, new, columns): made once, not once for each layer."""
        allowed = self._tensor(mask[:, None])
        return torch.zeros(allowed.shape, dtype=self.model.dtype, device=allowed.device).masked_fill_(
            ~allowed, -torch.inf
        )

    def _tensor(self, array: NDArray[Any]) -> torch.Tensor:
        return torch.from_numpy(np.ascontiguousarray(array)).to(self.model.device)


def _right_aligned(width: int, lengths: NDArray[Any]) -> Ints:
    """Place of each column in a sequence that ends in the last one, (sequences, width); -1 is padding."""
    place = np.arange(width) - (width - lengths[:, None])
    return np.asarray(np.where(place < 0, -1, place))
