"""The demo's test collection as a folder in BEIR's layout."""

from __future__ import annotations

import json
from pathlib import Path

from zerogr_ray.demo.queries import stdlib_queries
from zerogr_ray.demo.stdlib import stdlib_documents

INSTRUCTION = (
    "Given a question of a Python programmer, "
    "retrieve the module, function or class of the standard library that answers it."
)


def write_stdlib_collection(folder: Path, limit: int) -> None:
    """Write corpus.jsonl, queries.jsonl, qrels/test.tsv and instruction.txt; leave a file that is right untouched.

    A query is left out when this Python was built without every entry that answers it (sqlite3, say).
    """
    documents = stdlib_documents(limit)
    docnos = {document.docno for document in documents}
    queries, qrels = stdlib_queries()
    found = {qid: sorted(judged.keys() & docnos) for qid, judged in qrels.items()}
    corpus_rows = [{"_id": d.docno, "title": d.title, "text": d.text} for d in documents]
    query_rows = [{"_id": query.qid, "text": query.text} for query in queries if found[query.qid]]
    judgements = [
        f"{qid}\t{docno}\t{qrels[qid][docno]}" for qid, docnos_found in found.items() for docno in docnos_found
    ]
    _write(folder / "corpus.jsonl", [json.dumps(row, ensure_ascii=False) for row in corpus_rows])
    _write(folder / "queries.jsonl", [json.dumps(row, ensure_ascii=False) for row in query_rows])
    _write(folder / "qrels" / "test.tsv", ["query-id\tcorpus-id\tscore", *judgements])
    _write(folder / "instruction.txt", [INSTRUCTION])


def _write(path: Path, lines: list[str]) -> None:
    content = "".join(f"{line}\n" for line in lines).encode()
    if path.is_file() and path.read_bytes() == content:
        return
    path.parent.mkdir(parents=True, exist_ok=True)
    unfinished = path.with_name(f"{path.name}.part")
    unfinished.write_bytes(content)
    unfinished.replace(path)
