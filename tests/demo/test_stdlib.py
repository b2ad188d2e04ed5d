"""The demo's corpus and queries: what the demo's figures rest on."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from zerogr_ray.demo.collection import write_stdlib_collection
from zerogr_ray.demo.queries import stdlib_queries
from zerogr_ray.demo.run import DOCUMENTS
from zerogr_ray.demo.stdlib import stdlib_documents
from zerogr_ray.errors import InputError

SMALLEST = DOCUMENTS


@pytest.fixture(scope="module")
def everything():
    return stdlib_documents()


@pytest.fixture(scope="module")
def smallest():
    return stdlib_documents(SMALLEST)


def contents(folder: Path) -> dict[str, tuple[bytes, int]]:
    files = [path for path in folder.rglob("*") if path.is_file()]
    return {str(path.relative_to(folder)): (path.read_bytes(), path.stat().st_mtime_ns) for path in files}


def test_every_judged_entry_is_in_the_smallest_corpus(smallest):
    docnos = {document.docno for document in smallest}
    queries, qrels = stdlib_queries()
    assert all(1 <= len(qrels[query.qid]) <= 3 for query in queries)
    assert {docno for judged in qrels.values() for docno in judged} <= docnos


def test_there_are_enough_different_queries():
    queries, _ = stdlib_queries()
    assert len(queries) >= 64
    assert len({query.qid for query in queries}) == len({query.text for query in queries}) == len(queries)


@pytest.mark.slow
def test_a_limit_is_kept_to_and_a_larger_one_only_adds(smallest, everything):
    larger = stdlib_documents(300)
    assert (len(smallest), len(larger)) == (SMALLEST, 300)
    assert {d.docno for d in smallest} < {d.docno for d in larger} < {d.docno for d in everything}


def test_a_limit_below_what_the_queries_need_is_refused():
    with pytest.raises(InputError, match="limit 10 is less than the"):
        stdlib_documents(10)


def test_documents_are_sorted_unique_and_have_text(everything):
    docnos = [document.docno for document in everything]
    assert docnos == sorted(set(docnos))
    assert all(document.text.strip() and document.title == document.docno for document in everything)


def test_modules_functions_and_classes_are_there_and_imported_names_are_not(everything):
    docnos = {document.docno for document in everything}
    assert {"json", "json.dumps", "collections.Counter", "os.path.splitext", "math.gcd"} <= docnos
    assert not {"argparse.ngettext", "dataclasses.FunctionType", "glob.re", "os.abc"} & docnos


def test_a_document_shows_signature_docstring_and_short_source(everything):
    text = {document.docno: document.text for document in everything}["shlex.quote"]
    assert text.startswith("shlex.quote(s)\n\nReturn a shell-escaped version")
    assert "def quote(s):" in text


def test_no_text_depends_on_the_process(everything):
    assert not [d.docno for d in everything if re.search(r"\bat 0x[0-9a-f]{6,}", d.text) or sys.executable in d.text]


def test_queries_are_not_copied_from_documents(everything):
    texts = [document.text.lower() for document in everything]
    assert not [query.text for query in stdlib_queries()[0] if any(query.text.lower() in text for text in texts)]


def test_queries_do_not_name_what_they_look_for():
    queries, qrels = stdlib_queries()
    named = [
        query.text
        for query in queries
        if any(docno.rpartition(".")[2].lower() in re.findall(r"\w+", query.text.lower()) for docno in qrels[query.qid])
    ]
    assert len(named) <= len(queries) // 10, named


@pytest.mark.slow
def test_a_new_process_writes_the_same_collection(tmp_path):
    write_stdlib_collection(tmp_path / "here", SMALLEST)
    code = (
        "import sys, pathlib; from zerogr_ray.demo.collection import write_stdlib_collection as write;"
        "write(pathlib.Path(sys.argv[1]), int(sys.argv[2]))"
    )
    command = [sys.executable, "-c", code, str(tmp_path / "there"), str(SMALLEST)]
    subprocess.run(command, check=True, env={**os.environ, "PYTHONHASHSEED": "7"})
    here, there = contents(tmp_path / "here"), contents(tmp_path / "there")
    assert {name: content for name, (content, _) in here.items()} == {
        name: content for name, (content, _) in there.items()
    }


@pytest.mark.slow
def test_writing_again_touches_only_what_changed(tmp_path):
    write_stdlib_collection(tmp_path, SMALLEST)
    before = contents(tmp_path)
    assert sorted(before) == ["corpus.jsonl", "instruction.txt", "qrels/test.tsv", "queries.jsonl"]
    write_stdlib_collection(tmp_path, SMALLEST)
    assert contents(tmp_path) == before
    write_stdlib_collection(tmp_path, SMALLEST + 1)
    assert [name for name, state in contents(tmp_path).items() if state != before[name]] == ["corpus.jsonl"]


def test_every_judgement_names_a_written_query_and_document(tmp_path):
    write_stdlib_collection(tmp_path, SMALLEST)
    docnos = {json.loads(line)["_id"] for line in (tmp_path / "corpus.jsonl").read_text(encoding="utf-8").splitlines()}
    qids = {json.loads(line)["_id"] for line in (tmp_path / "queries.jsonl").read_text(encoding="utf-8").splitlines()}
    header, *rows = (tmp_path / "qrels/test.tsv").read_text(encoding="utf-8").splitlines()
    assert header == "query-id\tcorpus-id\tscore"
    assert {row.split("\t")[0] for row in rows} == qids
    assert {row.split("\t")[1] for row in rows} <= docnos
