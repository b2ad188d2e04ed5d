"""The cache of this machine: converted models, and copies of what lies on object stores.

It may be deleted whenever nothing runs. Of the copies the least recently used go when they take more than
$ZEROGR_CACHE_GB (10^9 bytes, 100 without it) together; what a running process has asked for stays.
"""

from __future__ import annotations

import fcntl
import os
import shutil
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from itertools import count
from pathlib import Path

from zerogr_ray.errors import InputError
from zerogr_ray.s3 import is_url
from zerogr_ray.store import Folder, key_of

COPIES = ("fetched", "indexes")
"""Folders of the cache with what can be fetched again."""


def cache_folder() -> Path:
    """Where all of it is: $ZEROGR_CACHE, else zerogr in the user's cache folder."""
    home = os.environ.get("XDG_CACHE_HOME") or str(Path.home() / ".cache")
    return Path(os.environ.get("ZEROGR_CACHE") or Path(home) / "zerogr")


@contextmanager
def making(target: Path) -> Iterator[Path]:
    """A folder to fill; it becomes `target` in one step when the block ends well, and vanishes when it does not.

    Where another process was faster, what that made stays: it is the same.
    """
    target.parent.mkdir(parents=True, exist_ok=True)
    building = Path(tempfile.mkdtemp(dir=target.parent, prefix=f".{target.name}-"))
    try:
        yield building
        try:
            building.rename(target)
        except OSError:
            if not target.is_dir():
                raise
    finally:
        shutil.rmtree(building, ignore_errors=True)


def here(place: str | Path, names: Sequence[str] = ()) -> Path:
    """A local folder with these files of the folder `place`, or all of them: itself, or a copy that was made once.

    The copy's name is made of every file's name, size and etag. Raises InputError where a file changes meanwhile or
    the store refuses, FileNotFoundError where one is not there.
    """
    if not is_url(place):
        return Path(place)
    folder = Folder(place)
    stamps = folder.files()
    if lost := sorted(set(names) - set(stamps)) or ([] if stamps else [""]):
        raise FileNotFoundError(folder.url_of(lost[0]).rstrip("/"))
    wanted = {name: stamps[name] for name in names or stamps}
    target = cache_folder() / "fetched" / key_of("fetched", 1, wanted)
    keep(target)
    if not target.is_dir():
        with locked(target.with_name(f".{target.name}.lock")):
            if not target.is_dir():
                with making(target) as building:
                    folder.download(wanted, building)
        evict()
    return target


_kept: dict[Path, int] = {}
"""The open lock file of each copy that this process has asked for."""


def keep(copy: Path) -> None:
    """Note that `copy` is used, which is there or about to be made: nobody evicts it while this process lives."""
    with suppress(OSError):  # a full or read-only disk: what cannot be noted there cannot be evicted either
        if copy not in _kept:
            copy.parent.mkdir(parents=True, exist_ok=True)
            handle = os.open(_use_of(copy), os.O_RDWR | os.O_CREAT, 0o600)
            fcntl.flock(handle, fcntl.LOCK_SH)
            _kept[copy] = handle
        os.utime(_kept[copy])


def evict() -> None:
    """Remove the copies that were not used for longest, until all together fit. Raises InputError for a bad bound."""
    said = os.environ.get("ZEROGR_CACHE_GB") or "100"
    try:
        bound = float(said) * 1e9
    except ValueError:
        raise InputError(f"ZEROGR_CACHE_GB is {said}; set it to a number of gigabytes") from None
    uses = [use for kind in COPIES for use in (cache_folder() / kind).glob(".*.used")]
    held = {use: _size(_copy_of(use)) for use in sorted(uses, key=lambda use: use.stat().st_mtime_ns)}
    for use, size in held.items():
        if size and sum(held.values()) > bound and _removed(use):
            held[use] = 0


def _removed(use: Path) -> bool:
    """Remove the copy with this lock file, unless a process uses it."""
    going = use.with_suffix(".going")
    try:
        with locked(use, wait=False):
            shutil.rmtree(going, ignore_errors=True)
            _copy_of(use).rename(going)  # in one step: half a copy would be taken for a whole one
            shutil.rmtree(going, ignore_errors=True)
    except OSError:  # it is locked, or the disk refuses
        return False
    return True


def _use_of(copy: Path) -> Path:
    return copy.with_name(f".{copy.name}.used")


def _copy_of(use: Path) -> Path:
    return use.with_name(use.name.removeprefix(".").removesuffix(".used"))


def _size(copy: Path) -> int:
    """Bytes of its files; those that go meanwhile count nothing."""
    total = 0
    for file in copy.rglob("*"):
        with suppress(FileNotFoundError):
            total += file.stat().st_size if file.is_file() else 0
    return total


@contextmanager
def scratch(place: str) -> Iterator[Path]:
    """A local folder that belongs to `place` and, while the block runs, to this process alone.

    It goes when the block ends well. After a crash it is found again by the next that asks for the same place here.
    """
    parent = cache_folder() / "scratch"
    parent.mkdir(parents=True, exist_ok=True)
    for number in count():
        folder = parent / f"{key_of('scratch', place)}-{number}"
        with ExitStack() as held:
            try:
                held.enter_context(locked(Path(f"{folder}.lock"), wait=False))
            except BlockingIOError:
                continue
            folder.mkdir(exist_ok=True)
            yield folder
            shutil.rmtree(folder, ignore_errors=True)
            return


@contextmanager
def locked(lock: Path, wait: bool = True) -> Iterator[None]:
    """Hold a lock file; the system gives it back when the process ends, however it ends.

    Raises BlockingIOError where another process holds it and we are not to wait.
    """
    lock.parent.mkdir(parents=True, exist_ok=True)
    handle = os.open(lock, os.O_RDWR | os.O_CREAT, 0o644)
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
        yield
    finally:
        os.close(handle)
