"""The LM over many queries' search trees at once: one forward per wave, over the prompts' key-value cache.

Tree attention: every new token is a trie node; it sees its query's prompt, its own ancestors and itself. Queries of
different lengths share a batch; prompts are padded on the left so that all end in the same column.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from zerogr_ray.index.trie import Trie


class TreeForward:
    """Key-value cache of a batch of prompts and of the trie nodes that have been forwarded behind each."""

    def __init__(self, model: Any, trie: Trie) -> None:
        self.model, self.trie = model, trie
        self.tokens_forwarded = 0

    @torch.inference_mode()
    def prompt(self, prompts: Sequence[Sequence[int]]) -> list[NDArray[np.float32]]:
        """Forward the prompts; returns the logits of the root's children for each, shape (children,)."""
        from transformers import DynamicCache

        width = max(map(len, prompts))
        lengths = np.array([len(prompt) for prompt in prompts])
        ids = np.zeros((len(prompts), width), dtype=np.int64)
        for row, prompt in zip(ids, prompts, strict=True):
            row[width - len(prompt) :] = prompt
        present = np.arange(width) >= width - lengths[:, None]
        positions = np.maximum(np.arange(width) - (width - lengths[:, None]), 0)
        self.cache = DynamicCache()
        out = self.model(
            input_ids=self._tensor(ids),
            attention_mask=self._tensor(present.astype(np.int64)),
            position_ids=self._tensor(positions),
            past_key_values=self.cache,
            use_cache=True,
            logits_to_keep=1,
        )
        self.tokens_forwarded += int(lengths.sum())
        self._lengths = lengths
        self._visible = present  # (queries, columns) cached columns that every token of a query sees
        self._columns: list[dict[int, list[int]]] = [{0: []} for _ in prompts]  # node -> columns of its path
        return self._children(out.logits, [(b, 0, 0) for b in range(len(prompts))])

    @torch.inference_mode()
    def wave(self, needed: Sequence[Sequence[int]]) -> list[list[NDArray[np.float32]]]:
        """Forward the nodes in needed[b] for each query b, with what is missing of their paths.

        A node is asked for before any node below it, and once. Returns, for each query and node, the logits of the
        node's children, shape (children,).
        """
        new = [self._missing(b, nodes) for b, nodes in enumerate(needed)]
        past, width = self._visible.shape[1], max(map(len, new))
        ids = np.zeros((len(needed), width), dtype=np.int64)
        positions = np.zeros_like(ids)
        mask = np.zeros((len(needed), width, past + width), dtype=bool)
        mask[:, :, :past] = self._visible[:, None, :]
        mask[:, np.arange(width), past + np.arange(width)] = True  # also padding: a row must see something
        for b, nodes in enumerate(new):
            columns = self._columns[b]
            for t, (node, parent) in enumerate(nodes):
                columns[node] = [*columns[parent], past + t]
                ids[b, t] = self.trie.tokens[node]
                positions[b, t] = self._lengths[b] + len(columns[parent])
                mask[b, t, columns[parent]] = True
        out = self.model(
            input_ids=self._tensor(ids),
            attention_mask=self._tensor(mask[:, None]),
            position_ids=self._tensor(positions),
            past_key_values=self.cache,
            use_cache=True,
        )
        self.tokens_forwarded += sum(map(len, new))
        self._visible = np.pad(self._visible, ((0, 0), (0, width)))
        wanted = [(b, columns[node][-1] - past, node) for b, columns in enumerate(self._columns) for node in needed[b]]
        assert all(column >= 0 for _, column, _ in wanted), "a node was asked for after it had been forwarded"
        logits = iter(self._children(out.logits, wanted))
        return [[next(logits) for _ in nodes] for nodes in needed]

    def keep(self, queries: Sequence[int]) -> None:
        """Let the other queries leave the batch."""
        self.cache.batch_select_indices(self._tensor(np.array(queries)))
        self._lengths = self._lengths[list(queries)]
        self._visible = self._visible[list(queries)]
        self._columns = [self._columns[b] for b in queries]

    def _missing(self, b: int, nodes: Sequence[int]) -> list[tuple[int, int]]:
        """(node, parent) of every node on the paths to `nodes` that is not cached yet, parents first."""
        columns, found = self._columns[b], dict[int, int]()
        for node in nodes:
            chain = []
            while node not in columns and node not in found:
                parent = self.trie.parent(node)
                chain.append((node, parent))
                node = parent
            found.update(reversed(chain))
        return list(found.items())

    def _children(self, logits: torch.Tensor, wanted: list[tuple[int, int, int]]) -> list[NDArray[np.float32]]:
        """Logits of the children of each (query, column of `logits`, node): one gather, one transfer."""
        ranges = [self.trie.children(node) for _, _, node in wanted]
        sizes = np.array([last - first for first, last in ranges])
        tokens = np.concatenate([self.trie.tokens[first:last] for first, last in ranges]).astype(np.int64)
        queries, columns = (np.repeat([row[i] for row in wanted], sizes) for i in (0, 1))
        picked = logits[self._tensor(queries), self._tensor(columns), self._tensor(tokens)]
        return np.split(picked.float().cpu().numpy(), np.cumsum(sizes)[:-1])

    def _tensor(self, array: NDArray[Any]) -> torch.Tensor:
        return torch.from_numpy(np.ascontiguousarray(array)).to(self.model.device)
