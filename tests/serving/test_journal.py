"""The journal of changes: what was answered is there, what was torn off is not, what is damaged is said."""

from __future__ import annotations

import multiprocessing
import os

import pytest
from hypothesis import given
from hypothesis import strategies as st

from zerogr_ray.errors import IndexRefused
from zerogr_ray.serving.journal import Change, Journal
from zerogr_ray.serving.version import runs

SOME = [Change("add", "a", "red fox", "Foxes"), Change("delete", "b"), Change("add", "ü/東", "hat\u2028 hat")]


def write_many(path, name, count):
    for number in range(count):
        Journal(path).append([Change("add", f"{name}{number}", "docid")])


def test_what_was_appended_is_read_back_from_any_position(tmp_path):
    journal = Journal(tmp_path / "deep" / "j.jsonl")
    assert journal.since(0) == ([], 0)
    first = journal.append(SOME[:1])
    last = journal.append(SOME[1:])
    assert journal.since(0) == (SOME, last)
    assert journal.since(first) == (SOME[1:], last)
    assert journal.since(last) == ([], last)


def test_a_record_cut_in_the_middle_is_as_if_it_was_never_written(tmp_path):
    journal = Journal(tmp_path / "j.jsonl")
    kept = journal.append(SOME[:2])
    end = journal.append(SOME[2:])
    whole = journal.path.read_bytes()
    for cut in range(kept, end):
        journal.path.write_bytes(whole[:cut])
        assert journal.since(0) == (SOME[:2], kept)
        after = journal.append([Change("delete", "z")])
        assert journal.since(0) == ([*SOME[:2], Change("delete", "z")], after)
    torn = journal.path.with_suffix(".torn").read_bytes()
    assert whole[kept : end - 1] in torn


def test_a_journal_that_became_shorter_is_read_again_from_the_beginning(tmp_path):
    journal = Journal(tmp_path / "j.jsonl")
    first = journal.append(SOME[:1])
    last = journal.append(SOME[1:])
    os.truncate(journal.path, first)
    assert journal.since(last) == (SOME[:1], first)
    journal.append([Change("add", "n" * 300, "some docid")])
    changes, _ = journal.since(last)
    assert [change.docno for change in changes] == ["a", "n" * 300]


def test_a_mark_is_found_again_unless_what_was_before_it_is_another(tmp_path):
    journal = Journal(tmp_path / "j.jsonl")
    assert journal.position_of(None) == 0
    mark = journal.mark(journal.append(SOME[:2]))
    journal.append(SOME[2:])
    assert journal.position_of(mark) == mark.position > 0
    data = bytearray(journal.path.read_bytes())
    data[10] ^= 1
    journal.path.write_bytes(data)
    assert journal.position_of(mark) == 0
    os.truncate(journal.path, mark.position - 1)
    assert journal.position_of(mark) == 0
    with pytest.raises(IndexRefused, match="cut"):
        journal.mark(mark.position)


def test_a_damaged_line_is_refused_by_its_number(tmp_path):
    journal = Journal(tmp_path / "j.jsonl")
    journal.append(SOME)
    data = bytearray(journal.path.read_bytes())
    data[data.index(b"delete")] ^= 1
    journal.path.write_bytes(data)
    with pytest.raises(IndexRefused, match=r"j\.jsonl, line 2: damaged"):
        journal.since(0)


def test_writers_in_several_processes_lose_nothing(tmp_path):
    path = tmp_path / "j.jsonl"
    spawn = multiprocessing.get_context("fork")
    writers = [spawn.Process(target=write_many, args=(path, name, 40)) for name in "xyz"]
    for writer in writers:
        writer.start()
    for writer in writers:
        writer.join()
    changes, _ = Journal(path).since(0)
    assert sorted(change.docno for change in changes) == sorted(f"{name}{i}" for name in "xyz" for i in range(40))


@given(st.lists(st.tuples(st.sampled_from(["add", "delete"]), st.sampled_from("abcd"))))
def test_runs_keep_the_order_and_hold_each_document_once(pairs):
    changes = [Change(op, docno, "x") for op, docno in pairs]
    grouped = list(runs(changes))
    assert [change for run in grouped for change in run] == changes
    for run in grouped:
        assert len({change.op for change in run}) == 1
        assert len({change.docno for change in run}) == len(run)
