"""Test collections: queries and their judgements, as BEIR and MAIR lay them out."""

from __future__ import annotations

from zerogr_ray.corpus.fields import RowError, clean, grade, identifier, parse_object, pick, text
from zerogr_ray.corpus.files import Source, first_file, lines, locate
from zerogr_ray.corpus.trec import read_qrels
from zerogr_ray.errors import InputError
from zerogr_ray.rows import Collection, Qrels, Query

QUERY_FILES = ("queries.jsonl", "queries.jsonl.gz", "queries.ndjson")
QID_FIELDS = ("_id", "qid", "id", "query_id")
QUERY_FIELDS = ("text", "query")


def read_collection(path: str, split: str = "test") -> Collection:
    """Queries that have judgements, in the order of the file, with those judgements.

    BEIR: queries.jsonl, qrels/{split}.tsv, instruction.txt if there is one. MAIR: queries.jsonl whose rows carry
    `labels` and `instruction`; it has one split, and `split` is not used. Judgements of queries that the file of
    queries lacks are left out. Unlike a corpus row, a bad query is an error: leaving it out would change the measure.

    Raises InputError naming the files looked for and the splits there are, or the file and line that is wrong.
    """
    root = locate(path)
    if not root.is_folder():
        raise InputError(f"{path} is a file; give the folder of a test collection, with queries.jsonl in it")
    source = first_file(root, QUERY_FILES)
    if source is None:
        raise InputError(f"{path} has no queries: looked for {', '.join(QUERY_FILES)}")
    queries, labels = _queries(source)
    qrels = labels if labels is not None else _qrels(root, split)
    judged = [query for query in queries if query.qid in qrels]
    if not judged:
        where = "labels" if labels is not None else f"qrels/{split}.tsv"
        raise InputError(f"no query of {source.shown} has judgements in its {where}; do the query ids match?")
    return Collection(
        name=root.name.rstrip("/").rsplit("/", 1)[-1],
        path=path,
        queries=judged,
        qrels={query.qid: qrels[query.qid] for query in judged},
        instruction=_instruction(root),
    )


def _queries(source: Source) -> tuple[list[Query], Qrels | None]:
    """Queries in order; their labels if any row carries labels (MAIR), else None."""
    queries: dict[str, Query] = {}
    qrels: Qrels = {}
    labelled = False
    for number, raw in lines(source):
        try:
            row = parse_object(raw)
            query = Query(
                qid=identifier(*pick(row, QID_FIELDS)),
                text=clean(text(*pick(row, QUERY_FIELDS))),
                instruction=clean(text("instruction", row.get("instruction"))),
            )
            if not query.text.strip() and not query.instruction.strip():
                raise RowError(f"query {query.qid!r} is empty")
            if query.qid in queries:
                raise RowError(f"query {query.qid!r} was there before")
            if "labels" in row:
                labelled = True
                labels = _labels(row["labels"])
                if labels:
                    qrels[query.qid] = labels
        except RowError as error:
            raise InputError(f"{source.shown} line {number}: {error}; correct the line") from None
        queries[query.qid] = query
    if not queries:
        raise InputError(f"{source.shown} has no queries; add one JSON object per line")
    return list(queries.values()), qrels if labelled else None


def _labels(labels: object) -> dict[str, int]:
    """Judgements of one query: [{"id": docno, "score": grade}] or {docno: grade}."""
    if isinstance(labels, dict):
        return {identifier("labels", docno): grade(score) for docno, score in labels.items()}
    if not isinstance(labels, list) or not all(isinstance(label, dict) for label in labels):
        raise RowError("field 'labels' is neither a list of {id, score} nor an object of docno: score")
    return {identifier(*pick(label, ("id",))): grade(label.get("score", 1)) for label in labels}


def _qrels(root: Source, split: str) -> Qrels:
    folder = root / "qrels"
    source = folder / f"{split}.tsv"
    if source.is_file():
        return read_qrels(source.shown)
    splits = (
        [name.removesuffix(".tsv") for name in folder.children() if name.endswith(".tsv")] if folder.is_folder() else []
    )
    there = f"it has the splits {', '.join(splits)}: choose one of them" if splits else "it has no splits"
    raise InputError(f"{root.shown} has no judgements: looked for qrels/{split}.tsv and for labels in queries; {there}")


def _instruction(root: Source) -> str:
    source = first_file(root, ("instruction.txt",))
    if source is None:
        return ""
    with source.reading() as stream:
        return clean(stream.read().decode("utf-8-sig", "replace")).strip()
