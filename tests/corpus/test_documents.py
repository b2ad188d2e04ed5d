"""Every row of a corpus becomes a document or is rejected with its reason; nothing is lost, nothing stops the rest."""

import gzip
import json
import re
import tempfile
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from zerogr_ray.corpus.documents import Seen, read_documents, source_stamp
from zerogr_ray.errors import InputError
from zerogr_ray.rows import Document, Rejected

WIDE = 1_000_000


def read(path, text_chars=WIDE):
    return list(read_documents(str(path), text_chars))


def write_lines(path: Path, *rows) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    content = b"".join((row if isinstance(row, bytes) else json.dumps(row).encode()) + b"\n" for row in rows)
    path.write_bytes(gzip.compress(content) if path.name.endswith(".gz") else content)
    return path


def only_rejected(path) -> Rejected:
    rejected = [row for row in read(path) if isinstance(row, Rejected)]
    assert len(rejected) == 1
    return rejected[0]


def cleaned(text: str) -> str:
    """The documented cleaning, written a second time."""
    bad = {*range(32), *range(127, 160)} - {9, 10}
    return "".join(" " if ord(c) in bad else "\ufffd" if 0xD800 <= ord(c) < 0xE000 else c for c in text)


def expected(rows, text_chars):
    """What reading should give: the documents in order, and how many rows are rejected."""
    documents, rejected = {}, 0
    for docno, title, text in rows:
        docno = cleaned(docno).replace("\n", " ").replace("\t", " ").strip()
        text, title = cleaned(text)[:text_chars], cleaned(title)[:text_chars]
        if not docno or docno in documents or not (text.strip() or title.strip()):
            rejected += 1
        else:
            documents[docno] = Document(docno=docno, text=text, title=title)
    return list(documents.values()), rejected


anything = st.text(st.characters(codec="utf-8"), max_size=30)
with_surrogates = st.text(st.characters() | st.characters(categories=["Cs"]), max_size=30)


def check(rows, path, text_chars):
    documents, rejected = expected(rows, text_chars)
    if not rows:
        with pytest.raises(InputError, match="no rows"):
            read(path, text_chars)
        return
    found = read(path, text_chars)
    assert [row for row in found if isinstance(row, Document)] == documents
    assert sum(isinstance(row, Rejected) for row in found) == rejected


@settings(max_examples=100, deadline=None)
@given(
    st.lists(st.tuples(with_surrogates, with_surrogates, with_surrogates), max_size=8),
    st.sampled_from(["c.jsonl", "c.jsonl.gz", "c.ndjson"]),
    st.integers(1, 40),
    st.booleans(),
)
def test_any_text_written_as_jsonl_reads_back_cleaned(rows, name, text_chars, escaped):
    # Lone surrogates can only be written as escapes.
    escaped = escaped or bool(re.search("[\ud800-\udfff]", "".join("".join(row) for row in rows)))
    objects = [dict(zip(("_id", "title", "text"), row, strict=True)) for row in rows]
    with tempfile.TemporaryDirectory() as folder:
        path = write_lines(Path(folder) / name, *[json.dumps(row, ensure_ascii=escaped).encode() for row in objects])
        check(rows, path, text_chars)


@settings(max_examples=50, deadline=None)
@given(
    st.lists(st.tuples(anything, anything, anything), max_size=8),
    st.integers(1, 40),
    st.sampled_from([pa.string(), pa.large_string()]),
)
def test_any_text_written_as_parquet_reads_back_cleaned(rows, text_chars, kind):
    columns = list(zip(*rows, strict=True)) or [(), (), ()]
    names = ("docno", "title", "contents")
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "c.parquet"
        pq.write_table(pa.table({name: pa.array(c, kind) for name, c in zip(names, columns, strict=True)}), path)
        check(rows, path, text_chars)


def test_a_folder_of_shards_is_read_in_the_order_of_names(tmp_path):
    write_lines(tmp_path / "b.jsonl.gz", {"id": 2, "text": "two"})
    write_lines(tmp_path / "a.jsonl", {"id": 1, "text": "one"})
    pq.write_table(pa.table({"id": [3, 4], "body": ["three", "four"]}), tmp_path / "c.parquet")
    (tmp_path / "README.md").write_text("not a shard")
    write_lines(tmp_path / "_tmp.jsonl", {"id": 9, "text": "unfinished"})
    assert [(row.docno, row.text) for row in read(tmp_path)] == [
        ("1", "one"), ("2", "two"), ("3", "three"), ("4", "four"),
    ]  # fmt: skip


@pytest.mark.parametrize("name", ["corpus.jsonl", "corpus.jsonl.gz"])
def test_a_beir_folder_gives_its_corpus_and_not_its_queries(tmp_path, name):
    write_lines(tmp_path / name, {"_id": "d1", "title": "T", "text": "x"})
    write_lines(tmp_path / "queries.jsonl", {"_id": "q1", "text": "a query"})
    write_lines(tmp_path / "qrels" / "test.tsv", b"query-id\tcorpus-id\tscore", b"q1\td1\t1")
    assert read(tmp_path) == [Document(docno="d1", title="T", text="x")]


def test_a_mair_folder_gives_its_docs(tmp_path):
    write_lines(tmp_path / "docs.jsonl", {"id": "d1", "doc": "x"})
    write_lines(tmp_path / "queries.jsonl", {"qid": "q", "query": "a", "instruction": "", "labels": []})
    assert read(tmp_path) == [Document(docno="d1", text="x")]


def test_queries_without_a_corpus_are_not_taken_for_one(tmp_path):
    write_lines(tmp_path / "queries.jsonl", {"_id": "q1", "text": "a query"})
    with pytest.raises(InputError, match=r"no corpus\.jsonl"):
        read(tmp_path)


def test_urls_are_read_like_local_paths():
    fsspec = pytest.importorskip("fsspec")
    with fsspec.open("memory://bucket/corpus/a.jsonl", "wb") as stream:
        stream.write(b'{"id": "1", "text": "x"}\nnonsense\n')
    first, second = read("memory://bucket/corpus")
    assert first == Document(docno="1", text="x")
    assert (second.file, second.line) == ("memory://bucket/corpus/a.jsonl", 2)
    assert source_stamp("memory://bucket/corpus") == source_stamp("memory://bucket/corpus/a.jsonl")


BAD_ROWS = {
    b"{not json": "not JSON",
    b'"text"': "a JSON string, not an object",
    b"[1, 2]": "a JSON list, not an object",
    b'{"_id": "x", "text": "\xff"}': "not UTF-8",
    b"[" * 100_000: "not JSON",
    b'{"_id": "x", "text": ' + b"9" * 5000 + b"}": "not JSON",
    b'{"_id": "x", "txt": "a"}': "'text' .* nearest field is 'txt'",
    b'{"doc_no": "x", "text": "a"}': "'_id' .* nearest field is 'doc_no'",
    b'{"_id": "x", "url": "a"}': "'text' .* fields are: '_id', 'url'",
    b"{}": "fields are: none",
    b'{"_id": "", "text": "a"}': "'_id' is empty",
    b'{"_id": " \\t", "text": "a"}': "'_id' is empty",
    b'{"_id": null, "text": "a"}': "'_id' is empty",
    b'{"_id": 1.5, "text": "a"}': "'_id' holds a number",
    b'{"_id": true, "text": "a"}': "'_id' holds a boolean",
    b'{"_id": "x", "text": ["a"]}': "'text' holds a list",
    b'{"_id": "x", "text": "a", "title": 5}': "'title' holds a number",
    b'{"_id": "x", "text": " \\u0000"}': "neither title nor text",
    b'{"_id": "x", "text": null, "title": ""}': "neither title nor text",
    b'{"_id": "d1", "text": "again"}': "'d1' was there before",
    b'{"_id": "x", "\\ud800": "a"}': "'text' .* is missing",
}


@pytest.mark.parametrize(
    ("row", "reason"), BAD_ROWS.items(), ids=[row[:30].decode("ascii", "replace") for row in BAD_ROWS]
)
def test_a_bad_row_is_rejected_with_its_reason_and_the_rest_goes_on(tmp_path, row, reason):
    path = write_lines(tmp_path / "c.jsonl", {"_id": "d1", "text": "a"}, b"", row, {"_id": "d2", "text": "b"})
    assert [found.docno for found in read(path) if isinstance(found, Document)] == ["d1", "d2"]
    rejected = only_rejected(path)
    assert (rejected.file, rejected.line) == (str(path), 3)
    assert re.search(reason, rejected.reason)
    assert rejected.row == row.decode("utf-8", "replace")[:500]
    (rejected.reason + rejected.row).encode("utf-8")
    assert "\n" not in rejected.reason


def test_a_bad_parquet_row_is_rejected_with_its_number(tmp_path):
    bad = pa.Array.from_buffers(pa.string(), 1, [None, pa.py_buffer(b"\0\0\0\0\x01\0\0\0"), pa.py_buffer(b"\xff")])
    texts = pa.concat_arrays([pa.array(["a"]), bad, pa.array([None, "b"])])
    pq.write_table(pa.table({"id": ["1", "2", "3", "4"], "text": texts}), tmp_path / "c.parquet")
    first, second, third, fourth = read(tmp_path / "c.parquet")
    assert (first.docno, fourth.docno) == ("1", "4")
    assert (second.line, third.line) == (2, 3)
    assert "UTF-8" in second.reason
    assert "neither title nor text" in third.reason


def test_a_parquet_file_with_a_misspelt_column_names_the_nearest(tmp_path):
    pq.write_table(pa.table({"id": [1], "texte": ["a"]}), tmp_path / "c.parquet")
    assert "'texte'" in only_rejected(tmp_path / "c.parquet").reason


def test_duplicates_are_found_across_shards(tmp_path):
    write_lines(tmp_path / "a.jsonl", {"id": 1, "text": "one"})
    write_lines(tmp_path / "b.jsonl", {"id": "1", "text": "one again"})
    assert only_rejected(tmp_path).file == str(tmp_path / "b.jsonl")


def test_a_document_of_a_megabyte_is_cut(tmp_path):
    path = write_lines(tmp_path / "c.jsonl", {"id": "1", "text": "word " * 200_000}, {"id": "2", "text": "b"})
    first, second = read(path, text_chars=100)
    assert (len(first.text), second.docno) == (100, "2")


def test_emoji_right_to_left_and_chinese_are_kept(tmp_path):
    text = "👩‍🔬 שלום مرحبا\u202b 生成检索 é\tand\nlines"
    path = write_lines(tmp_path / "c.jsonl", {"id": "生成", "text": text})
    assert read(path) == [Document(docno="生成", text=text)]


def test_a_byte_order_mark_and_windows_line_ends_do_not_matter(tmp_path):
    path = write_lines(tmp_path / "c.jsonl", b'\xef\xbb\xbf{"id": "1", "text": "a"}\r', b'{"id": "2", "text": "b"}\r')
    assert [row.docno for row in read(path)] == ["1", "2"]


def test_a_missing_path_is_refused_before_the_first_row(tmp_path):
    with pytest.raises(InputError, match="no file or folder"):
        read_documents(str(tmp_path / "nothing"), 10)
    with pytest.raises(InputError, match="cannot be opened"):
        read_documents("nosuch://bucket/x.jsonl", 10)


def test_a_folder_without_a_corpus_names_what_it_holds(tmp_path):
    with pytest.raises(InputError, match="holds nothing"):
        read(tmp_path)
    for name in ("a.csv", "b.txt"):
        (tmp_path / name).write_text("x")
    with pytest.raises(InputError, match=r"holds a\.csv, b\.txt; .*\.jsonl"):
        read(tmp_path)
    with pytest.raises(InputError, match="not a corpus file"):
        read(tmp_path / "a.csv")


@pytest.mark.parametrize("content", [b"", b"\n \n\n"])
def test_a_corpus_without_rows_is_refused(tmp_path, content):
    (tmp_path / "c.jsonl").write_bytes(content)
    with pytest.raises(InputError, match="no rows"):
        read(tmp_path)


def test_a_truncated_gzip_is_refused_by_name(tmp_path):
    rows = [{"id": number, "text": f"text {number * 7919}"} for number in range(2000)]
    path = write_lines(tmp_path / "c.jsonl.gz", *rows)
    path.write_bytes(path.read_bytes()[:-3000])
    with pytest.raises(InputError, match=r"c\.jsonl\.gz is a truncated"):
        read(path)


def test_a_file_that_only_claims_to_be_gzip_or_parquet_is_refused_by_name(tmp_path):
    (tmp_path / "c.jsonl.gz").write_bytes(b'{"id": "1"}')
    (tmp_path / "c.parquet").write_bytes(b"PAR1 no")
    with pytest.raises(InputError, match=r"c\.jsonl\.gz is not a sound gzip"):
        read(tmp_path / "c.jsonl.gz")
    with pytest.raises(InputError, match=r"c\.parquet is not a readable parquet"):
        read(tmp_path / "c.parquet")


def test_rows_stream(tmp_path):
    path = write_lines(tmp_path / "c.jsonl.gz", *[{"id": n, "text": f"text {n * 7919}"} for n in range(20_000)])
    path.write_bytes(path.read_bytes()[:-10])
    assert next(read_documents(str(path), 10)).docno == "0"


def test_the_stamp_changes_with_the_corpus_and_only_then(tmp_path):
    corpus = write_lines(tmp_path / "corpus.jsonl", {"id": 1, "text": "a"})
    write_lines(tmp_path / "queries.jsonl", {"_id": "q", "text": "a"})
    before = source_stamp(str(tmp_path))
    write_lines(tmp_path / "queries.jsonl", {"_id": "q", "text": "another"})
    assert source_stamp(str(tmp_path)) == before
    write_lines(corpus, {"id": 1, "text": "ab"})
    assert source_stamp(str(tmp_path)) != before


def test_a_docno_is_new_once_however_many_there_are():
    seen = Seen()
    assert all(seen.is_new(f"d{number}") for number in range(5000))
    assert not any(seen.is_new(f"d{number}") for number in range(5000))
    assert len(seen.slots) * seen.slots.itemsize <= 32 * 5000
