"""The published decoder as its release describes it, written plainly: what benchmarks/decode.py compares with.

ZeroGR (arXiv 2510.10419) draws K docids one after the other. A tree of dicts is copied for every query; every draw is
a whole `model.generate` from the bare prompt, constrained by a callback that walks the tree; what was drawn is then
deleted from the tree. Nothing is kept from one draw to the next but the tree.
"""

from __future__ import annotations

import copy
import time
from collections.abc import Iterable, Sequence
from typing import Any

import torch

Tree = dict[int, Any]
"""token -> the tree below it; a docid ends with the end-of-turn token, under which there is nothing."""


def dict_tree(docids: Iterable[Sequence[int]], end: int) -> Tree:
    """The tree of `docids`, whole: not cut to their distinguishing prefixes."""
    tree: Tree = {}
    for docid in docids:
        node = tree
        for token in (*docid, end):
            node = node.setdefault(token, {})
    return tree


def remove(tree: Tree, docid: Sequence[int]) -> None:
    """Delete `docid`, its end token included, and the ancestors that are left empty."""
    nodes = [tree]
    for token in docid[:-1]:
        nodes.append(nodes[-1][token])
    for node, token in zip(reversed(nodes), reversed(docid), strict=True):
        del node[token]
        if node:
            break


def draw_published(
    model: Any, tree: Tree, prompt: Sequence[int], temperatures: Iterable[float], end: int, longest: int
) -> tuple[list[list[int]], float]:
    """The docids (their tokens and the end token) of each draw, and the seconds that copying the tree took.

    `longest` is the number of tokens of the longest docid.
    """
    started = time.perf_counter()
    tree = copy.deepcopy(tree)
    copying = time.perf_counter() - started
    ids = torch.tensor([list(prompt)], device=model.device)

    def allowed(_row: int, sequence: torch.Tensor) -> list[int]:
        node = tree
        for token in sequence[len(prompt) :].tolist():
            node = node[token]
        return list(node)

    drawn: list[list[int]] = []
    for T in temperatures:
        if not tree:
            break
        # top_k and top_p off: the library's own defaults would cut the distribution that the paper samples from.
        sampling = {"do_sample": True, "temperature": float(T), "top_k": 0, "top_p": 1.0}
        out = model.generate(
            ids,
            attention_mask=torch.ones_like(ids),
            prefix_allowed_tokens_fn=allowed,
            max_new_tokens=longest + 1,
            num_return_sequences=1,
            eos_token_id=end,
            pad_token_id=end,
            **(sampling if T > 0 else {"do_sample": False}),
        )
        drawn.append(out[0, len(prompt) :].tolist())
        remove(tree, drawn[-1])
    return drawn, copying
