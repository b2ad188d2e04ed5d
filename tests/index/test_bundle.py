"""The index folder: whole or absent, and refused once it is not what was written."""

from __future__ import annotations

import json
import shutil

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.decoding.test_retriever import make_index
from tests.tiny import save_tiny
from zerogr_ray.decoding.retriever import Retriever
from zerogr_ray.errors import BuildError, IndexRefused
from zerogr_ray.index.bundle import DOCUMENTS, Bundle, check_target, open_index, read_manifest, take, write_index

pytestmark = pytest.mark.model


@pytest.fixture(scope="module")
def index(tmp_path_factory):
    return make_index(tmp_path_factory.mktemp("bundle"), ["red fox", "red hat", "open json file", "red fox"])


@pytest.fixture
def copy(index, tmp_path):
    return shutil.copytree(index, tmp_path / "copy")


def one(docno, docid, tokens):
    return pa.table([[docno], [docid], [tokens], [""]], schema=DOCUMENTS)


def test_what_was_written_is_what_is_opened(index):
    bundle = open_index(index)
    rows = {row["docno"]: row["docid"] for row in bundle.documents.to_pylist()}
    assert rows == {"d0": "red fox", "d1": "red hat", "d2": "open json file", "d3": "red fox"}
    assert (bundle.manifest["documents"], bundle.manifest["docids"]) == (4, 3)
    assert not bundle.trie.tokens.flags.writeable
    docnos = bundle.documents["docno"].to_pylist()
    assert [docnos[row] for row in bundle.by_docno] == ["d0", "d1", "d2", "d3"]
    rows, unknown = bundle.rows_of(["d3", "d9", "d0"])
    assert (sorted(docnos[row] for row in rows), unknown) == (["d0", "d3"], ["d9"])


def test_whoever_may_read_the_manifest_may_read_the_model(tmp_path):
    model = save_tiny(tmp_path / "model")
    for file in model.iterdir():
        file.chmod(0o600)
    write_index(tmp_path / "index", one("d0", "red fox", [5, 6]), 2, model, {})
    modes = {path.stat().st_mode for path in (tmp_path / "index").rglob("*") if path.is_file()}
    assert len(modes) == 1


def test_every_truncated_or_edited_file_is_refused_by_name(index, tmp_path):
    for name in read_manifest(index)["files"]:
        broken = shutil.copytree(index, tmp_path / "broken")
        data = (broken / name).read_bytes()
        for damaged in (data[:-1], bytes([data[0] ^ 1]) + data[1:]):
            (broken / name).write_bytes(damaged)
            with pytest.raises(IndexRefused, match=name.replace(".", r"\.")):
                open_index(broken)
        (broken / name).unlink()
        with pytest.raises(IndexRefused, match="is missing"):
            open_index(broken)
        shutil.rmtree(broken)


def test_a_folder_that_is_no_index_is_refused_with_the_next_command(tmp_path):
    with pytest.raises(IndexRefused, match="does not exist; build one: zerogr index"):
        open_index(tmp_path / "nothing")
    with pytest.raises(IndexRefused, match="is not an index"):
        open_index(tmp_path)


def test_an_edited_or_damaged_manifest_is_refused(copy):
    manifest = json.loads((copy / "manifest.json").read_text())
    edits = {"format": 99, "instruction": "Find something else.", "documents": 5, "prompt_format": "another"}
    for name, value in edits.items():
        (copy / "manifest.json").write_text(json.dumps({**manifest, name: value}))
        with pytest.raises(IndexRefused, match="format 99" if name == "format" else "manifest.json was changed"):
            open_index(copy)
    for text in ("{", "[]", "null", ""):
        (copy / "manifest.json").write_text(text)
        with pytest.raises(IndexRefused, match=r"damaged|format None"):
            open_index(copy)


def test_a_file_that_does_not_belong_to_the_index_is_refused(copy):
    (copy / "model" / "adapter_config.json").write_text("{}")
    with pytest.raises(IndexRefused, match=r"adapter_config.json does not belong"):
        open_index(copy)


def test_an_index_whose_tokenizer_counts_otherwise_is_refused(tmp_path):
    model = save_tiny(tmp_path / "model")
    facts = {"instruction": "i", "prompt_format": "of another model"}
    write_index(tmp_path / "index", one("d", "red", [5]), 2, model, facts)
    with pytest.raises(IndexRefused, match="prompt format"):
        Retriever.load(tmp_path / "index", device="cpu")


def test_a_failed_build_leaves_nothing_and_the_old_index_in_place(copy):
    before = read_manifest(copy)
    with pytest.raises(ValueError, match="docid"):
        write_index(copy, one("d", "x", []), 2, copy / "model", {})
    assert read_manifest(copy) == before
    assert [path.name for path in copy.parent.iterdir()] == ["copy"]


def test_a_full_disk_is_said_with_the_next_step_and_the_old_index_stays(copy, monkeypatch):
    def no_space(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("zerogr_ray.index.bundle.save_arrays", no_space)
    with pytest.raises(BuildError, match=f"cannot be written to {copy}: No space left on device; make room and run"):
        write_index(copy, one("new", "new docid", [1, 2]), 3, copy / "model", {"key": "new"})
    assert open_index(copy).documents.num_rows == 4
    assert [path.name for path in copy.parent.iterdir()] == ["copy"]


def test_a_new_version_replaces_the_old_one_whole_while_a_reader_keeps_its_own(copy):
    reader = open_index(copy)
    rows = reader.documents.to_pylist()
    write_index(copy, one("new", "red", [5]), 2, copy / "model", {"instruction": "i", "prompt_format": "p"})
    assert open_index(copy).documents["docno"].to_pylist() == ["new"]
    assert reader.documents.to_pylist() == rows
    assert [path.name for path in copy.parent.iterdir()] == ["copy"]


def test_a_folder_with_other_things_in_it_is_never_overwritten(tmp_path, index):
    (tmp_path / "thesis.txt").write_text("precious")
    with pytest.raises(BuildError, match="is not an index"):
        write_index(tmp_path, one("d", "x", [5]), 2, index / "model", {})
    assert (tmp_path / "thesis.txt").read_text() == "precious"


def test_what_a_killed_build_left_is_removed_by_the_next(copy):
    left = copy.with_name(".copy-building-abc")
    shutil.copytree(copy, left)
    check_target(copy)
    assert not left.exists()


def test_documents_of_many_shards_come_in_the_order_of_the_trie(copy, monkeypatch):
    monkeypatch.setattr("zerogr_ray.index.bundle.WRITTEN", 4)
    numbers = np.random.default_rng(0).permutation(100)
    shards = [one(f"d{n}", f"docid {n}", [5, 10 + int(n)]) for n in numbers]
    write_index(copy, pa.concat_tables(shards), 2, copy / "model", {"instruction": "i", "prompt_format": "p"})
    bundle = open_index(copy)
    assert bundle.documents["docno"].to_pylist() == [f"d{n}" for n in range(100)]
    assert bundle.documents["tokens"].to_pylist() == [[5, 10 + n] for n in range(100)]
    assert bundle.rows_of([f"d{n}" for n in (77, 100, 3)])[0].tolist() == [3, 77]


def test_a_document_may_have_several_docids(copy, monkeypatch):
    monkeypatch.setattr("zerogr_ray.index.bundle.WRITTEN", 3)
    docnos = ["b", "a", "c", "a", "b", "a", "d"]
    documents = pa.concat_tables([one(docno, f"{n}", [5, 10 + n]) for n, docno in enumerate(docnos)])
    write_index(copy, documents, 2, copy / "model", {"instruction": "i", "prompt_format": "p"})
    bundle = open_index(copy)
    assert bundle.documents["docno"].to_pylist() == docnos
    assert bundle.rows_of(["a", "d"])[0].tolist() == [1, 3, 5, 6]
    assert bundle.owners.tolist() == [1, 0, 2, 0, 1, 0, 3]


DOCNOS = st.lists(
    st.text(st.characters(codec="utf-8"), max_size=3) | st.sampled_from("aéÿ字😀"), min_size=1, max_size=30
)


def chunked(docnos, size=4):
    """A table of the docnos, in chunks of `size` rows."""
    table = pa.table({"docno": pa.array(docnos, pa.string())})
    return pa.concat_tables([table.slice(start, size) for start in range(0, len(docnos), size)])


@given(DOCNOS, DOCNOS)
def test_rows_of_finds_every_row_of_every_docno_and_says_which_are_unknown(docnos, others):
    by_docno = np.array(sorted(range(len(docnos)), key=lambda row: docnos[row].encode()), dtype=np.uint32)
    several = len(set(docnos)) < len(docnos)
    owners = np.array([docnos.index(docno) for docno in docnos], dtype=np.uint32) if several else None
    bundle = Bundle(None, {}, None, chunked(docnos), by_docno, owners)
    wanted = docnos[::2] + others
    rows, unknown = bundle.rows_of(wanted)
    assert rows.tolist() == [row for row, docno in enumerate(docnos) if docno in wanted]
    assert unknown == list(dict.fromkeys(docno for docno in wanted if docno not in docnos))
    assert bundle.rows_of([])[0].tolist() == []


@given(st.lists(st.integers(0, 9), max_size=20))
def test_take_gives_rows_in_the_order_asked_for(rows):
    docnos = [f"d{n}" for n in range(10)]
    taken = take(chunked(docnos), np.array(rows, dtype=np.int64))["docno"].to_pylist()
    assert taken == [docnos[row] for row in rows]
