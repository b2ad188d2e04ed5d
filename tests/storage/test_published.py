"""Indexes under s3://: searched as on a disk, replaced whole, refused when damaged, one of two that race."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
import textwrap
from datetime import timedelta

import pytest

from tests.command import zerogr
from tests.decoding.test_retriever import make_index
from tests.serving.service import settings
from tests.tiny import save_tiny
from zerogr_ray.adapters import read_adapter
from zerogr_ray.cache import cache_folder
from zerogr_ray.decoding.retriever import Retriever
from zerogr_ray.errors import BuildError, IndexRefused, InputError, ModelError
from zerogr_ray.index.bundle import check_target, open_index, writing_index
from zerogr_ray.index.manifest import pinned, read_manifest
from zerogr_ray.models import find_model, fingerprint
from zerogr_ray.published import find_published, publish_folder
from zerogr_ray.serving.config import service_of
from zerogr_ray.serving.control import activate
from zerogr_ray.serving.state import State, Versions
from zerogr_ray.serving.version import ref_of
from zerogr_ray.store import Folder

pytestmark = pytest.mark.model

DOCIDS = ["red fox", "red hat", "open json file", "web browser"]


@pytest.fixture(scope="module")
def index(tmp_path_factory):
    return make_index(tmp_path_factory.mktemp("one"), DOCIDS)


@pytest.fixture(scope="module")
def other(tmp_path_factory):
    return make_index(tmp_path_factory.mktemp("two"), [*DOCIDS, "command line"])


def publish(url, index):
    with writing_index(url) as folder:
        shutil.copytree(index, folder)


def test_a_published_index_is_searched_inspected_and_compacted_as_one_on_a_disk(s3, index, tmp_path):
    publish(f"{s3}/docs", index)
    local, remote = Retriever.load(index, "cpu", "float32"), Retriever.load(f"{s3}/docs/", "cpu", "float32")
    assert remote.search("fox", k=3) == local.search("fox", k=3)
    assert remote.bundle.path.is_relative_to(cache_folder())
    status, out, err = zerogr("search", f"{s3}/docs", "fox", "-k", "3")
    assert (status, [line.split("\t")[1] for line in out.splitlines()]) == (
        0,
        [hit.docno for hit in local.search("fox", k=3)],
    ), err
    status, out, err = zerogr("inspect", f"{s3}/docs", "--json")
    assert (status, json.loads(out)["key"]) == (0, "tiny"), err
    remote.remove(["d0"])
    remote.compact(f"{s3}/smaller")
    assert sorted(open_index(f"{s3}/smaller").documents["docno"].to_pylist()) == ["d1", "d2", "d3"]
    # A version's folder is an index folder, and so is one that was copied to the store by hand.
    Folder(f"{s3}/copied").upload(index)
    assert open_index(f"{s3}/copied").manifest == open_index(pinned(f"{s3}/docs")).manifest == read_manifest(index)


def test_a_new_version_replaces_the_old_one_which_stays_readable_and_the_one_before_goes(s3, index, other):
    publish(s3, index)
    first = pinned(s3)
    reader = open_index(s3)
    publish(s3, other)
    second = pinned(s3)
    assert open_index(s3).documents.num_rows == 5
    assert open_index(first).documents.to_pylist() == reader.documents.to_pylist()
    publish(s3, index)
    names = Folder(s3).files()
    assert {name.split("/")[1] for name in names if "/" in name} == {url[-13:] for url in (second, pinned(s3))}


def test_what_a_killed_publish_has_left_goes_with_the_next_one_but_not_what_is_being_written(
    s3, index, other, monkeypatch
):
    publish(s3, index)
    first = pinned(s3)
    left = Folder(f"{s3}/versions/killed-0123abcd")
    left.write("documents.arrow", b"x")
    publish(s3, other)
    assert left.files(), "somebody may still be writing it"
    monkeypatch.setattr("zerogr_ray.published.LEFT_FOR", timedelta(hours=-1))
    publish(s3, other)
    assert not left.files()
    assert open_index(s3).documents.num_rows == 5
    assert {name.split("/")[1] for name in Folder(s3).files() if "/" in name} >= {pinned(s3).rpartition("/")[2]}
    assert first.rpartition("/")[2] not in {name.split("/")[1] for name in Folder(s3).files() if "/" in name}


def test_damage_on_the_store_is_refused_by_name_and_damage_to_the_copy_is_repaired(s3, index):
    publish(s3, index)
    copy = open_index(s3).path
    (copy / "by_docno.npy").write_bytes(b"damaged on this disk")
    assert open_index(s3).documents.num_rows == 4
    shutil.rmtree(copy)
    place = Folder(pinned(s3))
    good = place.read("trie/tokens.npy")
    for bad, said in ((good[:-1], "has .* bytes instead of"), (bytes([good[0] ^ 1]) + good[1:], "was changed")):
        assert find_published(s3).whole() == (place.read("trie/tokens.npy") == good)
        place.write("trie/tokens.npy", bad)
        assert not find_published(s3).whole(), "a build would publish it again"
        with pytest.raises(IndexRefused, match=f"{place}/trie/tokens.npy {said}"):
            open_index(s3)
    place.remove("trie/tokens.npy")
    with pytest.raises(IndexRefused, match=f"{place}/trie/tokens.npy is missing"):
        open_index(s3)
    place.write("trie/tokens.npy", good)
    assert open_index(s3).documents.num_rows == 4, "what had come whole was not fetched again"
    Folder(s3).write("current.json", b"{")
    with pytest.raises(InputError, match=r"current.json is damaged"):
        open_index(s3)
    with pytest.raises(IndexRefused, match="does not exist; build one: zerogr index CORPUS"):
        open_index(f"{s3}/nothing")


def test_a_path_with_something_else_is_not_overwritten(s3, index):
    Folder(s3).write("thesis.txt", b"x")
    with pytest.raises(BuildError, match="exists and is not what would be written there"):
        check_target(s3)
    check_target(f"{s3}/docs")
    publish(f"{s3}/docs", index)
    check_target(f"{s3}/docs")


RACE = """
    import sys
    from pathlib import Path
    from zerogr_ray.errors import BuildError
    from zerogr_ray.published import publish_folder
    from zerogr_ray.store import Folder

    class Slow(Folder):
        def swap(self, *arguments):
            print("ready", flush=True)  # all is uploaded, only current.json is missing
            sys.stdin.readline()
            return super().swap(*arguments)

    import zerogr_ray.published as published
    published.Folder = Slow
    url, folder, key = sys.argv[1:]
    try:
        print(publish_folder(url, Path(folder), key, "manifest.json").url, flush=True)
    except BuildError as error:
        print("lost:", error, flush=True)
"""


def race(url, *runs):
    """Both have uploaded all their files before either may replace current.json; what each printed, in order."""
    command = [sys.executable, "-c", textwrap.dedent(RACE), url]
    pipe = subprocess.PIPE
    processes = [subprocess.Popen([*command, *run], stdin=pipe, stdout=pipe, text=True) for run in runs]
    try:
        for process in processes:
            assert process.stdout.readline() == "ready\n"
        for process in processes:
            process.stdin.write("\n")
            process.stdin.flush()
        return [process.communicate(timeout=60)[0].strip() for process in processes]
    finally:
        for process in processes:
            process.kill()


def test_two_processes_that_publish_at_the_same_moment_leave_one_whole_index(s3, index, other):
    said = race(s3, (str(index), "key1"), (str(other), "key2"))
    lost = [line for line in said if line.startswith("lost:")]
    assert len(lost) == 1
    assert f"another run published {s3} while this one did, and that stays" in lost[0]
    won = find_published(s3)
    assert won.url in said
    assert open_index(s3).documents.num_rows == (4 if won.key == "key1" else 5)
    assert {name.split("/")[1] for name in Folder(s3).files() if "/" in name} == {won.url.rpartition("/")[2]}


def test_of_two_that_publish_the_same_index_nobody_has_lost(s3, index, monkeypatch):
    upload = Folder.upload

    def overtaken(self, folder, last=""):
        upload(self, folder, last)
        with monkeypatch.context() as patch:
            patch.setattr(Folder, "upload", upload)
            first.append(publish_folder(s3, folder, "key", last))

    first = []
    monkeypatch.setattr(Folder, "upload", overtaken)
    assert publish_folder(s3, index, "key", "manifest.json") == first[0] == find_published(s3)
    assert {name.split("/")[1] for name in Folder(s3).files() if "/" in name} == {first[0].url.rpartition("/")[2]}


def test_an_upload_that_fails_leaves_the_old_index_and_nothing_of_the_new(s3, index, other, monkeypatch):
    publish(s3, index)
    before = Folder(s3).files()

    def broken(self, folder, last=""):
        (folder / "documents.arrow").unlink()
        self.write("manifest.json", b"x")
        raise OSError("the network is gone")

    with monkeypatch.context() as patch:
        patch.setattr(Folder, "upload", broken)
        with pytest.raises(OSError, match="the network is gone"):
            publish(s3, other)
    assert Folder(s3).files() == before


def test_a_service_pins_the_version_that_it_was_started_with(s3, index, other, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    publish(f"{s3}/docs", index)
    meant = service_of([f"{s3}/docs"], None)
    assert meant == {"indexes": {"docs": f"{s3}/docs"}, "state": str(tmp_path / "docs.serving")}
    cfg = settings(f"{s3}/docs", tmp_path / "state")
    state, first = State(cfg.state), ref_of(f"{s3}/docs")
    state.change("docs", lambda known: Versions(first))
    publish(f"{s3}/docs", other)
    assert open_index(first.path).documents.num_rows == 4
    second = activate(state, "docs", f"{s3}/docs")
    assert (open_index(second.path).documents.num_rows, state.versions()["docs"].previous) == (5, first)


def test_models_and_adapters_are_fetched_from_where_they_were_published(s3, tmp_path):
    model = save_tiny(tmp_path / "tiny")
    publish_folder(f"{s3}/model", model, "key", "config.json")
    Folder(f"{s3}/copied").upload(model)
    found = [find_model(f"{s3}/{name}") for name in ("model", "copied")]
    assert found[0] == found[1]
    assert fingerprint(found[0]) == fingerprint(model)
    with pytest.raises(ModelError, match=f"{s3}/none holds no files"):
        find_model(f"{s3}/none")
    with pytest.raises(ModelError, match=f"{s3}/none holds no files; an adapter"):
        read_adapter(f"{s3}/none")
    with pytest.raises(ModelError, match=r"has no adapter_model\.safetensors"):
        read_adapter(f"{s3}/model")
