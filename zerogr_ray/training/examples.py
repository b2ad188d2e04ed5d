"""The training set as one long, reproducible sequence of tokenised examples.

A training set is a folder of parquet shards `part-*.parquet` with the string columns of its task (tasks.py). Every
epoch reads all of it once, in an order that depends on (seed, epoch) alone: pieces (row groups) are permuted, and the
rows of as many neighbouring pieces as fill a buffer are shuffled together. Memory stays that of one buffer whatever
the size of the set, and the example at any position of the sequence is found from the shards' metadata.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from zerogr_ray.errors import BuildError

if TYPE_CHECKING:
    import pyarrow as pa

    from zerogr_ray.chat import PromptFormat
    from zerogr_ray.config import TrainingConfig
    from zerogr_ray.training.tasks import Row, Task

WRONG = "wrong"
"""Column of the files beside the shards: docids that the query shall not lead to."""

BUFFER_ROWS = 65_536
"""Rows that are shuffled together: about 10 MB of text."""

TOKENISE_ROWS = 256
"""Rows that are tokenised at once."""


@dataclass(frozen=True, slots=True)
class Example:
    """One prompt and the answer the model shall give to it; `query` is for messages to people.

    `wrong` are answers that a rerank step ranks below the right one; like it, they are closed by the end of the turn.
    """

    prompt: list[int]
    answer: list[int]
    query: str = ""
    wrong: tuple[list[int], ...] = ()


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
    task: Task
    fmt: PromptFormat
    cfg: TrainingConfig
    beside: Sequence[Path] = ()
    """For every shard a file with the column `wrong`, row for row: docids to rank lower, on rerank steps."""
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

    def check(self, rank: int = 0, world: int = 1) -> None:
        """Raise BuildError for an answer, right or wrong, that the tokenizer maps to nothing: now, not at its step.

        This rank reads every `world`-th of the shards.
        """
        import pyarrow.compute as pc
        import pyarrow.parquet as pq

        of, answer = self.task.columns[-2:]
        for shard in self.shards[rank::world]:
            for rows in pq.ParquetFile(shard).iter_batches(BUFFER_ROWS, columns=[answer]):
                if (lost := self._without_tokens(rows[answer])) is not None:
                    table = pq.read_table(shard, columns=[of, answer])  # only now: most of a shard is what is asked
                    named = table[of][pc.index(table[answer], lost).as_py()].as_py()
                    raise _maps_to_nothing(answer, lost, f"of the {of} {str(named)[:80]!r} in {shard}")
        for file in self.beside[rank::world]:
            for rows in pq.ParquetFile(file).iter_batches(BUFFER_ROWS, columns=[WRONG]):
                if (lost := self._without_tokens(pc.list_flatten(rows[WRONG]))) is not None:
                    raise _maps_to_nothing(f"wrong {answer}", lost, f"in {file}")

    def step_batches(self, first: int = 0, rank: int = 0, world: int = 1) -> Iterator[list[Example]]:
        """This rank's share of each step from step `first` on. A share may be empty in the last step."""
        batch = self.cfg.batch_examples
        ahead = max(1, TOKENISE_ROWS // batch)  # steps whose rows are tokenised together
        rows = self.rows(first * batch)
        done = first
        while texts := [row for _, row in zip(range(ahead * batch), rows, strict=False)]:
            steps = [texts[at : at + batch] for at in range(0, len(texts), batch)]
            shares = [step[rank::world] for step in steps]
            examples = iter(self.encode([row for share in shares for row in share]))
            for share in shares:
                done += 1
                mine = [next(examples) for _ in share]
                yield self._with_wrong(mine, share) if self.ranks(done) else mine

    def ranks(self, step: int) -> bool:
        """Whether step 1 ... `steps` is a rerank step."""
        return bool(self.beside) and self.cfg.rerank_every > 0 and step % self.cfg.rerank_every == 0

    def rows(self, start: int = 0) -> Iterator[Row]:
        """The task's columns from position `start` to the end of the last epoch, and the wrong docids where there are
        any. Buffers before `start` are not read."""
        position = start - start % self.size
        while position < self.total:
            for window, pieces in enumerate(self._windows(position // self.size)):
                size = sum(piece.rows for piece in pieces)
                if position + size > start:
                    table = self._shuffled(pieces, position // self.size, window)
                    first, last = max(0, start - position), min(size, self.total - position)
                    for at in range(first, last, TOKENISE_ROWS):
                        part = table.slice(at, min(TOKENISE_ROWS, last - at)).to_pydict()
                        yield from zip(*part.values(), strict=True)
                position += size
                if position >= self.total:
                    return

    def encode(self, rows: Sequence[Row]) -> list[Example]:
        """Tokens of each row: the prompt, and the answer closed by the end-of-turn token. Raises BuildError."""
        columns = self.task.columns
        for row in rows:
            if missing := [name for name, value in zip(columns, row, strict=False) if not isinstance(value, str)]:
                raise BuildError(f"a training row lacks its {missing[0]}: {dict(zip(columns, row, strict=False))}")
        rows = [row[: len(columns)] for row in rows]
        prompts = self.fmt.tokens(self.task.ask(self.fmt, rows))
        answers = self.fmt.tokens([row[-1] for row in rows])
        for tokens, row in zip(answers, rows, strict=True):
            if not tokens:
                raise _maps_to_nothing(columns[-1], row[-1], f"of the {columns[-2]} {row[-2][:80]!r}")
        return [
            Example(prompt, [*answer, self.fmt.end], row[-2])
            for prompt, answer, row in zip(prompts, answers, rows, strict=True)
        ]

    def held_out(self, files: Sequence[Path], rank: int = 0, world: int = 1) -> list[Example]:
        """This rank's share of the examples in `files`, in their order."""
        import pyarrow.parquet as pq

        columns = list(self.task.columns)
        tables = [pq.read_table(file, columns=columns).select(columns).to_pydict() for file in files]
        rows = [row for table in tables for row in zip(*table.values(), strict=True)]
        return self.encode(rows[rank::world])

    def _without_tokens(self, texts: pa.Array) -> str | None:
        """One of these that has none."""
        written: list[str] = [text for text in texts.unique().to_pylist() if text is not None]
        return next((text for text, ids in zip(written, self.fmt.tokens(written), strict=True) if not ids), None)

    def _with_wrong(self, examples: list[Example], rows: Sequence[Row]) -> list[Example]:
        flat = iter(self.fmt.tokens([docid for row in rows for docid in row[-1]]))
        return [
            replace(example, wrong=tuple([*next(flat), self.fmt.end] for _ in row[-1]))
            for example, row in zip(examples, rows, strict=True)
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

        wanted = pa.schema([(name, pa.large_string()) for name in self.task.columns])
        beside = dict(zip(self.shards, self.beside, strict=True)) if self.beside else {}
        read: list[Any] = []
        for piece in pieces:
            table = pq.ParquetFile(piece.shard).read_row_group(piece.group, columns=wanted.names)
            table = table.select(wanted.names).cast(wanted)
            if beside:
                wrong = pq.ParquetFile(beside[piece.shard]).read_row_group(piece.group, columns=[WRONG])
                table = table.append_column(WRONG, wrong[WRONG])
            read.append(table)
        table = pa.concat_tables(read)
        return table.take(np.random.default_rng([self.cfg.seed, epoch, window]).permutation(table.num_rows))


def _maps_to_nothing(what: str, text: str, where: str) -> BuildError:
    return BuildError(
        f"the tokenizer maps the {what} {text!r} {where} to nothing; write it in words that the tokenizer knows, or "
        "train another model: --set model=NAME"
    )
