"""Rows that teach a generator: (instruction, document, query) from jsonl files, checked, chosen and written as shards.

A row is {"instruction", "query", "positive", "title"?, "task"?}: `positive` is the document's text. Rows of
{"sentence", "question"} are read as positive and query. A row that cannot be used is set aside with its reason.
"""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

from zerogr_ray.corpus.fields import RowError, clean, parse_object, pick, text
from zerogr_ray.corpus.files import lines, locate
from zerogr_ray.corpus.terms import Frequencies
from zerogr_ray.corpus.text import truncate_words
from zerogr_ray.docids.clean import words_of
from zerogr_ray.docids.rule import core_terms
from zerogr_ray.errors import InputError
from zerogr_ray.queries.clean import is_copy
from zerogr_ray.rows import Rejected
from zerogr_ray.store import hash64
from zerogr_ray.training.validation import held_out_share, is_held_out

SHARD_BATCHES = 256
"""Batches of one shard."""

SHOWN_WORDS = 96
"""Words of a document that its docid is made of: about what a prompt of 128 tokens shows of it."""

_BRACKETS = {"-lrb-": "(", "-rrb-": ")", "-lsb-": "[", "-rsb-": "]", "``": '"', "''": '"'}


@dataclass(frozen=True, slots=True)
class Triple:
    """One training row."""

    task: str
    instruction: str
    title: str
    text: str
    query: str
    file: str = field(compare=False)
    """Where it was read first."""
    line: int = field(compare=False)


class LearningRow(NamedTuple):
    """One row of a task (tasks.py), made of a triple."""

    values: tuple[str, ...]
    """Of the task's columns; the last is the answer."""
    text: str
    """Of the document: all rows of one document are held out together."""
    triple: Triple


@dataclass(frozen=True)
class Triples:
    """What was read."""

    kept: list[Triple]
    rejected: list[Rejected]
    left_out: Counter[str]
    """Rows of the tasks that were left out."""


def read_triples(
    paths: Sequence[str], instruction: str, without: Sequence[str] = (), most: int | None = None
) -> Triples:
    """Every usable row of the files, each once; at most `most` of a task, chosen by their hashes.

    `instruction` is for rows that bring none; `without` names tasks that are left out; a row without a task belongs to
    one named after its file. Raises InputError for a file that cannot be read, for a task in `without` that the files
    lack, and where no usable row is left.
    """
    kept: dict[Triple, None] = {}
    rejected: list[Rejected] = []
    left_out: Counter[str] = Counter()
    tasks: set[str] = set()
    for path in paths:
        source = locate(path)
        if source.is_folder():
            raise InputError(f"{path} is a folder; name its .jsonl files")
        stem = Path(path).name.split(".")[0]
        for number, raw in lines(source):
            try:
                triple = _triple(parse_object(raw), stem, instruction, path, number)
            except RowError as error:
                rejected.append(Rejected(path, number, str(error), raw.decode("utf-8", "replace")[:1000]))
                continue
            tasks.add(triple.task)
            if triple.task in without:
                left_out[triple.task] += 1
            else:
                kept.setdefault(triple)
    if unknown := sorted(set(without) - tasks):
        raise InputError(
            f"{', '.join(paths)}: there is no task {unknown[0]!r}; the tasks are {', '.join(sorted(tasks)) or 'none'}"
        )
    if not kept:
        first = f"; {rejected[0].file} line {rejected[0].line}: {rejected[0].reason}" if rejected else ""
        raise InputError(f"{', '.join(paths)}: no usable rows ({len(rejected)} cannot be used){first}")
    return Triples(_thinned(list(kept), most), rejected, left_out)


def _triple(row: dict[str, object], stem: str, instruction: str, file: str, line: int) -> Triple:
    """Raises RowError, one sentence, for a row that teaches nothing."""

    def field(*names: str) -> str:
        name, value = pick(row, names)
        words = " ".join(clean(text(name, value)).split()) if name != "positive" else clean(text(name, value)).strip()
        if not any(map(str.isalnum, words)):
            raise RowError(f"field {name!r} is empty; give it text or drop the row")
        return _plain(words) if name in ("sentence", "question") else words

    query, positive = field("query", "question"), field("positive", "sentence")
    title = " ".join(clean(text("title", row.get("title"))).split())
    asked = field("instruction") if row.get("instruction") is not None else instruction
    if is_copy(query, title, positive):
        raise RowError(f"the query {query[:60]!r} is the document itself; it teaches to copy: drop the row")
    return Triple(text("task", row.get("task")).strip() or stem, asked, title, positive, query, file, line)


def _plain(words: str) -> str:
    """Undo what a treebank tokeniser did: "-lrb- afc -rrb-" is "(afc)"."""
    written = " ".join(_BRACKETS.get(word, word) for word in words.split())
    written = re.sub(r"\s+([)\],.;:?!%]|n?'\w+)", r"\1", written)
    return re.sub(r"([(\[$])\s+", r"\1", written)


def _thinned(rows: list[Triple], most: int | None) -> list[Triple]:
    if most is None:
        return rows
    per_task = Counter(row.task for row in rows)
    chosen = []
    for task, count in per_task.items():
        mine = [row for row in rows if row.task == task]
        # Another key than is_held_out's, or the rows with the lowest hashes would all be held out.
        mine.sort(key=lambda row: hash64("chosen", row.query, row.text))
        chosen += mine[: min(most, count)]
    return chosen


def learning_rows(task: str, triples: Iterable[Triple]) -> tuple[list[str], list[LearningRow]]:
    """The columns that tasks.py wants for `task`, and the rows.

    queries and retriever get a row for every triple, docids one for every document. Docids come from the written rule
    (docids/rule.py), with frequencies over the documents of the row's own task: what is general depends on it.
    """
    rows = list(triples)
    if task == "queries":
        return ["instruction", "title", "text", "query"], [
            LearningRow((r.instruction, r.title, r.text, r.query), r.text, r) for r in rows
        ]
    documents: dict[str, dict[tuple[str, str], Triple]] = {}
    for row in rows:
        shown = row.title, truncate_words(row.text, SHOWN_WORDS)
        documents.setdefault(row.task, {}).setdefault(shown, row)
    counted = {
        name: Frequencies.counted((f"{title}\n{body}" for title, body in found), words_of)
        for name, found in documents.items()
    }
    if task == "docids":
        return ["title", "text", "docid"], [
            LearningRow((title, body, core_terms(title, body, counted[name])), body, row)
            for name, some in documents.items()
            for (title, body), row in some.items()
        ]
    answers = [(row, core_terms(row.title, truncate_words(row.text, SHOWN_WORDS), counted[row.task])) for row in rows]
    return ["instruction", "query", "docid"], [LearningRow((r.instruction, r.query, d), r.text, r) for r, d in answers]


def with_answers(
    columns: Sequence[str], rows: Sequence[LearningRow], tokens: Callable[[list[str]], list[list[int]]]
) -> tuple[list[LearningRow], list[Rejected]]:
    """The rows whose answers have `tokens`, and those that are set aside because theirs has none.

    Raises InputError where no row is left.
    """
    kept, rejected = [], []
    for row, ids in zip(rows, tokens([row.values[-1] for row in rows]), strict=True):
        if ids:
            kept.append(row)
            continue
        reason = (
            f"the model's tokenizer maps the {columns[-1]} {row.values[-1][:60]!r} to nothing: drop the row, or train "
            "another model: --set model=NAME"
        )
        held = json.dumps(dict(zip(columns, row.values, strict=True)), ensure_ascii=False)
        rejected.append(Rejected(row.triple.file, row.triple.line, reason, held[:1000]))
    if not kept:
        first = rejected[0]
        raise InputError(f"{first.file}: no usable rows ({len(rejected)} cannot be used); {first.reason}")
    return kept, rejected


def write_rows(
    folder: Path, columns: list[str], rows: Sequence[LearningRow], cfg: Any
) -> tuple[list[Path], list[Path]]:
    """Write shards to train on, and one that is held out: (part-*.parquet, held-*.parquet).

    Held out are whole documents, so that a generator is judged on texts it has never seen. A row group is one batch, of
    rows with one instruction while there are enough: what their prompts share is computed once.
    """
    import pyarrow as pa
    import pyarrow.parquet as pq

    share = held_out_share(len(rows), cfg)
    apart = [is_held_out(share, row.text) for row in rows]
    schema = pa.schema([(name, pa.string()) for name in columns])
    parts: dict[str, list[tuple[Any, ...]]] = {
        "part": [row.values for row, away in zip(rows, apart, strict=True) if not away],
        "held": [row.values for row, away in zip(rows, apart, strict=True) if away],
    }
    folder.mkdir(parents=True, exist_ok=True)
    written: dict[str, list[Path]] = {"part": [], "held": []}
    shard = SHARD_BATCHES * cfg.batch_examples
    if columns[0] == "instruction":
        parts["part"] = _by_instruction(parts["part"], cfg.batch_examples)
    for kind, chosen in parts.items():
        for number, at in enumerate(range(0, len(chosen), shard)):
            path = folder / f"{kind}-{number:05d}.parquet"
            arrays = [list(column) for column in zip(*chosen[at : at + shard], strict=True)]
            table = pa.table(arrays, schema=schema)
            pq.write_table(table, path, compression="zstd", row_group_size=cfg.batch_examples)
            written[kind].append(path)
    return written["part"], written["held"]


def _by_instruction(rows: list[tuple[Any, ...]], batch: int) -> list[tuple[Any, ...]]:
    """Whole batches of one instruction each, in no order that the files had, and then what is left of all."""
    groups: dict[str, list[tuple[Any, ...]]] = {}
    for row in sorted(rows, key=lambda row: hash64("order", *map(str, row))):
        groups.setdefault(row[0], []).append(row)
    whole = {instruction: len(some) // batch * batch for instruction, some in groups.items()}
    first = [row for instruction, some in groups.items() for row in some[: whole[instruction]]]
    return first + [row for instruction, some in groups.items() for row in some[whole[instruction] :]]
