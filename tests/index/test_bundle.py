"""The index folder: whole or absent, and refused once it is not what was written."""

from __future__ import annotations

import json
import shutil

import pytest

from tests.decoding.test_retriever import make_index
from tests.tiny import save_tiny
from zerogr_ray.decoding.retriever import Retriever
from zerogr_ray.errors import BuildError, IndexRefused
from zerogr_ray.index.bundle import check_target, open_index, read_manifest, write_index

pytestmark = pytest.mark.model


@pytest.fixture(scope="module")
def index(tmp_path_factory):
    return make_index(tmp_path_factory.mktemp("bundle"), ["red fox", "red hat", "open json file", "red fox"])


@pytest.fixture
def copy(index, tmp_path):
    return shutil.copytree(index, tmp_path / "copy")


def test_what_was_written_is_what_is_opened(index):
    bundle = open_index(index)
    rows = {row["docno"]: row["docid"] for row in bundle.documents.to_pylist()}
    assert rows == {"d0": "red fox", "d1": "red hat", "d2": "open json file", "d3": "red fox"}
    assert (bundle.manifest["documents"], bundle.manifest["docids"]) == (4, 3)
    assert not bundle.trie.tokens.flags.writeable


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
    write_index(tmp_path / "index", ["d"], ["red"], [[5]], [""], 2, model, facts)
    with pytest.raises(IndexRefused, match="prompt format"):
        Retriever.load(tmp_path / "index", device="cpu")


def test_a_failed_build_leaves_nothing_and_the_old_index_in_place(copy):
    before = read_manifest(copy)
    with pytest.raises(ValueError, match="docid"):
        write_index(copy, ["d"], ["x"], [[]], [""], 2, copy / "model", {})
    assert read_manifest(copy) == before
    assert [path.name for path in copy.parent.iterdir()] == ["copy"]


def test_a_new_version_replaces_the_old_one_whole_while_a_reader_keeps_its_own(copy):
    reader = open_index(copy)
    rows = reader.documents.to_pylist()
    write_index(copy, ["new"], ["red"], [[5]], [""], 2, copy / "model", {"instruction": "i", "prompt_format": "p"})
    assert open_index(copy).documents["docno"].to_pylist() == ["new"]
    assert reader.documents.to_pylist() == rows
    assert [path.name for path in copy.parent.iterdir()] == ["copy"]


def test_a_folder_with_other_things_in_it_is_never_overwritten(tmp_path, index):
    (tmp_path / "thesis.txt").write_text("precious")
    with pytest.raises(BuildError, match="is not an index"):
        write_index(tmp_path, ["d"], ["x"], [[5]], [""], 2, index / "model", {})
    assert (tmp_path / "thesis.txt").read_text() == "precious"


def test_what_a_killed_build_left_is_removed_by_the_next(copy):
    left = copy.with_name(".copy-building-abc")
    shutil.copytree(copy, left)
    check_target(copy)
    assert not left.exists()
