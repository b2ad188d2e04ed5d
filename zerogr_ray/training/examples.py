"""The training set as one long, reproducible sequence of tokenised examples.

A training set is a folder of parquet shards `part-*.parquet` with the string columns `query` and `docid`. Every
epoch reads all of it once, in an order that depends on (seed, epoch) alone: pieces (row groups) are permuted, and the
rows of as many neighbouring pieces as fill a buffer are shuffled together. Memory stays that of one buffer whatever
the size of the set, and the example at any position of the sequence is found from the shards' metadata.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from zerogr_ray.errors import BuildError

if TYPE_CHECKING:
    import pyarrow as pa

    from zerogr_ray.chat import PromptFormat
    from zerogr_ray.config import TrainingConfig

BUFFER_ROWS = 65_536
"""Rows that are shuffled together: about 10 MB of text."""

TOKENISE_ROWS = 256
"""Rows that are tokenised at once."""


@dataclass(frozen=True, slots=True)
class Example:
    """One prompt and the answer the model shall give to it; `query` is for messages to people."""

    prompt: list[int]
    answer: list[int]
    query: str = ""


class Piece(NamedTuple):
    """One row group of one shard: what is read at once."""

    shard: Path
    group: int
    rows: int


@dataclass(frozen=True)
class ExampleStream:
    """The examples of `cfg.epochs` passes over `shards`, cut into steps of `cfg.batch_examples`.

    Position p of the sequence belongs to epoch p // size. Step s is always positions [s * batch, (s + 1) * batch),
    however many workers share it: rank r of w takes every w-th of them, from the r-th.
    """

    shards: Sequence[Path]
    instruction: str
    fmt: PromptFormat
    cfg: TrainingConfig
    buffer_rows: int = BUFFER_ROWS

    @cached_property
    def pieces(self) -> list[Piece]:
        """Every row group, from the files' footers alone."""
        import pyarrow.parquet as pq

        pieces = []
        for shard in self.shards:
            footer = pq.read_metadata(shard)
            pieces += [Piece(shard, group, footer.row_group(group).num_rows) for group in range(footer.num_row_groups)]
        pieces = [piece for piece in pieces if piece.rows]
        if not pieces:
            raise BuildError(f"the training set is empty: no rows in {len(self.shards)} shards")
        return pieces

    @cached_property
    def size(self) -> int:
        """Examples of one epoch."""
        return sum(piece.rows for piece in self.pieces)

    @property
    def total(self) -> int:
        """Examples of the whole training."""
        return max(1, round(self.size * self.cfg.epochs))

    @property
    def steps(self) -> int:
        """Optimizer steps of the whole training; the last may be smaller."""
        return -(-self.total // self.cfg.batch_examples)

    def step_batches(self, first: int = 0, rank: int = 0, world: int = 1) -> Iterator[list[Example]]:
        """This rank's share of each step from step `first` on. A share may be empty in the last step."""
        batch = self.cfg.batch_examples
        ahead = max(1, TOKENISE_ROWS // batch)  # steps whose rows are tokenised together
        rows = self.rows(first * batch)
        while texts := [row for _, row in zip(range(ahead * batch), rows, strict=False)]:
            steps = [texts[at : at + batch] for at in range(0, len(texts), batch)]
            shares = [step[rank::world] for step in steps]
            examples = iter(self.encode([row for share in shares for row in share]))
            for share in shares:
                yield [next(examples) for _ in share]

    def rows(self, start: int = 0) -> Iterator[tuple[str, str]]:
        """(query, docid) from position `start` to the end of the last epoch. Buffers before `start` are not read."""
        position = start - start % self.size
        while position < self.total:
            for window, pieces in enumerate(self._windows(position // self.size)):
                size = sum(piece.rows for piece in pieces)
                if position + size > start:
                    table = self._shuffled(pieces, position // self.size, window)
                    first, last = max(0, start - position), min(size, self.total - position)
                    for at in range(first, last, TOKENISE_ROWS):
                        part = table.slice(at, min(TOKENISE_ROWS, last - at)).to_pydict()
                        yield from zip(part["query"], part["docid"], strict=True)
                position += size
                if position >= self.total:
                    return

    def encode(self, rows: Sequence[tuple[str, str]]) -> list[Example]:
        """Tokens of each row: the chat prompt, and the docid closed by the end-of-turn token."""
        for query, docid in rows:
            if not isinstance(query, str) or not isinstance(docid, str):
                raise BuildError(f"a training row lacks its query or its docid: query={query!r}, docid={docid!r}")
        prompts = self.fmt.prompts(self.instruction, [query for query, _ in rows], self.cfg.query_tokens)
        docids = self.fmt.docids([docid for _, docid in rows])
        for tokens, (query, docid) in zip(docids, rows, strict=True):
            if not tokens:
                raise BuildError(f"the tokenizer maps the docid {docid!r} of the query {query[:80]!r} to nothing")
        return [
            Example(prompt, [*docid, self.fmt.end], query)
            for prompt, docid, (query, _) in zip(prompts, docids, rows, strict=True)
        ]

    def _windows(self, epoch: int) -> list[list[Piece]]:
        """This epoch's order of the pieces, grouped so that each group fills a buffer."""
        order = np.random.default_rng([self.cfg.seed, epoch]).permutation(len(self.pieces))
        windows: list[list[Piece]] = []
        room = 0
        for index in order:
            piece = self.pieces[index]
            if room <= 0:
                windows.append([])
                room = self.buffer_rows
            windows[-1].append(piece)
            room -= piece.rows
        return windows

    def _shuffled(self, pieces: Sequence[Piece], epoch: int, window: int) -> pa.Table:
        import pyarrow as pa
        import pyarrow.parquet as pq

        read: list[Any] = []
        for piece in pieces:
            table = pq.ParquetFile(piece.shard).read_row_group(piece.group, columns=["query", "docid"])
            read.append(table.cast(pa.schema([("query", pa.large_string()), ("docid", pa.large_string())])))
        table = pa.concat_tables(read)
        return table.take(np.random.default_rng([self.cfg.seed, epoch, window]).permutation(table.num_rows))
