"""Replicas and their operator, without Ray: changes seen by all, switches, refusals, restarts, too little memory."""

from __future__ import annotations

import asyncio
import shutil
import subprocess
import sys
import threading
from contextlib import ExitStack
from pathlib import Path

import pytest

from tests.serving.service import held, replica, settings, tiny_index, until
from zerogr_ray.config import DecodeConfig
from zerogr_ray.decoding.job import Request
from zerogr_ray.errors import IndexRefused, InputError
from zerogr_ray.serving.control import activate, compact, follow_settings, roll_back
from zerogr_ray.serving.decoder import Work
from zerogr_ray.serving.errors import NotFound, Unavailable
from zerogr_ray.serving.state import State

pytestmark = pytest.mark.model


@pytest.fixture(scope="module")
def index(tmp_path_factory):
    return tiny_index(tmp_path_factory.mktemp("one"))


@pytest.fixture(scope="module")
def second(tmp_path_factory):
    return tiny_index(tmp_path_factory.mktemp("two"), seed=2, count=70)


@pytest.fixture
def cfg(index, tmp_path):
    return settings(index, tmp_path / "state")


def ask(searcher, query="red fox", k=200, **more):
    return asyncio.run(searcher.search("docs", [Request(query, k, **more)]))


def docnos(found):
    return [hit.docno for hit in found.hits[0]]


def change(searcher, docno, docid=None):
    if docid is None:
        asyncio.run(searcher.delete("docs", docno))
    else:
        asyncio.run(searcher.add("docs", docno, docid, "", f"Title of {docno}"))


def test_a_change_on_one_replica_is_seen_by_the_next_search_on_every_other(cfg):
    with ExitStack() as stack:
        replicas = [stack.enter_context(replica(cfg)) for _ in range(3)]
        for number, one in enumerate(replicas):
            change(one, f"new{number}", "red fox web hat")
            change(one, f"d{number}")
            for other in replicas:
                found = docnos(ask(other))
                assert f"new{number}" in found
                assert f"d{number}" not in found
        answers = [ask(one, config=DecodeConfig(seed=4)) for one in replicas]
        assert docnos(answers[0]) == docnos(answers[1]) == docnos(answers[2])
        assert answers[0].titles["new1"] == "Title of new1"


def test_a_deletion_during_a_search_keeps_the_document_out_of_its_answer(cfg):
    with replica(cfg) as searcher:
        all_of_it = docnos(ask(searcher))
        version = searcher.current["docs"]
        real, gone = version.retriever.forward, all_of_it[0]

        def forward():
            made = real()
            searcher.state.journal("docs").append([_deletion(gone)])  # after the round has looked at the journal
            return made

        version.retriever.forward = forward
        try:
            found = ask(searcher)
        finally:
            version.retriever.forward = real
        assert docnos(found) == all_of_it[1:]
        assert [hit.rank for hit in found.hits[0]] == list(range(1, len(all_of_it)))


def _deletion(docno):
    from zerogr_ray.serving.journal import Change

    return Change("delete", docno)


def test_changes_survive_a_restart_and_a_torn_last_record(cfg):
    with replica(cfg) as searcher:
        change(searcher, "new", "red fox web")
        change(searcher, "d5")
        journal = searcher.state.journal("docs")
    with journal.path.open("ab") as file:
        file.write(b'1234abcd {"op":"delete","docno":"d')
    with replica(cfg) as searcher:
        found = docnos(ask(searcher))
        assert "new" in found
        assert "d5" not in found
        change(searcher, "d6")
        assert "d6" not in docnos(ask(searcher))
        with pytest.raises(NotFound):
            change(searcher, "d5")


def test_a_damaged_journal_fails_searches_rather_than_showing_what_was_deleted(cfg):
    with replica(cfg) as searcher:
        change(searcher, "d5")
        change(searcher, "d6")
        path = searcher.state.journal("docs").path
        path.write_bytes(path.read_bytes().replace(b"d5", b"d7") + b"x\n")
        with pytest.raises(Unavailable):
            ask(searcher)
        with pytest.raises(Unavailable):
            searcher.ready()
    with pytest.raises(IndexRefused, match="line 1: damaged"), replica(cfg):
        pass


def test_a_switch_under_load_fails_no_request_and_mixes_no_answer(cfg, second):
    with ExitStack() as stack:
        replicas = [stack.enter_context(replica(cfg)) for _ in range(2)]
        before = {one.current["docs"].label for one in replicas}
        stop, answers, failed = threading.Event(), [], []

        def load(one):
            while not stop.is_set():
                try:
                    answers.append(asyncio.run(one.search("docs", [Request("fox", 100), Request("web", 100)])))
                except Exception as error:
                    failed.append(error)

        threads = [threading.Thread(target=load, args=(one,)) for one in replicas]
        for thread in threads:
            thread.start()
        told = []
        ref = activate(State(cfg.state), "docs", second, told.append, seconds=60)
        after = len(answers)
        until(lambda: len(answers) > after + 4)
        stop.set()
        for thread in threads:
            thread.join()
        assert not failed
        assert {answer.version for answer in answers} == before | {ref.version}
        assert {answer.version for answer in answers[after + 2 :]} == {ref.version}
        for answer in answers:
            assert {len(hits) for hits in answer.hits} == {60 if answer.version in before else 70}
        assert [line.split("\t")[0] for line in told] == ["verified", "switched", "active"]


def test_one_call_rolls_back_and_changes_stay(cfg, second):
    with replica(cfg) as searcher:
        first = searcher.current["docs"].label
        change(searcher, "new", "red fox web")
        change(searcher, "d5")
        activate(searcher.state, "docs", second, seconds=60)
        found = docnos(ask(searcher))
        assert "new" in found
        assert "d5" not in found
        assert len(found) == 70
        roll_back(searcher.state, "docs", seconds=60)
        assert ask(searcher).version == first
        assert "d5" not in docnos(ask(searcher))
        until(lambda: len(searcher._loaded["docs"]) == 1)


def test_folding_the_journal_loses_no_change_that_is_made_meanwhile(cfg, tmp_path):
    with replica(cfg) as searcher:
        first = searcher.current["docs"].label
        change(searcher, "new", "red fox web")
        change(searcher, "d5")
        told = []

        def meanwhile(line):
            told.append(line.split("\t")[0])
            if told[-1] == "written":
                change(searcher, "later", "json line")
                change(searcher, "d6")

        ref = compact(searcher.state, "docs", tmp_path / "v2", meanwhile, seconds=60, dtype="float32")
        assert told == ["written", "verified", "switched", "active"]
        expected = {f"d{i}" for i in range(60)} - {"d5", "d6"} | {"new", "later"}
        for version in (ref.version, first, ref.version):
            answer = ask(searcher)
            assert answer.version == version
            assert set(docnos(answer)) == expected
            assert answer.titles["new"] == "Title of new"
            roll_back(searcher.state, "docs", seconds=60)
        roll_back(searcher.state, "docs", seconds=60)
    with replica(cfg) as searcher:
        assert ask(searcher).version == ref.version
        assert set(docnos(ask(searcher))) == expected
        facts = searcher.current["docs"].facts()
        assert (facts["added"], facts["removed"]) == (1, 1), "what was folded is not applied again"


def test_what_was_folded_counts_for_a_version_built_without_it(cfg, second, tmp_path):
    with replica(cfg) as searcher:
        change(searcher, "d5")
        compact(searcher.state, "docs", tmp_path / "v2", seconds=60, dtype="float32")
        activate(searcher.state, "docs", second, seconds=60)
        assert "d5" not in docnos(ask(searcher))


def test_folding_is_refused_where_it_would_change_something_else(cfg, second, tmp_path):
    with replica(cfg) as searcher:
        with pytest.raises(InputError, match="nothing to fold"):
            compact(searcher.state, "docs", tmp_path / "v2")
        change(searcher, "d5")
        with pytest.raises(InputError, match="is there already"):
            compact(searcher.state, "docs", second)

        def meanwhile(line):
            if line.startswith("written"):
                activate(searcher.state, "docs", second, seconds=60)

        with pytest.raises(InputError, match="activated meanwhile"):
            compact(searcher.state, "docs", tmp_path / "v2", meanwhile, seconds=60, dtype="float32")
        versions = searcher.state.versions()["docs"]
        assert (Path(versions.active.path), versions.candidate) == (second, None)


def test_a_bad_version_is_refused_and_the_one_before_goes_on(cfg, second, tmp_path):
    with replica(cfg) as searcher:
        first = ask(searcher).version
        damaged = tmp_path / "damaged"
        shutil.copytree(second, damaged)
        tokens = damaged / "trie" / "tokens.npy"
        tokens.write_bytes(tokens.read_bytes()[:-1])
        with pytest.raises(IndexRefused, match=r"tokens\.npy"):
            activate(searcher.state, "docs", damaged)
        with pytest.raises(IndexRefused, match="does not exist"):
            activate(searcher.state, "docs", tmp_path / "nothing")
        with pytest.raises(InputError, match="no index 'other'"):
            activate(searcher.state, "other", second)
        with pytest.raises(InputError, match="no version before"):
            roll_back(searcher.state, "docs")
        assert ask(searcher).version == first


def test_a_version_that_a_replica_cannot_load_is_withdrawn(cfg, second):
    from zerogr_ray.serving.loader import Loader

    good = Loader(cfg)

    def load(ref):
        if Path(ref.path) == second:
            raise MemoryError("no room for a second model")
        return good(ref)

    with replica(cfg, load=load) as searcher:
        first = ask(searcher).version
        with pytest.raises(IndexRefused, match="no room for a second model"):
            activate(searcher.state, "docs", second, seconds=60)
        assert searcher.state.versions()["docs"].candidate is None
        assert ask(searcher).version == first


def test_what_was_activated_while_nothing_ran_answers_at_the_next_start(cfg, second):
    with replica(cfg):
        pass
    ref = activate(State(cfg.state), "docs", second)
    with replica(cfg) as searcher:
        assert ask(searcher).version == ref.version


def test_settings_that_name_another_folder_bring_it_in_and_unchanged_ones_decide_nothing(cfg, index, second, tmp_path):
    state = State(cfg.state)
    follow_settings(state, cfg.indexes)  # nothing has run yet
    with replica(cfg) as searcher:
        first = ask(searcher).version
        follow_settings(state, cfg.indexes, seconds=60)
        assert ask(searcher).version == first
        follow_settings(state, {"docs": str(second)}, seconds=60)
        assert ask(searcher).version != first
        roll_back(state, "docs", seconds=60)
        follow_settings(state, {"docs": str(second)}, seconds=60)
        assert ask(searcher).version == first, "the settings are as they were, the operator has decided since"
        with pytest.raises(IndexRefused, match="does not exist"):
            follow_settings(state, {"docs": str(tmp_path / "nothing")}, seconds=60)
        assert ask(searcher).version == first


def test_an_index_deleted_from_disk_goes_on_answering(tmp_path):
    folder = tiny_index(tmp_path / "gone")
    with replica(settings(folder, tmp_path / "state")) as searcher:
        before = docnos(ask(searcher))
        shutil.rmtree(folder)
        change(searcher, before[0])
        assert sorted(docnos(ask(searcher))) == sorted(before[1:])


def test_a_request_that_nobody_waits_for_is_not_decoded(cfg):
    with replica(cfg) as searcher:
        decoded = []
        searcher.decoder._observe = lambda name, effort, queued: decoded.append(effort.queries)
        with held(searcher):
            work = Work("docs", [Request("fox")])
            searcher.decoder.submit(work).cancel()
            other = searcher.decoder.submit(Work("docs", [Request("fox")]))
        other.result()
        until(lambda: decoded)
        assert decoded == [1]


def test_a_request_that_was_given_up_does_not_hold_the_decoder(cfg):
    with replica(cfg) as searcher:
        version, waves, works = searcher.current["docs"], [], []
        real = version.retriever.forward

        def forward():
            made = real()
            wave = made.wave

            def giving_up(*asked):
                waves.append(1)
                works[0].cancelled = True
                return wave(*asked)

            made.wave = giving_up
            return made

        version.retriever.forward = forward
        try:
            works.append(Work("docs", [Request("fox", 200)]))
            searcher.decoder.submit(works[0])
            until(lambda: waves and searcher.decoder.busy_since is None)
        finally:
            version.retriever.forward = real
        assert len(waves) == 1
        assert len(docnos(ask(searcher))) == 60


def test_one_bad_request_does_not_spoil_the_round_it_is_in(cfg):
    with replica(cfg) as searcher:
        with held(searcher):
            good = [searcher.decoder.submit(Work("docs", [Request("fox", 3)])) for _ in range(2)]
            bad = searcher.decoder.submit(Work("docs", [Request("fox", 3, docnos=["nowhere"])]))
        assert [len(future.result().hits[0]) for future in good] == [3, 3]
        with pytest.raises(InputError, match="nowhere"):
            bad.result()


def test_a_batch_that_needs_more_memory_than_there_is_fails_alone(cfg):
    """Real allocations against a real limit, in a process of its own: the rest of the round is answered."""
    ran = subprocess.run(
        [sys.executable, "-c", STARVED, str(cfg.indexes["docs"]), cfg.state],
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert ran.returncode == 0, ran.stderr[-2000:]
    assert ran.stdout.split() == ["TooLarge", "5", "5"]


STARVED = """
import resource, sys
from tests.serving.service import held, replica, settings
from zerogr_ray.config import DecodeConfig
from zerogr_ray.decoding.job import Request
from zerogr_ray.serving.decoder import Work
import torch
torch.set_num_threads(1)
with replica(settings(sys.argv[1], sys.argv[2])) as searcher:
    used = int(open("/proc/self/statm").read().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (used + (1 << 28), resource.RLIM_INFINITY))
    absurd = Request("json " * 20_000, 5, config=DecodeConfig(query_tokens=20_000))
    with held(searcher):
        futures = [searcher.decoder.submit(Work("docs", [r])) for r in (Request("fox", 5), absurd)]
    print(type(futures[1].exception()).__name__, len(futures[0].result().hits[0]))
    print(len(searcher.decoder.submit(Work("docs", [Request("web", 5)])).result().hits[0]))
"""
