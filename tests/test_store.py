"""Folders, keys and outputs: whole or absent, found again, different for different inputs."""

from __future__ import annotations

import pyarrow as pa
import pytest

from zerogr_ray.config import CorpusConfig
from zerogr_ray.corpus.normalise import normalise
from zerogr_ray.errors import InputError
from zerogr_ray.stage import Output
from zerogr_ray.store import Folder, key_of


def test_a_file_is_replaced_whole_and_leaves_nothing_beside_it(tmp_path):
    folder = Folder(tmp_path / "a" / "b")
    folder.write("x.json", b"1")
    folder.write("x.json", b"22")
    assert folder.read("x.json") == b"22"
    assert [path.name for path in (tmp_path / "a" / "b").iterdir()] == ["x.json"]


def test_a_failed_write_keeps_what_was_there(tmp_path):
    folder = Folder(tmp_path)
    folder.write("x", b"old")
    with pytest.raises(TypeError):
        folder.write("x", "not bytes")  # type: ignore[arg-type]
    assert folder.read("x") == b"old"
    assert [path.name for path in tmp_path.iterdir()] == ["x"]


def test_tables_and_names_come_back(tmp_path):
    folder = Folder(tmp_path)
    table = pa.table({"docno": ["a", "ü"], "queries": [["q"], []]})
    for name in ("part-000001.parquet", "part-000000.parquet"):
        folder.write_table(name, table)
    folder.write_json("done.json", {"rows": 2})
    assert folder.names("part-", ".parquet") == ["part-000000.parquet", "part-000001.parquet"]
    assert folder.read_table("part-000000.parquet").equals(table)
    assert (folder.read_json("done.json"), folder.read_json("no.json")) == ({"rows": 2}, None)
    assert Folder(tmp_path / "nowhere").names("", "") == []


def test_keys_tell_apart_what_differs_and_nothing_else():
    assert key_of("a", {"x": 1, "y": 2}) == key_of("a", {"y": 2, "x": 1})
    assert len({key_of("a", 1), key_of("a", "1"), key_of("a1"), key_of(["a", 1])}) == 4


def write_corpus(path, lines):
    path.write_text("".join(line + "\n" for line in lines))
    return str(path)


def test_a_corpus_is_cut_into_shards_once_and_its_bad_rows_are_kept_with_their_reasons(tmp_path):
    rows = [f'{{"_id": "d{i}", "text": "text {i}"}}' for i in range(5)]
    corpus = write_corpus(tmp_path / "c.jsonl", [*rows[:2], "{broken", *rows[2:], rows[0]])
    work = Folder(tmp_path / "work")
    output, manifest = normalise(corpus, work, CorpusConfig(shard_rows=2), quiet=True)
    assert manifest["sizes"] == {"part-000000.parquet": 2, "part-000001.parquet": 2, "part-000002.parquet": 1}
    read = [row["docno"] for shard in output.shards() for row in output.folder.read_table(shard).to_pylist()]
    assert read == ["d0", "d1", "d2", "d3", "d4"]
    rejected = (tmp_path / "work" / "rejected").rglob("*.jsonl")
    text = "".join(path.read_text() for path in rejected)
    assert manifest["rejected"] == 2
    assert '"line": 3' in text
    assert "was there before" in text
    again, same = normalise(corpus, work, CorpusConfig(shard_rows=2), quiet=True)
    assert (again.folder.path, same) == (output.folder.path, manifest)


def test_the_fingerprint_follows_the_contents_not_the_file(tmp_path):
    rows = ['{"_id": "a", "text": "one"}', '{"_id": "b", "text": "two"}']
    first = normalise(write_corpus(tmp_path / "1.jsonl", rows), Folder(tmp_path / "w1"), CorpusConfig(), quiet=True)[1]
    same = normalise(write_corpus(tmp_path / "2.jsonl", rows), Folder(tmp_path / "w2"), CorpusConfig(), quiet=True)[1]
    other = normalise(
        write_corpus(tmp_path / "3.jsonl", rows[:1]), Folder(tmp_path / "w3"), CorpusConfig(), quiet=True
    )[1]
    assert first["fingerprint"] == same["fingerprint"] != other["fingerprint"]


def test_a_corpus_without_one_good_row_is_refused_with_the_first_reason(tmp_path):
    corpus = write_corpus(tmp_path / "c.jsonl", ['{"_id": "a", "txt": "misspelt"}'])
    with pytest.raises(InputError, match="none of its 1 rows is a document") as refused:
        normalise(corpus, Folder(tmp_path / "work"), CorpusConfig(), quiet=True)
    assert "txt" in str(refused.value)


def test_an_output_is_done_only_when_its_manifest_is_there(tmp_path):
    output = Output.at(Folder(tmp_path), "docids", "k")
    assert output.done() is None
    output.folder.write_table("part-000000.parquet", pa.table({"a": [1]}))
    assert output.done() is None
    output.finish(1)
    assert output.done() == {"name": "docids", "rows": 1, "shards": ["part-000000.parquet"]}
