"""What an LM would write whatever it is asked: the log-probability of docids behind prompts that ask for nothing.

An under-trained LM prefers the docids that are likely for any query. The mean log-probability of each docid token
over a few calibration texts, put where the query would be, is that preference: the prior that decoding subtracts
(notes/feasibility.md: it multiplies quality by two to five before any training). A prior is additive along a path, so
there is one number per trie edge. All docids are forwarded as one tree, so that a shared beginning costs once.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from zerogr_ray.config import CacheConfig
from zerogr_ray.decoding.cells import ROOT, Cell, Ints, Key
from zerogr_ray.index.trie import Trie

if TYPE_CHECKING:
    from zerogr_ray.decoding.forward import TreeForward

Floats = NDArray[np.float32]

AT_ONCE = 1024
"""Tokens whose logits over the whole vocabulary are held at once, over all prompts: 200 MB for 50,000 tokens."""


def docid_logprobs(
    forward: TreeForward, prompts: Sequence[Sequence[int]], docids: Sequence[Sequence[int]], shared: int = 0
) -> tuple[list[Floats], Floats]:
    """Log-probability of every token of every docid behind every prompt, over the whole vocabulary.

    `docids` are best sorted: neighbours share their beginnings. Each ends with the end-of-turn token. The first
    `shared` tokens of the prompts are the same. Returns an array (prompts, tokens) for each docid, and the
    log-probabilities of the token that comes first, (prompts, vocabulary).
    """
    root = Cell(ROOT, ROOT, 0, np.zeros(0, dtype=np.int64))
    cells: dict[tuple[Key, int], Cell] = {}
    reads: dict[Key, dict[int, int]] = {ROOT: {}}  # prefix -> token that follows it somewhere -> its place
    steps: list[list[tuple[Key, int]]] = []
    for docid in docids:
        before: Key = ROOT
        steps.append([])
        for depth, token in enumerate(docid):
            steps[-1].append((before, reads[before].setdefault(token, len(reads[before]))))
            if depth + 1 < len(docid):
                cell = cells.get((before, token))
                if cell is None:
                    cell = cells[before, token] = Cell(len(cells) + 1, before, token, root.read)
                    reads[cell.key] = {}
                before = cell.key
    asked = [replace(cell, read=np.array(list(reads[cell.key]))) for cell in cells.values()]

    room = max(map(len, prompts)) + max(max(map(len, docids)), AT_ONCE // len(prompts))
    forward.limits = CacheConfig(batch=len(prompts), tokens_per_query=room, tokens_per_batch=room * len(prompts))
    first = forward.prompt(prompts, [shared] * len(prompts))
    answers = [[answer] for answer in forward.read(first, [np.array(list(reads[ROOT]))] * len(prompts))]
    if asked:
        for said, more in zip(answers, forward.wave([asked] * len(prompts)), strict=True):
            said += more
    logprobs = {
        key: np.stack([said[number].logits - np.float32(said[number].log_total) for said in answers])
        for number, key in enumerate([ROOT, *(cell.key for cell in asked)])
    }
    found = [np.stack([logprobs[key][:, place] for key, place in path], axis=1) for path in steps]
    return found, first.log_softmax(-1).cpu().numpy()


def edge_priors(trie: Trie, priors: NDArray[np.floating], lengths: Ints) -> dict[str, NDArray[np.float16]]:
    """Priors of the trie's edges and of what follows its leaves, from those of the tokens of each document's docid.

    `priors` holds them end to end, in the order of the trie; document `row` has the next lengths[row] of them, the end
    of the answer included. Returns the arrays `priors`, (nodes,), and `tail_priors`, (documents,): sums over the tokens
    behind the distinguishing prefix.
    """
    starts = np.cumsum(lengths) - lengths
    leaves = np.flatnonzero(trie.first_child[1:] == trie.first_child[:-1])
    rank = np.sort(np.concatenate([np.arange(trie.leaves), trie.shared.astype(np.int64)]))
    path = [leaves[rank]]
    while path[-1].any():
        path.append(
            np.where(
                path[-1] > 0,
                np.searchsorted(trie.first_child, path[-1].astype(trie.first_child.dtype), side="right") - 1,
                0,
            )
        )
    depth = np.sum([nodes > 0 for nodes in path], axis=0)
    edges = np.zeros(trie.nodes, dtype=np.float16)
    for up, nodes in enumerate(path):
        below = nodes > 0
        edges[nodes[below]] = priors[(starts + depth - up - 1)[below]]
    sums = np.concatenate([[0.0], np.cumsum(priors, dtype=np.float64)])
    return {"priors": edges, "tail_priors": (sums[starts + lengths] - sums[starts + depth]).astype(np.float16)}
