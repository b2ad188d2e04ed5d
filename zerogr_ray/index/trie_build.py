"""How the prefix tree is built: sorted integers from end to end, never one Python object per docid or node.

The tokens of a docid are packed into as few 64-bit words as their bits allow, so that a few integer keys sort the
docids and an exclusive-or tells how many tokens neighbours have in common; the levels follow from that alone. Beside
the rows a build holds about 40 bytes per docid of 12 16-bit tokens at its peak (40 million: 1 GB of rows, 3 GB in all).
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

Ints = NDArray[Any]

SLICE = 1 << 18
"""Docids worked on at a time where a step needs scratch arrays: they stay in the processor's cache."""

PART = 1 << 15
"""Docids that are sorted at a time: their keys stay in the processor's cache."""


def docid_rows(docids: Sequence[Sequence[int]] | pa.Array | pa.ChunkedArray, end: int) -> Ints:
    """Docids as one array of shape (documents, longest + 1), uint16 where every token fits, else uint32.

    Each row is filled up with the end-of-turn token `end`. Arrow lists (of any offset width, in chunks or not) are
    read in place. Raises ValueError for no docids, an empty docid, and a docid that holds `end`.
    """
    if not isinstance(docids, (pa.Array, pa.ChunkedArray)):
        docids = pa.array([list(docid) for docid in docids], pa.large_list(pa.uint32()))
    chunks = [chunk for chunk in getattr(docids, "chunks", [docids]) if len(chunk)]
    lengths = [chunk.value_lengths().fill_null(0).to_numpy() for chunk in chunks]
    if not chunks or not all(part.all() for part in lengths):
        raise ValueError("a trie needs at least one docid, and no docid may be empty")
    flat = [chunk.flatten().to_numpy() for chunk in chunks]
    if any((part == end).any() for part in flat):
        raise ValueError(f"a docid holds the end-of-turn token {end}")
    width = np.uint16 if max(end, *(int(part.max()) for part in flat)) < 1 << 16 else np.uint32
    rows = np.full((len(docids), max(int(part.max()) for part in lengths) + 1), end, dtype=width)
    columns, row = np.arange(rows.shape[1]), 0
    for part, tokens in zip(lengths, flat, strict=True):
        begins = np.concatenate([[0], np.cumsum(part, dtype=np.int64)])
        for start in range(0, len(part), SLICE):
            some = part[start : start + SLICE]
            into = rows[row : row + len(some)]
            into[columns < some[:, None]] = tokens[begins[start] : begins[start + len(some)]]
            row += len(some)
    return rows


def trie_arrays(rows: Ints) -> tuple[Ints, Ints, Ints, NDArray[np.int64]]:
    """(tokens, first_child, shared, order) of the docids in `rows`, shape (documents, longest + 1); see trie.py.

    Each row is filled up with the end-of-turn token. `order`, shape (documents,), gives the row of every document;
    documents of one leaf keep the order in which they were given.
    """
    # The last column holds the end token in every row: two docids never differ there first.
    used = rows[:, : max(1, rows.shape[1] - 1)]
    words, bits = _packed(used)
    order = _sort(words)
    common = _common(words, bits)
    is_new = common[:-1] < used.shape[1]
    if not is_new.all():
        for number, word in enumerate(words):
            words[number] = word[is_new]
    begins = common[:-1][is_new]  # tokens that each distinct docid has in common with the one before it,
    depth = np.maximum(begins, np.append(begins[1:], common.dtype.type(0))) + 1  # and its distinguishing length
    tokens, first_child = _levels(words, bits, begins, depth, rows.dtype)
    words.clear()
    # A level's leaves are numbered in the docids' order, so leaf order is this order sorted by depth.
    by_leaf = np.argsort(depth[np.cumsum(is_new) - 1], kind="stable")
    is_new = is_new[by_leaf]
    shared = np.flatnonzero(~is_new)
    shared -= np.arange(1, len(shared) + 1)  # rank of the leaf: documents before, less those that share a leaf
    return tokens, first_child, shared.astype(first_child.dtype), order[by_leaf]


def _packed(rows: Ints) -> tuple[list[NDArray[np.uint64]], int]:
    """The rows as words of shape (documents,), earlier tokens in higher bits, and the bits that a token takes."""
    bits = max(1, int(rows.max()).bit_length())
    per = 64 // bits
    words = [np.empty(len(rows), dtype=np.uint64) for _ in range(0, rows.shape[1], per)]
    for start in range(0, len(rows), SLICE):
        part = rows[start : start + SLICE]
        for number, word in enumerate(words):
            packed = np.zeros(len(part), dtype=np.uint64)
            for slot, column in enumerate(part.T[number * per : (number + 1) * per]):
                packed |= column.astype(np.uint64) << np.uint64(bits * (per - 1 - slot))
            word[start : start + SLICE] = packed
    return words, bits


def _sort(words: list[NDArray[np.uint64]]) -> NDArray[np.int64]:
    """Sort the words in place, first word first; returns the stable order, shape (documents,).

    Docids are dealt into parts by their first word, and each part is sorted inside the processor's cache: three
    times as fast as one sort, whose every comparison of 40 million docids waits for memory.
    """
    first = words[0]
    sample = np.sort(first[:: max(1, len(first) // (1 << 16))])
    limits = np.unique(sample[:: max(1, len(sample) * PART // len(first))])[1:]  # the least first word of each part
    part = np.empty(len(first), dtype=np.uint16 if len(limits) < 1 << 16 else np.uint32)
    for start in range(0, len(first), SLICE):
        part[start : start + SLICE] = np.searchsorted(limits, first[start : start + SLICE], side="right")
    order = np.argsort(part, kind="stable")
    edges = np.concatenate([[0], np.cumsum(np.bincount(part, minlength=len(limits) + 1))])
    for number, word in enumerate(words):
        words[number] = word[order]
    for start, past in pairwise(edges):
        inside = np.lexsort([word[start:past] for word in words[::-1]])
        for array in (order, *words):
            array[start:past] = array[start:past][inside]
    return order


def _common(words: list[NDArray[np.uint64]], bits: int) -> Ints:
    """Leading tokens that each of the sorted docids shares with the one before it, shape (documents + 1,).

    0 before the first and after the last; equal docids count all tokens that their words have room for.
    """
    documents, per = len(words[0]), 64 // bits
    common: Ints = np.zeros(documents + 1, dtype=np.min_scalar_type(len(words) * per))
    for start in range(1, documents, SLICE):
        past = min(start + SLICE, documents)
        alike = np.ones(past - start, dtype=bool)
        for word in words:
            differs = word[start:past] ^ word[start - 1 : past - 1]
            for free in range(per - 1, -1, -1):
                common[start:past] += alike & (differs < np.uint64(1 << bits * free))
            alike &= differs == 0
    return common


def _levels(
    words: list[NDArray[np.uint64]], bits: int, begins: Ints, depth: Ints, token_type: np.dtype[Any]
) -> tuple[Ints, Ints]:
    """(tokens, first_child) of the distinct docids: one's nodes are at levels begins + 1 to depth, levels from 1."""
    nodes = 1 + int(depth.sum(dtype=np.int64) - begins.sum(dtype=np.int64))
    tokens = np.zeros(nodes, dtype=token_type)
    first_child = np.ones(nodes + 1, dtype=np.uint32 if nodes < 1 << 32 else np.uint64)
    per, mask = 64 // bits, np.uint64((1 << bits) - 1)
    start, here = 1, begins == 0
    for level in range(int(depth.max())):
        word, shift = words[level // per], np.uint64(bits * (per - 1 - level % per))
        past = start + int(np.count_nonzero(here))
        below = (begins <= level + 1) & (depth > level + 1)
        before: Ints = np.cumsum(below, dtype=first_child.dtype)  # nodes of the next level up to each docid,
        before -= below  # without its own
        token = word[here]
        token >>= shift
        token &= mask
        tokens[start:past] = token
        first_child[start:past] = before[here] + first_child.dtype.type(past)
        start, here = past, below
    first_child[nodes] = nodes
    return tokens, first_child
