"""Folders under s3:// on a real server: whole, found at once, patient, and clear about what is wrong."""

from __future__ import annotations

import pickle
import threading
import time

import pyarrow as pa
import pytest

from tests.command import zerogr
from tests.storage.server import OWNER, READER, fresh
from zerogr_ray.cache import here, scratch
from zerogr_ray.cluster import shared
from zerogr_ray.config import CorpusConfig
from zerogr_ray.corpus import normalise as stage
from zerogr_ray.corpus.documents import read_documents
from zerogr_ray.corpus.normalise import normalise
from zerogr_ray.errors import InputError, ModelError
from zerogr_ray.s3 import Trouble
from zerogr_ray.store import Folder

pytestmark = pytest.mark.slow


def test_files_and_tables_come_back_from_s3_as_from_a_disk(s3):
    folder = Folder(s3)
    assert (folder.exists(), folder.names("", ""), folder.read_json("no.json")) == (False, [], None)
    folder.write("a/x.json", b"1")
    folder.write("a/x.json", b"22")
    assert folder.read("a/x.json") == b"22" == pickle.loads(pickle.dumps(folder)).read("a/x.json")
    assert (folder / "a").names("x", ".json") == ["x.json"]
    first, other = pa.table({"docno": ["a", "ü"]}), pa.table({"docno": ["b"]})
    folder.write_table("part-0.parquet", first)
    folder.write_table("part-0.parquet", other)
    assert folder.read_table("part-0.parquet").equals(first), "the first run that wrote a shard has written it"
    with pytest.raises(FileNotFoundError, match=f"{s3}/none"):
        folder.read("none")
    folder.delete()
    assert folder.files() == {}, "SeaweedFS may show the empty folder itself a little longer"


def test_only_one_of_those_who_saw_the_same_object_replaces_it(s3, monkeypatch):
    folder = Folder(s3)
    assert folder.swap("x", b"first", None)
    assert not folder.swap("x", b"late", None)
    seen = folder.stamp("x")
    won = []
    threads = [
        threading.Thread(target=lambda i=i: won.append(Folder(s3).swap("x", b"%d" % i, seen)) or None)
        for i in range(8)
    ]  # fmt: skip
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(won) == [False] * 7 + [True]
    assert not folder.swap("gone", b"x", seen), "an object that was deleted meanwhile is not made again"
    call = folder.fs.call_s3

    def answer_lost(*how, **what):
        call(*how, **what)
        return call(*how, **what)  # as botocore sends it again

    monkeypatch.setattr(folder.fs, "call_s3", answer_lost)
    assert folder.swap("y", b"ours", None)


def test_a_folder_of_more_objects_than_one_page_is_listed_whole_and_never_from_memory(s3):
    folder = Folder(s3)
    folder.fs.pipe({f"{folder.path}/part-{number:05d}.parquet": b"x" for number in range(1200)})
    assert len(folder.names("part-", ".parquet")) == 1200
    Folder(s3).write("part-99999.parquet", b"x")
    (folder / "within").write("part-x.parquet", b"x")
    names = folder.names("part-", ".parquet")
    assert (len(names), names[-1]) == (1201, "part-99999.parquet")
    assert len(folder.files()) == 1202


def test_a_large_file_goes_up_in_parts_and_comes_back_the_same(s3, tmp_path):
    data = bytes(range(256)) * (110 << 12)  # 110 MiB: three parts
    (tmp_path / "big").mkdir()
    (tmp_path / "big" / "x.bin").write_bytes(data)
    Folder(s3).upload(tmp_path / "big")
    assert Folder(s3).stamp("x.bin").strip('"').endswith("-3")
    assert (here(s3) / "x.bin").read_bytes() == data


def test_a_copy_is_made_once_and_again_only_when_the_folder_changes(s3, tmp_path):
    folder = Folder(s3)
    folder.write("a/b.txt", b"1")
    folder.write("c.txt", b"2")
    copy = here(s3)
    assert {p.name: p.read_bytes() for p in copy.rglob("*.txt")} == {"b.txt": b"1", "c.txt": b"2"}
    assert here(s3 + "/") == copy
    assert [path.name for path in here(s3, ["c.txt"]).iterdir()] == ["c.txt"]
    folder.write("c.txt", b"3")
    assert (here(s3) / "c.txt").read_bytes() == b"3"
    assert (copy / "c.txt").read_bytes() == b"2", "who reads the old copy is not disturbed"
    with pytest.raises(FileNotFoundError, match=r"lost\.txt"):
        here(s3, ["lost.txt"])
    assert here(tmp_path) == tmp_path


def test_two_processes_do_not_share_a_scratch_folder_and_a_crash_leaves_it_to_the_next(s3):
    with scratch(s3) as one, scratch(s3) as other:
        assert one != other
        (one / "x").touch()
    assert not one.exists()
    with pytest.raises(FileNotFoundError), scratch(s3) as crashed:
        (crashed / "x").touch() or (crashed / "y").read_bytes()
    with scratch(s3) as again:
        assert (again / "x").exists()


def test_what_a_node_does_not_see_goes_through_a_work_folder_on_the_store(s3, tmp_path, monkeypatch):
    monkeypatch.setattr("zerogr_ray.cluster._blind_node", lambda path: "10.0.0.7")
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "config.json").write_text("{}")
    place = shared("model", tmp_path / "model", Folder(f"{s3}/work"))
    assert place.startswith(f"{s3}/work/shared/")
    assert [path.name for path in here(place).iterdir()] == ["config.json"]
    before = Folder(s3).files()
    assert shared("model", tmp_path / "model", Folder(f"{s3}/work")) == place
    assert Folder(s3).files() == before
    with pytest.raises(ModelError, match=r"not on node 10\.0\.0\.7; put it where every node sees it"):
        shared("model", tmp_path / "model", Folder(tmp_path / "work"))


def test_a_store_that_dies_and_comes_back_is_waited_for(s3, server):
    folder = Folder(s3)
    folder.write("before", b"1")
    server.kill()
    done: list[bytes] = []

    def work() -> None:
        folder.write("after", b"2")
        done.extend([folder.read("before"), folder.read("after")])

    thread = threading.Thread(target=work)
    thread.start()
    try:
        time.sleep(0.5)  # the write meets a dead server; nothing is asserted on how long that takes
        assert thread.is_alive()
    finally:
        server.start()
        server.wait()
    thread.join(120)
    assert done == [b"1", b"2"]


CASES = {
    "a bucket that is not there": (OWNER, "s3://nowhere/x", "there is no bucket nowhere"),
    "a right that is missing": (READER, "s3://private/x", "these credentials may not"),
    "a secret that is wrong": ((OWNER[0], "wrong"), "s3://docs/x", "the secret key does not belong"),
    "a key that is unknown": (("AKIANOBODY0000000000", "x"), "s3://docs/x", "does not know this access key"),
}


@pytest.mark.parametrize("case", CASES)
def test_what_is_wrong_is_said_in_one_sentence_with_the_next_step(case, s3, server, monkeypatch):
    (access, secret), url, said = CASES[case]
    server.use(monkeypatch, access, secret)
    for work in (
        lambda: Folder(url).read("a.json"),
        lambda: Folder(url).exists("a.json"),
        lambda: Folder(url).names("a", ""),
        lambda: Folder(url).write("a.json", b"1"),
        lambda: Folder(url).swap("a.json", b"1", None),
        lambda: next(read_documents(f"{url}/a.jsonl", 10)),
    ):
        with pytest.raises(InputError, match=f"^{url}.*: .*{said}.*; ") as refused:
            work()
        assert "\n" not in str(refused.value)
    for command in (("search", url, "x"), ("inspect", url), ("index", f"{url}/a.jsonl", url)):
        status, out, err = zerogr(*command)
        assert (status, out) == (2, "")
        assert said in err
        assert err.count("\n") == 1


def test_a_reader_reads_what_it_may_and_is_told_what_it_may_not(s3, server, monkeypatch):
    Folder(s3).write("x", b"1")
    server.use(monkeypatch, *READER)
    assert (Folder(s3).read("x"), Folder(s3).names("", "")) == (b"1", ["x"])
    with pytest.raises(InputError, match="these credentials may not write there; have the right granted"):
        Folder(s3).write("x", b"2")


def test_a_store_that_is_waited_for_is_named_once_before_it_is_given_up(s3, monkeypatch, caplog):
    monkeypatch.setenv("AWS_MAX_ATTEMPTS", "3")
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:9")
    monkeypatch.setattr("zerogr_ray.s3.SAY_AFTER", 0)
    monkeypatch.setattr("zerogr_ray.s3._trouble", Trouble())
    fresh()
    for _ in range(2):
        with pytest.raises(InputError, match="the store does not answer"):
            Folder(s3).read("x")
    assert caplog.text.count("waiting for the store") == 1
    assert "http://127.0.0.1:9" in caplog.text


def test_no_credentials_and_no_answer_are_said_too(s3, server, monkeypatch):
    monkeypatch.setenv("AWS_MAX_ATTEMPTS", "2")
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:9")
    fresh()
    with pytest.raises(InputError, match=r"the store does not answer .*127\.0\.0\.1:9.*; check AWS_ENDPOINT_URL"):
        Folder(s3).read("x")
    server.use(monkeypatch, *OWNER)
    monkeypatch.delenv("AWS_ACCESS_KEY_ID")
    monkeypatch.delenv("AWS_SECRET_ACCESS_KEY")
    fresh()
    with pytest.raises(InputError, match="Unable to locate credentials; set AWS_ACCESS_KEY_ID"):
        Folder(s3).read("x")


def test_a_corpus_that_changes_while_it_is_read_is_refused_and_read_anew_afterwards(s3, monkeypatch):
    folder, line = Folder(s3), b'{"_id": "%d", "text": "one"}\n'
    folder.write("corpus/0.jsonl", b"".join(line % number for number in range(3)))
    folder.write("corpus/1.jsonl", line % 3)
    read = stage.read_documents

    def disturbed(*arguments):
        for number, row in enumerate(read(*arguments)):
            if number == 1:
                folder.write("corpus/1.jsonl", line % 4)
            yield row

    monkeypatch.setattr(stage, "read_documents", disturbed)
    with pytest.raises(InputError, match=r"corpus/1.jsonl changed while the corpus was read; run the same command"):
        normalise(f"{s3}/corpus", folder / "work", CorpusConfig(), quiet=True)
    monkeypatch.setattr(stage, "read_documents", read)
    output, facts = normalise(f"{s3}/corpus", folder / "work", CorpusConfig(shard_rows=2), quiet=True)
    assert facts["sizes"] == {"part-000000.parquet": 2, "part-000001.parquet": 2}
    assert output.folder.read_table("part-000001.parquet")["docno"].to_pylist() == ["2", "4"]
