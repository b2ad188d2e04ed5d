"""What was added to an index and deleted from it since it was built: one file, one line per change, only ever appended.

    0a1b2c3d {"op":"delete","docno":"faq-7","docid":"","title":""}

The eight digits are the crc32 of the rest. A change counts once its line is whole and on the disk; only then is the
caller answered. Whoever reads keeps the position up to which it has read: to be up to date costs one look at the
file's size. Opening the file asks a network file system for its size anew, so that this holds on several nodes too.
"""

from __future__ import annotations

import fcntl
import json
import os
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Literal

from zerogr_ray.errors import IndexRefused


@dataclass(frozen=True, slots=True)
class Change:
    """A document that was added under a docid (replacing one of the same docno), or deleted."""

    op: Literal["add", "delete"]
    docno: str
    docid: str = ""
    title: str = ""


@dataclass(frozen=True, slots=True)
class Mark:
    """A place in a journal, with the crc32 of all that is before it."""

    position: int
    crc32: int


class Journal:
    """The journal in one file. Any number of processes may read and append."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def append(self, changes: list[Change]) -> int:
        """Write the changes and wait until they are on the disk; returns the position after them.

        What a writer that was killed left of its last line is cut off first, and kept in a file beside the journal.
        Raises OSError where they cannot be written; then none of them counts.
        """
        lines = b"".join(_line(change) for change in changes)
        with self._locked() as handle:
            end = self._whole(handle)
            try:
                written = os.pwrite(handle, lines, end)
                if written != len(lines):
                    raise OSError(f"{self.path}: only {written} of {len(lines)} bytes were written; is the disk full?")
                os.fsync(handle)
            except OSError:
                os.ftruncate(handle, end)
                raise
            return end + len(lines)

    def since(self, position: int) -> tuple[list[Change], int]:
        """The changes from `position` on, and the position after them. A line without its end is not there yet.

        A journal that was cut to before `position` is read from the beginning: to apply a change twice does no harm.
        Raises IndexRefused for a line that is damaged.
        """
        try:
            with self.path.open("rb") as file:
                size = os.fstat(file.fileno()).st_size
                if size == position:
                    return [], position
                if size < position:
                    position = 0
                file.seek(position)
                data = file.read()
        except FileNotFoundError:
            return [], 0
        changes: list[Change] = []
        whole = data[: data.rfind(b"\n") + 1]
        for line in whole.splitlines(keepends=True):
            change = _parsed(line)
            if change is None:
                if position:
                    return self.since(0)
                number = len(changes) + 1
                raise IndexRefused(
                    f"{self.path}, line {number}: damaged, {len(line)} bytes; put back a copy of the file, or keep the "
                    f"{len(changes)} changes before it: head -n {len(changes)} {self.path.name}"
                )
            changes.append(change)
        return changes, position + len(whole)

    def mark(self, position: int) -> Mark:
        """The place at `position`, to be found again with `position_of`. Raises IndexRefused where it is gone."""
        code = self._crc32(position)
        if code is None:
            raise IndexRefused(f"{self.path} was cut to before byte {position} while it was read; try again")
        return Mark(position, code)

    def position_of(self, mark: Mark | None) -> int:
        """Where to go on reading after `mark`; the beginning where the journal was cut or replaced since."""
        return mark.position if mark is not None and self._crc32(mark.position) == mark.crc32 else 0

    def _crc32(self, position: int) -> int | None:
        """Of the first `position` bytes; None where there are fewer."""
        code, left = 0, position
        try:
            with self.path.open("rb") as file:
                while left and (part := file.read(min(left, 1 << 20))):
                    code, left = zlib.crc32(part, code), left - len(part)
        except FileNotFoundError:
            pass
        return None if left else code

    def _whole(self, handle: int) -> int:
        """Where the last whole line ends; what comes after it is moved out of the way."""
        size = os.fstat(handle).st_size
        if not size or os.pread(handle, 1, size - 1) == b"\n":
            return size
        start = size
        torn = b""
        while start and b"\n" not in torn:
            some = min(4096, start)
            start -= some
            torn = os.pread(handle, some, start) + torn
        end = start + torn.rfind(b"\n") + 1
        with self.path.with_suffix(".torn").open("ab") as kept:
            kept.write(torn[end - start :] + b"\n")
        os.ftruncate(handle, end)
        return end

    @contextmanager
    def _locked(self) -> Iterator[int]:
        """The file, for one writer at a time; the system gives the lock back when the writer dies."""
        self.path.parent.mkdir(parents=True, exist_ok=True)
        handle = os.open(self.path, os.O_RDWR | os.O_CREAT, 0o600)
        try:
            fcntl.flock(handle, fcntl.LOCK_EX)
            yield handle
        finally:
            os.close(handle)


def _line(change: Change) -> bytes:
    said = json.dumps(asdict(change), ensure_ascii=False, separators=(",", ":")).encode()
    return b"%08x %s\n" % (zlib.crc32(said), said)


def _parsed(line: bytes) -> Change | None:
    """The change that a whole line says; None for a damaged one."""
    code, _, said = line[:-1].partition(b" ")
    if code != b"%08x" % zlib.crc32(said):
        return None
    try:
        return Change(**json.loads(said))
    except (ValueError, TypeError):
        return None
