"""Which documents hold a token and which tokens a document holds: two views of one bag of tokens, as flat arrays.

    first    (D + 1,)  the distinct tokens of document i are tokens[first[i] : first[i + 1]]
    tokens   (P,)      ascending within a document
    offsets  (V + 1,)  the documents that hold token v are rows[offsets[v] : offsets[v + 1]]
    rows     (P,)      numbers of the documents in the trie's order, ascending within a token

The bag is that of a document's docid, where every token counts the same, or that of its text (corpus/bags.py), where
words take the place of tokens, with

    weights      (P,)  how much each of `tokens` counts, in steps
    row_weights  (P,)  the same beside `rows`
    begins       (V,)  the LM's token that begins each word
    prior              with gists, what corpus/bags.py says of it: a plan then asks the LM for one word

Planning ahead finds documents through the second view and scores them by the first; see decoding/plan.py.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from zerogr_ray.corpus.bags import Bags
from zerogr_ray.errors import IndexRefused
from zerogr_ray.store import save_arrays

ARRAYS = ("first", "tokens", "offsets", "rows")
WEIGHTS = ("weights", "row_weights", "begins")
GISTS = ("prior",)
KINDS = {
    "first": ("uint32", "uint64"),
    "tokens": ("uint16", "uint32"),
    "offsets": ("uint64",),
    "rows": ("uint32",),
    "weights": ("uint8",),
    "row_weights": ("uint8",),
    "begins": ("uint32",),
    "prior": ("float32",),
}
SLICE = 1 << 22  # postings sorted at once: 32 MB of keys

Ints = NDArray[Any]


@dataclass(frozen=True, eq=False)
class Postings:
    """Flat arrays as the module says, read-only."""

    first: Ints
    tokens: Ints
    offsets: Ints
    rows: Ints
    weights: Ints | None = None
    row_weights: Ints | None = None
    begins: Ints | None = None
    prior: NDArray[np.float32] | None = None

    @classmethod
    def build(cls, docids: pa.ListArray | pa.ChunkedArray, vocab: int) -> Postings:
        """The postings of `docids`, a list of token ids below `vocab` for each document in the trie's order.

        The result takes 6 bytes a posting (8 beyond 65,536 tokens) and 4 a document (8 beyond 2**32 postings); sorting
        takes 0.3 GB more, however many docids there are.
        Raises ValueError for no docids, an empty or missing docid, and a token outside the vocabulary.
        """
        chunks = [part for part in _chunks(docids) if len(part)]
        documents = sum(map(len, chunks))
        most = sum(part.offsets[len(part)].as_py() - part.offsets[0].as_py() for part in chunks)
        if not documents or documents >= 1 << 32:
            raise ValueError(f"postings are for 1 to {(1 << 32) - 1} docids, not {documents}")
        first = np.zeros(documents + 1, dtype=np.uint32 if most < 1 << 32 else np.uint64)
        tokens = np.empty(most, dtype=np.uint16 if vocab <= 1 << 16 else np.uint32)
        held = np.zeros(vocab, dtype=np.int64)
        row = end = 0
        for lengths, flat in _slices(chunks):
            if not lengths.all() or int(flat.max()) >= vocab or int(flat.min()) < 0:
                raise ValueError(f"a docid from row {row} on is empty or holds a token that is not in 0 to {vocab - 1}")
            keys = np.repeat(np.arange(len(lengths), dtype=np.uint64) << np.uint64(32), lengths)
            keys |= flat.astype(np.uint64)
            keys.sort()
            keys = keys[np.concatenate([[True], keys[1:] != keys[:-1]])]
            distinct = keys.astype(np.uint32)
            tokens[end : end + len(keys)] = distinct
            held += np.bincount(distinct, minlength=vocab)
            ends = np.cumsum(np.bincount((keys >> np.uint64(32)).astype(np.int64), minlength=len(lengths)))
            first[row + 1 : row + 1 + len(lengths)] = end + ends
            row, end = row + len(lengths), end + len(keys)
        tokens = tokens[:end]
        offsets = np.concatenate([[0], np.cumsum(held)]).astype(np.uint64)
        return cls(first, tokens, offsets, _inverted(first, tokens, offsets)[0])

    @classmethod
    def of_bags(cls, bags: Bags) -> Postings:
        """The postings of weighted bags, one for each document in the trie's order.

        The result takes 10 bytes a posting (8 where there are no more than 65,536 words), and 12 for every word that
        there may be. Raises ValueError for no documents, and where a bag's words do not ascend or one is unheard of.
        """
        if not len(bags) or len(bags) >= 1 << 32:
            raise ValueError(f"postings are for 1 to {(1 << 32) - 1} documents, not {len(bags)}")
        vocab = len(bags.begins)
        if len(bags.words) and int(bags.words.max()) >= vocab:
            raise ValueError(f"a bag holds word {int(bags.words.max())}, which is not in 0 to {vocab - 1}")
        first = bags.first.astype(np.uint32 if bags.first[-1] < 1 << 32 else np.uint64)
        tokens = bags.words.astype(np.uint16 if vocab <= 1 << 16 else np.uint32)
        begins = np.zeros(len(tokens) + 1, dtype=bool)
        begins[first] = True
        if not (begins[1:-1] | np.greater(tokens[1:], tokens[:-1])).all():
            raise ValueError("the words of a bag have to ascend")
        offsets = np.concatenate([[0], np.cumsum(np.bincount(tokens, minlength=vocab))]).astype(np.uint64)
        weights = bags.weights.astype(np.uint8)
        rows, row_weights = _inverted(first, tokens, offsets, weights)
        return cls(first, tokens, offsets, rows, weights, row_weights, bags.begins.astype(np.uint32), bags.prior)

    @property
    def documents(self) -> int:
        """D."""
        return len(self.first) - 1

    @property
    def vocab(self) -> int:
        """V."""
        return len(self.offsets) - 1

    @property
    def bags(self) -> Bags | None:
        """What `of_bags` took; None for postings of docids."""
        if self.weights is None or self.begins is None:
            return None
        return Bags(self.first, self.tokens, self.weights, self.begins, self.prior)

    def save(self, folder: Path) -> None:
        """Write the arrays as `folder`/*.npy."""
        arrays = {name: getattr(self, name) for name in ARRAYS + WEIGHTS + GISTS}
        save_arrays(folder, {name: array for name, array in arrays.items() if array is not None})

    @classmethod
    def open(cls, folder: Path) -> Postings:
        """Map the arrays that `save` wrote. Raises IndexRefused where they are not whole or do not fit together.

        What the arrays hold is vouched for by the index's manifest, not read here.
        """
        arrays: dict[str, Ints] = {}
        there = {file.stem for file in folder.glob("*.npy")}
        weighted = WEIGHTS if there.intersection(WEIGHTS) else ()
        for name in (*ARRAYS, *weighted, *(name for name in GISTS if name in there)):
            file = folder / f"{name}.npy"
            try:
                array = arrays[name] = np.load(file, mmap_mode="r", allow_pickle=False)
            except (OSError, ValueError, EOFError) as error:
                raise IndexRefused(f"{file} cannot be read ({error}); build the index again") from error
            if not isinstance(array, np.ndarray) or array.ndim != 1 or array.dtype.name not in KINDS[name]:
                raise IndexRefused(f"{file} is not a list of {' or '.join(KINDS[name])}; build the index again")
        first, offsets = arrays["first"], arrays["offsets"]
        held = {len(array) for name, array in arrays.items() if name not in ("first", "offsets", "begins", "prior")}
        fits = len(first) > 1 and len(offsets) > 1 and first[0] == offsets[0] == 0
        fits = fits and len(arrays.get("begins", offsets[1:])) == len(offsets) - 1
        fits = fits and len(arrays.get("prior", ())) < len(offsets)
        if not fits or held != {int(first[-1])} or offsets[-1] != first[-1] or (offsets[1:] < offsets[:-1]).any():
            raise IndexRefused(f"the arrays in {folder} do not fit together; build the index again")
        return cls(**arrays)


def _inverted(
    first: Ints, tokens: Ints, offsets: Ints, weights: Ints | None = None
) -> tuple[NDArray[np.uint32], NDArray[np.uint8]]:
    """Documents by token, and what `weights` says of each: slices of documents are sorted by token, and each goes
    behind the slices before it."""
    rows = np.empty(len(tokens), dtype=np.uint32)
    row_weights = np.empty(len(tokens) if weights is not None else 0, dtype=np.uint8)
    written = offsets[:-1].astype(np.int64)
    for start in range(0, len(tokens), SLICE):
        part = tokens[start : start + SLICE]
        row = int(np.searchsorted(first, first.dtype.type(start), side="right")) - 1
        last = int(np.searchsorted(first, first.dtype.type(start + len(part)), side="left"))
        inside = np.clip(first[row : last + 1].astype(np.int64) - start, 0, len(part))
        # One sort carries all three: a token has at most 24 bits, a row 32, a weight 8.
        keys = part.astype(np.uint64) << np.uint64(40)
        keys |= np.repeat(np.arange(row, last, dtype=np.uint64), np.diff(inside)) << np.uint64(8)
        if weights is not None:
            keys |= weights[start : start + len(part)].astype(np.uint64)
        keys.sort()
        held = np.bincount(part, minlength=len(written))
        where = np.repeat(written - np.cumsum(held) + held, held) + np.arange(len(part))
        rows[where] = (keys >> np.uint64(8)).astype(np.uint32)
        if weights is not None:
            row_weights[where] = keys.astype(np.uint8)
        written += held
    return rows, row_weights


def _chunks(docids: pa.ListArray | pa.ChunkedArray) -> list[pa.ListArray]:
    if docids.null_count:
        raise ValueError(f"{docids.null_count} of {len(docids)} docids are missing")
    return docids.chunks if isinstance(docids, pa.ChunkedArray) else [docids]


def _slices(chunks: list[pa.ListArray]) -> Iterator[tuple[Ints, Ints]]:
    """(lengths, tokens laid end to end) of some documents at a time, about SLICE tokens."""
    for part in chunks:
        starts, values = part.offsets.to_numpy(), part.values.to_numpy()
        row = 0
        while row < len(part):
            end = starts.dtype.type(min(int(starts[row]) + SLICE, int(starts[-1])))
            last = max(row + 1, int(np.searchsorted(starts, end, side="right")) - 1)
            yield np.diff(starts[row : last + 1]), values[starts[row] : starts[last]]
            row = last
