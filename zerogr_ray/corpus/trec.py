"""Judgements and runs in TREC format, and judgements as BEIR writes them. Fields are separated by ASCII whitespace."""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Iterator

from zerogr_ray.corpus.fields import RowError, grade
from zerogr_ray.corpus.files import Source, lines, locate
from zerogr_ray.errors import InputError
from zerogr_ray.rows import Qrels, Run
from zerogr_ray.s3 import open_url, reaching

BEIR_HEADER = [b"query-id", b"corpus-id", b"score"]


def ranked(scores: dict[str, float]) -> list[str]:
    """Docnos, best first; equal scores by docno, last in the alphabet first, as trec_eval does."""
    return sorted(scores, key=lambda docno: (scores[docno], docno), reverse=True)


def read_qrels(path: str) -> Qrels:
    """Judgements from `qid 0 docno relevance` lines, or from a BEIR .tsv with its header.

    Raises InputError naming file and line: a line with other fields, a relevance that is not a whole number, a second
    judgement that contradicts the first.
    """
    source = locate(path)
    qrels: Qrels = {}
    beir = False
    for index, (number, line) in enumerate(lines(source)):
        fields = line.split()
        if index == 0 and fields == BEIR_HEADER:
            beir = True
            continue
        shape = "query-id, corpus-id and score between tabs" if beir else "qid 0 docno relevance"
        # Between tabs an id may hold spaces.
        fields = [part.strip() for part in line.split(b"\t")] if beir else fields
        if len(fields) != (3 if beir else 4):
            raise _bad(source, number, f"it has {len(fields)} fields, not {shape}")
        qid, docno, relevance = _decode(source, number, [fields[0], fields[-2], fields[-1]])
        try:
            value = grade(relevance)
        except RowError as error:
            raise _bad(source, number, str(error)) from None
        if qrels.setdefault(qid, {}).setdefault(docno, value) != value:
            raise _bad(source, number, f"it contradicts an earlier line about query {qid!r} and document {docno!r}")
    return qrels


def read_run(path: str) -> Run:
    """A run from `qid Q0 docno rank score tag` lines. The scores count; the ranks are not read.

    Raises InputError naming file and line: a line with other fields, a score that is not a number, a document twice.
    """
    source = locate(path)
    run: Run = {}
    for number, line in lines(source):
        fields = line.split()
        if len(fields) != 6:
            raise _bad(source, number, f"it has {len(fields)} fields, not qid Q0 docno rank score tag")
        qid, docno, score = _decode(source, number, [fields[0], fields[2], fields[4]])
        try:
            value = float(score)
        except ValueError:
            value = math.nan
        if math.isnan(value):
            raise _bad(source, number, f"the score is {score!r}, not a number")
        if docno in run.setdefault(qid, {}):
            raise _bad(source, number, f"query {qid!r} has document {docno!r} a second time")
        run[qid][docno] = value
    return run


def write_run(path: str, run: Run, tag: str) -> None:
    """Write a run, best document first, ranks from 1; scores keep every digit. A query without documents has no line.

    Raises InputError for an id that the format cannot carry (empty, or with a space in it) and a score that is NaN.
    """
    _write(path, _run_lines(run, tag))


def write_qrels(path: str, qrels: Qrels) -> None:
    """Write judgements as `qid 0 docno relevance`. Raises InputError for an id that the format cannot carry."""
    rows = ((qid, docno, value) for qid, judged in qrels.items() for docno, value in judged.items())
    _write(path, (f"{_id(qid)} 0 {_id(docno)} {value}\n" for qid, docno, value in rows))


def _run_lines(run: Run, tag: str) -> Iterator[str]:
    for qid, scores in run.items():
        for rank, docno in enumerate(ranked(scores), 1):
            score = float(scores[docno])
            if math.isnan(score):
                raise InputError(f"document {docno!r} of query {qid!r} has the score NaN, which cannot be ranked")
            yield f"{_id(qid)} Q0 {_id(docno)} {rank} {score!r} {_id(tag)}\n"


def _write(path: str, rows: Iterable[str]) -> None:
    # All of it is checked before the file is opened: a refused id leaves no half-written file.
    content = "".join(rows).encode()
    try:
        fs, name = open_url(path)
        with reaching(path), fs.open(name, "wb") as stream:
            stream.write(content)
    except (OSError, ValueError, ImportError) as error:
        raise InputError(f"{path} cannot be written: {error}") from None


def _id(value: str) -> str:
    if not value or re.search(r"[ \t\n\r\v\f]|[\ud800-\udfff]", value):
        raise InputError(f"the id {value!r} cannot stand in a TREC file: it is empty, has a space in it or is not text")
    return value


def _decode(source: Source, number: int, fields: list[bytes]) -> list[str]:
    try:
        return [field.decode("utf-8") for field in fields]
    except UnicodeDecodeError:
        raise _bad(source, number, "it is not UTF-8") from None


def _bad(source: Source, number: int, reason: str) -> InputError:
    return InputError(f"{source.shown} line {number}: {reason}; correct the line")
