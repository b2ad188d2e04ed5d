"""Where outputs live: a folder on disk or under s3://, written so that nobody ever sees half a file.

On disk a file is written to a temporary name, flushed and renamed; on an object store a PUT is whole or absent.
"""

from __future__ import annotations

import hashlib
import io
import json
import os
import tempfile
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager, suppress
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

from zerogr_ray.errors import InputError
from zerogr_ray.s3 import info_of, is_url, open_url, place_of, reaching, refused_for

if TYPE_CHECKING:
    import pyarrow as pa
    from numpy.typing import NDArray


FILES_AT_ONCE = 4
"""Files that travel from or to an object store at the same time."""


class Folder:
    """A folder by path or URL. Names inside it are relative and may contain "/".

    What an object store refuses is InputError in one sentence; what is not there is FileNotFoundError.
    """

    def __init__(self, url: str | Path) -> None:
        self.fs, self.path = open_url(place_of(url))
        self.local = "file" in self.fs.protocol

    def __reduce__(self) -> tuple[type[Folder], tuple[str]]:
        return Folder, (str(self),)  # opened anew where it arrives, with what that process is told of stores

    def __truediv__(self, name: str) -> Folder:
        return Folder(self.url_of(name))

    def __str__(self) -> str:
        return self.path if self.local else str(self.fs.unstrip_protocol(self.path))

    def url_of(self, name: str) -> str:
        """Full path or URL of `name`."""
        return f"{self}/{name}"

    def exists(self, name: str = "") -> bool:
        """Whether the file (or this folder itself) is there."""
        with self._reaching(name):
            return info_of(self.fs, f"{self.path}/{name}" if name else self.path) is not None

    def names(self, prefix: str, suffix: str) -> list[str]:
        """Sorted names of the files directly in this folder that begin and end so."""
        with self._reaching():
            try:
                entries = self.fs.ls(self.path, detail=False)
            except (FileNotFoundError, NotADirectoryError) as error:
                if refused_for(error) == "NoSuchBucket":
                    raise
                return []
        found = (str(entry).rstrip("/").rsplit("/", 1)[-1] for entry in entries if str(entry) != self.path)
        return sorted(name for name in found if name.startswith(prefix) and name.endswith(suffix))

    def files(self) -> dict[str, str]:
        """Every file in this folder and in those within: name -> what changes when the file does. On a store alone."""
        with self._reaching():
            found = self.fs.find(self.path, detail=True)
        begin = len(self.path) + 1
        return {
            path[begin:]: f"{info['size']} {info['ETag']}"
            for path, info in sorted(found.items())
            if info["type"] == "file"  # SeaweedFS lists an empty folder as itself
        }

    def written(self) -> dict[str, datetime]:
        """When each file in this folder and in those within was written, by the store's own clock. On a store alone."""
        with self._reaching():
            found = self.fs.find(self.path, detail=True)
        begin = len(self.path) + 1
        return {path[begin:]: info["LastModified"] for path, info in found.items() if info["type"] == "file"}

    def read(self, name: str) -> bytes:
        """The file's bytes. Raises FileNotFoundError."""
        with self._reaching(name):
            # In one stream: asking for the size first, to read in parts, would cost every small file a request more.
            how = {} if self.local else {"max_concurrency": 1}
            return bytes(self.fs.cat_file(f"{self.path}/{name}", **how))

    def write(self, name: str, data: bytes) -> None:
        """Write the file whole, replacing what was there."""
        target = f"{self.path}/{name}"
        if not self.local:
            with self._reaching(name):
                self.fs.pipe_file(target, data)
            return
        Path(target).parent.mkdir(parents=True, exist_ok=True)
        handle, building = tempfile.mkstemp(dir=Path(target).parent, prefix=".writing-")
        try:
            with os.fdopen(handle, "wb") as file:
                file.write(data)
                file.flush()
                os.fsync(file.fileno())
            os.chmod(building, 0o644)
            os.replace(building, target)
        except BaseException:
            Path(building).unlink(missing_ok=True)
            raise

    def stamp(self, name: str) -> str | None:
        """What `swap` wants to have seen: the etag of an object, None where there is none."""
        with self._reaching(name):
            info = info_of(self.fs, f"{self.path}/{name}")
        return str(info["ETag"]) if info else None

    def swap(self, name: str, data: bytes, seen: str | None) -> bool:
        """Write the object only if it is still the one that was `seen`, in one step; whether it was. On a store alone.

        Raises InputError as every other write.
        """
        bucket, key, _ = self.fs.split_path(f"{self.path}/{name}")
        condition = {"IfMatch": seen} if seen else {"IfNoneMatch": "*"}
        with self._reaching(name):
            for _ in range(10):
                try:
                    self.fs.call_s3("put_object", Bucket=bucket, Key=key, Body=data, **condition)
                    return True
                except OSError as error:
                    # Two conditional writes at the same moment: neither may have been made, so ask again.
                    if refused_for(error) == "ConditionalRequestConflict":
                        continue
                    if refused_for(error) not in ("PreconditionFailed", "NoSuchKey", "412"):
                        raise
                    break
            # Ours may be the write that is in our way: its answer was lost, and it was sent again.
            try:
                return self.read(name) == data
            except FileNotFoundError:
                return False

    def upload(self, folder: Path, last: str = "") -> None:
        """Copy the files of a local folder to this one on a store, `last` after all others."""
        files = sorted(str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file())

        def put(name: str) -> None:
            with self._reaching(name):
                self.fs.put_file(str(folder / name), f"{self.path}/{name}")

        _all(put, [name for name in files if name != last])
        if last:
            put(last)

    def fetch(self, name: str, file: Path) -> None:
        """Copy one file of a store to a local file. Raises FileNotFoundError."""
        if ".." in name.split("/"):
            raise InputError(f"{self.url_of(name)}: a name with .. in it is not followed; give the file another")
        file.parent.mkdir(parents=True, exist_ok=True)
        with self._reaching(name):
            self.fs.get_file(f"{self.path}/{name}", str(file))

    def download(self, stamps: Mapping[str, str], into: Path) -> None:
        """Copy these files of a store, as `files` names them, into a local folder. Raises InputError if one changes."""

        _all(lambda name: self.fetch(name, into / name), list(stamps))
        now = self.files()
        for name, stamp in stamps.items():
            if now.get(name) != stamp or (into / name).stat().st_size != int(stamp.split()[0]):
                raise InputError(f"{self.url_of(name)} changed while it was read; run the same command again")

    def read_json(self, name: str) -> Any:
        """The file parsed as JSON, or None where there is no such file."""
        try:
            return json.loads(self.read(name))
        except FileNotFoundError:
            return None

    def write_json(self, name: str, value: Any) -> None:
        """Write `value` as indented JSON."""
        self.write(name, as_json(value))

    def read_table(self, name: str, columns: list[str] | None = None) -> pa.Table:
        """A parquet file as an Arrow table."""
        import pyarrow.parquet as pq

        return pq.read_table(io.BytesIO(self.read(name)), columns=columns)

    def write_table(self, name: str, table: pa.Table) -> None:
        """An Arrow table as a parquet file (zstd).

        On an object store, where no lock keeps two runs apart, the first to write it has written it: what a later
        stage has read never changes under it.
        """
        import pyarrow.parquet as pq

        buffer = io.BytesIO()
        pq.write_table(table, buffer, compression="zstd")
        if self.local:
            self.write(name, buffer.getvalue())
        else:
            self.swap(name, buffer.getvalue(), None)

    def remove(self, name: str) -> None:
        """Remove one file, if it is there."""
        with self._reaching(name), suppress(FileNotFoundError):
            self.fs.rm_file(f"{self.path}/{name}")

    def delete(self) -> None:
        """Remove the folder and all that is in it, if it is there."""
        with self._reaching(), suppress(FileNotFoundError):
            self.fs.rm(self.path, recursive=True)

    def _reaching(self, name: str = "") -> AbstractContextManager[None]:
        return reaching(self.url_of(name) if name else str(self))


def _all(work: Callable[[str], None], names: Sequence[str]) -> None:
    """Do it for every name, several at a time; the first error is raised."""
    with ThreadPoolExecutor(FILES_AT_ONCE) as pool:
        for _ in pool.map(work, names):
            pass


def as_json(value: Any) -> bytes:
    """`value` as indented JSON."""
    return (json.dumps(value, indent=1, ensure_ascii=False) + "\n").encode()


def local_path(path: str | Path) -> Path:
    """`path` as an absolute local path. Raises InputError for a URL."""
    if is_url(path):
        raise InputError(
            f"{path}: this has to be a folder on a disk, for processes lock files in it; give one that all nodes see"
        )
    return Path(path).expanduser().absolute()


def save_arrays(folder: Path, arrays: Mapping[str, NDArray[Any]]) -> None:
    """Write each array as `folder`/NAME.npy; nothing in it is pickled."""
    import numpy as np

    folder.mkdir(parents=True, exist_ok=True)
    for name, array in arrays.items():
        np.save(folder / f"{name}.npy", array, allow_pickle=False)


def map_arrays(folder: Path, names: Iterable[str]) -> dict[str, NDArray[Any]]:
    """The arrays that `save_arrays` wrote, memory-mapped: nothing is read yet. Raises OSError and ValueError."""
    import numpy as np

    # As plain arrays over the mapped bytes: indexing a numpy.memmap costs ten times as much.
    return {name: np.asarray(np.load(folder / f"{name}.npy", mmap_mode="r", allow_pickle=False)) for name in names}


def sha256_of(file: Path) -> str:
    """sha256 of a local file's bytes."""
    with file.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def hash64(*parts: str) -> int:
    """A 64-bit hash of texts, the same on every machine: it orders and chooses what must not depend on luck."""
    return int.from_bytes(hashlib.blake2b("\0".join(parts).encode("utf-8", "replace"), digest_size=8).digest(), "big")


def key_of(*parts: Any) -> str:
    """16 hex digits that change when any part changes. Parts are JSON values."""
    return hashlib.sha256(json.dumps(parts, sort_keys=True, ensure_ascii=True).encode()).hexdigest()[:16]
