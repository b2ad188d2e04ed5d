"""The published algorithm as it reads: draw one docid after the other from a tree of dicts, then remove it.

Independent of the library but for the noise, which both must share to be comparable draw by draw.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from zerogr_ray.decoding.noise import gumbel
from zerogr_ray.index.trie import Trie

LogitsAt = Callable[[tuple[int, ...], list[int]], np.ndarray]
"""(path, child tokens) -> logits of those children."""


def draw_one_by_one(
    trie: Trie, logits_at: LogitsAt, temperatures, seed: int, rule: str = "reference", promise=None
) -> list[int]:
    """Leaf nodes in the order in which they are drawn. `rule`: "reference", "exact", or the wrong "never remove".
    `promise` of a leaf is added to the logits of all edges above it, where no living leaf has a better one."""
    alive = {node: list(range(*trie.children(node))) for node in range(trie.nodes)}
    drawn = []
    for draw, T in enumerate(temperatures):
        node, path = 0, [0]
        if not alive[0]:
            break
        while trie.children(node) != (len(trie.tokens), len(trie.tokens)) and alive[node]:
            choices = alive[node]
            if len(choices) > 1:
                first, last = trie.children(node)
                tokens = [int(t) for t in trie.tokens[first:last]]
                logits = logits_at(tuple(int(trie.tokens[n]) for n in path[1:]), tokens)
                if promise:
                    best = {c: best_left(alive, c, promise) for c in choices}
                    logits = [logits[c - first] + best.get(c, 0.0) for c in range(first, last)]
                noise = gumbel(seed, draw, np.arange(first, last))
                score = {c: logits[c - first] / T + noise[c - first] if T else logits[c - first] for c in choices}
                if T and rule == "exact":
                    score = {c: score[c] + np.log(share_left(trie, logits_at, alive, c, T)) for c in choices}
                node = max(choices, key=lambda c: score[c])
            else:
                node = choices[0]
            path.append(node)
        drawn.append(node)
        for parent, child in zip(path[-2::-1], path[:0:-1], strict=True):
            if rule != "never remove":
                alive[parent].remove(child)
            if alive[parent]:
                break
    return drawn


def best_left(alive: dict[int, list[int]], node: int, promise: Callable[[int], float]) -> float:
    """The best promise of a leaf below `node` that is not removed, by enumeration."""
    return max((best_left(alive, child, promise) for child in alive[node]), default=promise(node))


def share_left(trie: Trie, logits_at: LogitsAt, alive: dict[int, list[int]], node: int, T: float) -> float:
    """Share of the probability at temperature T below `node` whose leaves are not removed, by enumeration."""
    first, last = trie.children(node)
    if first == last:
        return 1.0
    tokens = [int(t) for t in trie.tokens[first:last]]
    logits = np.asarray(logits_at(tuple(trie.path(node)), tokens), dtype=np.float64) / T
    weights = np.exp(logits - logits.max())
    below = [share_left(trie, logits_at, alive, c, T) if c in alive[node] else 0.0 for c in range(first, last)]
    return float(weights / weights.sum() @ np.array(below))


def children_lists(trie: Trie) -> dict[int, list[int]]:
    """node -> children."""
    return {node: list(range(*trie.children(node))) for node in range(trie.nodes)}


def probabilities_of_first_two(
    trie: Trie, logits_at: LogitsAt, T: float, mode: str = "reference"
) -> dict[tuple[int, int], float]:
    """Exact probability of every ordered pair (first leaf, second leaf), by enumeration."""

    def leaf_probabilities(alive: dict[int, list[int]]) -> dict[tuple[int, ...], float]:
        found, todo = {}, [((0,), 1.0)]
        while todo:
            path, p = todo.pop()
            choices = alive[path[-1]]
            if not choices:
                found[path] = p
                continue
            first, last = trie.children(path[-1])
            tokens = [int(t) for t in trie.tokens[first:last]]
            logits = logits_at(tuple(int(trie.tokens[n]) for n in path[1:]), tokens) / T
            weights = np.exp([logits[c - first] for c in choices])
            todo += [((*path, c), p * w) for c, w in zip(choices, weights / weights.sum(), strict=True)]
        return found

    if mode == "exact":
        p = {path[-1]: q for path, q in leaf_probabilities(children_lists(trie)).items()}
        return {(a, b): p[a] * p[b] / (1 - p[a]) for a in p for b in p if a != b}
    pairs = {}
    for first_path, p in leaf_probabilities(children_lists(trie)).items():
        alive = children_lists(trie)
        for parent, child in zip(first_path[-2::-1], first_path[:0:-1], strict=True):
            alive[parent].remove(child)
            if alive[parent]:
                break
        for second_path, q in leaf_probabilities(alive).items():
            if second_path != (0,):
                pairs[first_path[-1], second_path[-1]] = p * q
    return pairs
