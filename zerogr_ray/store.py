"""Where outputs live: a folder on disk or under s3://, written so that nobody ever sees half a file.

On disk a file is written to a temporary name, flushed and renamed; on an object store a PUT is whole or absent.
"""

from __future__ import annotations

import hashlib
import io
import json
import os
import re
import tempfile
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from zerogr_ray.errors import InputError

if TYPE_CHECKING:
    import pyarrow as pa
    from numpy.typing import NDArray


class Folder:
    """A folder by path or URL. Names inside it are relative and may contain "/"."""

    def __init__(self, url: str | Path) -> None:
        import fsspec

        self.fs, self.path = fsspec.core.url_to_fs(str(url))
        self.local = "file" in self.fs.protocol

    def __truediv__(self, name: str) -> Folder:
        return Folder(self.url_of(name))

    def __str__(self) -> str:
        return self.path if self.local else str(self.fs.unstrip_protocol(self.path))

    def url_of(self, name: str) -> str:
        """Full path or URL of `name`."""
        return f"{self}/{name}"

    def exists(self, name: str = "") -> bool:
        """Whether the file (or this folder itself) is there."""
        return bool(self.fs.exists(f"{self.path}/{name}" if name else self.path))

    def names(self, prefix: str, suffix: str) -> list[str]:
        """Sorted names of the files directly in this folder that begin and end so."""
        self.fs.invalidate_cache(self.path)
        if not self.fs.isdir(self.path):
            return []
        found = (str(entry).rstrip("/").rsplit("/", 1)[-1] for entry in self.fs.ls(self.path, detail=False))
        return sorted(name for name in found if name.startswith(prefix) and name.endswith(suffix))

    def read(self, name: str) -> bytes:
        """The file's bytes. Raises FileNotFoundError."""
        return bytes(self.fs.cat_file(f"{self.path}/{name}"))

    def write(self, name: str, data: bytes) -> None:
        """Write the file whole, replacing what was there."""
        target = f"{self.path}/{name}"
        if not self.local:
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

    def read_json(self, name: str) -> Any:
        """The file parsed as JSON, or None where there is no such file."""
        try:
            return json.loads(self.read(name))
        except FileNotFoundError:
            return None

    def write_json(self, name: str, value: Any) -> None:
        """Write `value` as indented JSON."""
        self.write(name, (json.dumps(value, indent=1, ensure_ascii=False) + "\n").encode())

    def read_table(self, name: str, columns: list[str] | None = None) -> pa.Table:
        """A parquet file as an Arrow table."""
        import pyarrow.parquet as pq

        return pq.read_table(io.BytesIO(self.read(name)), columns=columns)

    def write_table(self, name: str, table: pa.Table) -> None:
        """An Arrow table as a parquet file (zstd)."""
        import pyarrow.parquet as pq

        buffer = io.BytesIO()
        pq.write_table(table, buffer, compression="zstd")
        self.write(name, buffer.getvalue())

    def delete(self) -> None:
        """Remove the folder and all that is in it, if it is there."""
        if self.exists():
            self.fs.rm(self.path, recursive=True)


def local_path(path: str | Path) -> Path:
    """`path` as an absolute local path. Raises InputError for a URL."""
    if "://" in str(path) or re.match(r"\w\w+:/", str(path)):  # Path("s3://b/x") has become "s3:/b/x"
        raise InputError(f"{path}: indexes are local folders for now; copy the folder here, or from here to s3://")
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


def hash64(*parts: str) -> int:
    """A 64-bit hash of texts, the same on every machine: it orders and chooses what must not depend on luck."""
    return int.from_bytes(hashlib.blake2b("\0".join(parts).encode("utf-8", "replace"), digest_size=8).digest(), "big")


def key_of(*parts: Any) -> str:
    """16 hex digits that change when any part changes. Parts are JSON values."""
    return hashlib.sha256(json.dumps(parts, sort_keys=True, ensure_ascii=True).encode()).hexdigest()[:16]
