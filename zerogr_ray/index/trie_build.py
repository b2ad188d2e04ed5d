"""How the prefix tree is built: sorted integers from end to end, never one Python object per docid or node.

The tokens of a docid are packed into as few 64-bit words as their bits allow, so that a few integer keys sort the
docids and an exclusive-or tells how many tokens neighbours have in common; the levels follow from that alone. Only the
first KEY tokens are packed, or one docid of a hundred tokens would make room for a hundred in every other; the docids
that agree in all of these, which are few, are then sorted by what follows. Beside the rows a build holds about 40 bytes
per docid of 12 16-bit tokens at its peak (40 million: 1 GB of rows, 3 GB in all).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from zerogr_ray.index.table import take

Ints = NDArray[Any]
TrieArrays = tuple[Ints, Ints, Ints, NDArray[np.int64]]

Beyond = Callable[[NDArray[np.int64]], Ints]
"""Tokens after the first KEY of the docids with these numbers, (m, columns), filled up with the end token."""

KEY = 16
"""Tokens of a docid by which all are sorted; what follows is read where docids agree in these."""

SLICE = 1 << 18
"""Docids worked on at a time where a step needs scratch arrays: they stay in the processor's cache."""

PART = 1 << 15
"""Docids that are sorted at a time: their keys stay in the processor's cache."""


@dataclass(frozen=True, eq=False)
class Keys:
    """The first tokens of every docid, packed."""

    words: list[NDArray[np.uint64]]
    """Each (documents,): earlier tokens in earlier words and in higher bits."""
    bits: int
    """That a token takes."""
    columns: int
    """Tokens of each docid."""

    @classmethod
    def of(cls, rows: Ints, bits: int | None = None) -> Keys:
        """Those of rows of shape (documents, columns), by default in as few bits as they need."""
        bits = bits or max(1, int(rows.max()).bit_length())
        per = 64 // bits
        words = [np.empty(len(rows), dtype=np.uint64) for _ in range(0, rows.shape[1], per)]
        for start in range(0, len(rows), SLICE):
            part = rows[start : start + SLICE]
            for number, word in enumerate(words):
                packed = np.zeros(len(part), dtype=np.uint64)
                for slot, column in enumerate(part.T[number * per : (number + 1) * per]):
                    packed |= column.astype(np.uint64) << np.uint64(bits * (per - 1 - slot))
                word[start : start + SLICE] = packed
        return cls(words, bits, rows.shape[1])

    def column(self, place: int, of: NDArray[np.bool_] | slice = slice(None)) -> NDArray[np.uint64]:
        """The token at this place of some docids, by default of all."""
        per = 64 // self.bits
        token = self.words[place // per][of] >> np.uint64(self.bits * (per - 1 - place % per))
        token &= np.uint64((1 << self.bits) - 1)
        return token


def docid_rows(docids: Sequence[Sequence[int]] | pa.Array | pa.ChunkedArray, end: int, most: int | None = None) -> Ints:
    """Docids as one array of shape (documents, longest + 1), uint16 where every token fits, else uint32.

    Each row is filled up with the end-of-turn token `end`, and cut to `most` columns. Arrow lists (of any offset width,
    in chunks or not) are read in place. Raises ValueError for no docids, an empty docid, and a docid that holds `end`.
    """
    docids = arrow_lists(docids)
    chunks = [chunk for chunk in getattr(docids, "chunks", [docids]) if len(chunk)]
    lengths = [chunk.value_lengths().fill_null(0).to_numpy() for chunk in chunks]
    if not chunks or not all(part.all() for part in lengths):
        raise ValueError("a trie needs at least one docid, and no docid may be empty")
    flat = [chunk.flatten().to_numpy() for chunk in chunks]
    if any((part == end).any() for part in flat):
        raise ValueError(f"a docid holds the end-of-turn token {end}")
    width = np.uint16 if max(end, *(int(part.max()) for part in flat)) < 1 << 16 else np.uint32
    longest = max(int(part.max()) for part in lengths)
    columns, row = np.arange(min(longest + 1, most or longest + 1)), 0
    rows = np.full((len(docids), len(columns)), end, dtype=width)
    for part, tokens in zip(lengths, flat, strict=True):
        begins = np.concatenate([[0], np.cumsum(part, dtype=np.int64)])
        for start in range(0, len(part), SLICE):
            some = part[start : start + SLICE]
            first = begins[start : start + len(some)]
            own = tokens[first[0] : begins[start + len(some)]]
            if int(some.max()) > len(columns):
                own = own[np.arange(len(own)) - np.repeat(first - first[0], some) < len(columns)]
            rows[row : row + len(some)][columns < some[:, None]] = own
            row += len(some)
    return rows


def arrow_lists(docids: Sequence[Sequence[int]] | pa.Array | pa.ChunkedArray) -> pa.Array | pa.ChunkedArray:
    """Docids as Arrow lists, as which they may be given."""
    if isinstance(docids, (pa.Array, pa.ChunkedArray)):
        return docids
    return pa.array([list(docid) for docid in docids], pa.large_list(pa.uint32()))


def beyond_key(docids: pa.Array | pa.ChunkedArray, end: int) -> Beyond:
    """What reads on where these docids agree in their first KEY tokens."""
    table = pa.table([docids], ["docid"])
    return lambda numbers: docid_rows(take(table, numbers)["docid"], end)[:, KEY:]


def trie_arrays(rows: Ints, end: int, beyond: Beyond | None = None) -> TrieArrays:
    """(tokens, first_child, shared, order) of the docids in `rows`, shape (documents, longest + 1); see trie.py.

    Each row is filled up with the end-of-turn token `end`; with `beyond` it may be cut to KEY + 1 columns. `order`,
    shape (documents,), gives the row of every document; documents of one leaf keep the order in which they were given.
    """
    # The last column holds the end token in every row, unless they are cut: two docids never differ there first.
    keys = Keys.of(rows[:, : max(1, min(rows.shape[1] - 1, KEY))])
    return sorted_arrays(keys, sort_words(keys.words), rows.dtype, end, beyond or (lambda numbers: rows[numbers, KEY:]))


def sorted_arrays(
    keys: Keys, order: NDArray[np.int64], token_type: np.dtype[Any], end: int, beyond: Beyond
) -> TrieArrays:
    """As `trie_arrays`, of sorted keys of at most KEY tokens and the row of each. Both are used up."""
    common = _common(keys)
    is_new = common[:-1] < keys.columns
    tied, tails = np.empty(0, dtype=np.int64), np.empty((0, 1), dtype=token_type)
    if keys.columns == KEY and not is_new.all():
        common, tied, tails = _sort_tied(keys, common, is_new, order, end, beyond)
    deep = tied[is_new[tied]]
    if len(deep):
        deep, tails = np.cumsum(is_new)[deep] - 1, tails[is_new[tied]]
    if not is_new.all():
        for number, word in enumerate(keys.words):
            keys.words[number] = word[is_new]
    begins = common[:-1][is_new]  # tokens that each distinct docid has in common with the one before it,
    depth = np.maximum(begins, np.append(begins[1:], common.dtype.type(0))) + 1  # and its distinguishing length
    tokens, first_child = _levels(keys, begins, depth, token_type, deep, tails)
    keys.words.clear()
    # A level's leaves are numbered in the docids' order, so leaf order is this order sorted by depth.
    by_leaf = np.argsort(depth[np.cumsum(is_new) - 1], kind="stable")
    is_new = is_new[by_leaf]
    shared = np.flatnonzero(~is_new)
    shared -= np.arange(1, len(shared) + 1)  # rank of the leaf: documents before, less those that share a leaf
    return tokens, first_child, shared.astype(first_child.dtype), order[by_leaf]


def sort_words(words: list[NDArray[np.uint64]]) -> NDArray[np.int64]:
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


def _common(keys: Keys) -> Ints:
    """Leading tokens that each of the sorted docids shares with the one before it, shape (documents + 1,).

    0 before the first and after the last; equal keys count all tokens that their words have room for.
    """
    words, bits = keys.words, keys.bits
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


def _sort_tied(
    keys: Keys, common: Ints, is_new: NDArray[np.bool_], order: NDArray[np.int64], end: int, beyond: Beyond
) -> tuple[Ints, Ints, Ints]:
    """Sort docids of equal keys by their tokens beyond: `common` as it is then, the docids' places, and these tokens.

    `is_new` and `order` change in place.
    """
    joined = ~is_new
    joined[:-1] |= ~is_new[1:]
    tied = np.flatnonzero(joined & (keys.column(KEY - 1) != end))  # docids that end within equal keys are equal
    if not len(tied):
        return common, tied, np.empty((0, 1), dtype=np.uint16)
    tails, group = beyond(order[tied]), np.cumsum(is_new)[tied]
    inside = np.lexsort([*Keys.of(tails).words[::-1], group])
    order[tied], tails = order[tied][inside], tails[inside]
    same = np.logical_and.accumulate(tails[1:] == tails[:-1], axis=1).sum(axis=1)[group[1:] == group[:-1]]
    again = tied[1:][group[1:] == group[:-1]]
    common = common.astype(np.min_scalar_type(KEY + tails.shape[1]))
    common[again] = KEY + same
    is_new[again] = same < tails.shape[1]
    return common, tied, tails


def _levels(
    keys: Keys, begins: Ints, depth: Ints, token_type: np.dtype[Any], deep: NDArray[np.int64], tails: Ints
) -> tuple[Ints, Ints]:
    """(tokens, first_child) of the distinct docids: one's nodes are at levels begins + 1 to depth, levels from 1.

    `deep` are the docids that may reach beyond KEY, and `tails` their tokens there.
    """
    nodes = 1 + int(depth.sum(dtype=np.int64) - begins.sum(dtype=np.int64))
    tokens = np.zeros(nodes, dtype=token_type)
    first_child = np.ones(nodes + 1, dtype=np.uint32 if nodes < 1 << 32 else np.uint64)
    start, here = 1, begins == 0
    for level in range(int(depth.max())):
        if level == KEY:
            here, begins, depth = here[deep], begins[deep], depth[deep]
        past = start + int(np.count_nonzero(here))
        below = (begins <= level + 1) & (depth > level + 1)
        before: Ints = np.cumsum(below, dtype=first_child.dtype)  # nodes of the next level up to each docid,
        before -= below  # without its own
        tokens[start:past] = keys.column(level, here) if level < KEY else tails[here, level - KEY]
        first_child[start:past] = before[here] + first_child.dtype.type(past)
        start, here = past, below
    first_child[nodes] = nodes
    return tokens, first_child
