"""What the cache of a machine keeps, and what it gives up."""

from __future__ import annotations

import os

import pytest

from zerogr_ray.cache import evict, keep
from zerogr_ray.errors import InputError


@pytest.fixture
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("ZEROGR_CACHE", str(tmp_path))
    monkeypatch.setenv("ZEROGR_CACHE_GB", "3e-6")
    return tmp_path


def copied(cache, name, second):
    """A copy of 1500 bytes that a process which has ended used last in this second."""
    folder = cache / name / "model"
    folder.mkdir(parents=True)
    (folder / "weights").write_bytes(bytes(1500))
    lock = folder.parent.with_name(f".{folder.parent.name}.used")
    lock.touch()
    os.utime(lock, (second, second))
    return folder.parent


def test_the_copies_that_were_not_used_for_longest_go_until_the_rest_fits(cache):
    one, two, three = (
        copied(cache, name, second) for second, name in enumerate(["fetched/b", "indexes/c", "fetched/a"])
    )
    evict()
    assert [copy.is_dir() for copy in (one, two, three)] == [False, True, True]
    keep(one)
    assert not one.exists(), "it is made by who asked for it"
    evict()
    assert [copy.is_dir() for copy in (one, two, three)] == [False, True, True]


def test_a_copy_that_a_process_uses_stays_however_old_it_is(cache):
    used = copied(cache, "fetched/a", 1)
    keep(used)
    os.utime(cache / "fetched" / ".a.used", (1, 1))
    others = [copied(cache, f"fetched/{name}", second) for second, name in ((2, "b"), (3, "c"))]
    evict()
    assert [copy.is_dir() for copy in (used, *others)] == [True, False, True]


def test_a_bound_that_is_no_number_is_refused(cache, monkeypatch):
    monkeypatch.setenv("ZEROGR_CACHE_GB", "much")
    with pytest.raises(InputError, match="ZEROGR_CACHE_GB is much; set it to a number of gigabytes"):
        evict()
