"""Where the files of a corpus are, on a disk or in a bucket, and the rows they hold."""

from __future__ import annotations

import gzip
import io
import zlib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import IO, Any

from zerogr_ray.errors import InputError, ZeroGRError
from zerogr_ray.s3 import info_of, open_url, reaching

SUFFIXES = (".jsonl", ".jsonl.gz", ".ndjson", ".ndjson.gz", ".parquet")
BATCH_ROWS = 256
BOM = b"\xef\xbb\xbf"


@dataclass(frozen=True, slots=True)
class Source:
    """One file or folder: `name` is what its filesystem calls it, `shown` what the user calls it."""

    fs: Any
    name: str
    shown: str

    def __truediv__(self, child: str) -> Source:
        return Source(self.fs, f"{self.name.rstrip('/')}/{child}", f"{self.shown.rstrip('/')}/{child}")

    def is_file(self) -> bool:
        return bool(self.fs.isfile(self.name))

    def is_folder(self) -> bool:
        return bool(self.fs.isdir(self.name))

    def children(self) -> list[str]:
        """Names in this folder, sorted; a sub-folder ends in "/"."""
        found = []
        for info in self.fs.ls(self.name, detail=True):
            base = info["name"].rstrip("/").rsplit("/", 1)[-1]
            found.append(base + "/" if info["type"] == "directory" else base)
        return sorted(found)

    @contextmanager
    def reading(self) -> Iterator[IO[bytes]]:
        """The file's bytes, unpacked if its name ends in .gz. Raises InputError if they cannot be read."""
        try:
            with reaching(self.shown), self.fs.open(self.name, "rb") as raw:
                if self.name.lower().endswith(".gz"):
                    yield io.BufferedReader(gzip.GzipFile(fileobj=raw))
                else:
                    yield raw
        except (EOFError, zlib.error):
            raise InputError(f"{self.shown} is a truncated or damaged gzip file; download or pack it again") from None
        except gzip.BadGzipFile as error:
            raise InputError(f"{self.shown} is not a sound gzip file ({error}); download or pack it again") from None
        except OSError as error:
            raise InputError(f"{self.shown} cannot be read: {error.strerror or error}") from None


def locate(path: str) -> Source:
    """The file or folder at a local path or URL. Raises InputError if there is none."""
    try:
        with reaching(path):
            fs, name = open_url(path)
            there = info_of(fs, name) is not None
    except ZeroGRError:
        raise
    except Exception as error:  # every filesystem brings its own: botocore's missing credentials are no OSError
        raise InputError(f"{path} cannot be opened: {error}; check the address and your credentials") from None
    if not there:
        raise InputError(f"there is no file or folder {path}; check the path")
    return Source(fs, name, path)


def first_file(folder: Source, names: Sequence[str]) -> Source | None:
    """The first of `names` that is a file in `folder`."""
    return next((folder / name for name in names if (folder / name).is_file()), None)


def lines(source: Source) -> Iterator[tuple[int, bytes]]:
    """(line number from 1, line without its end) of every line that is not blank.

    Lines end at b"\\n" only: other characters that Unicode calls line ends may stand inside a JSON string.
    """
    with source.reading() as stream:
        for number, line in enumerate(stream, 1):
            row = line.removeprefix(BOM) if number == 1 else line
            if row.strip():
                yield number, row.rstrip(b"\r\n")


def parquet_batches(source: Source, wanted: Sequence[str]) -> Iterator[tuple[list[str], Any]]:
    """(names of all columns, record batch of those that are in `wanted`), a few hundred rows at a time.

    Raises InputError if the file is not sound parquet.
    """
    import pyarrow as pa
    import pyarrow.parquet as pq

    with source.reading() as stream:
        try:
            file = pq.ParquetFile(stream)
            names = list(file.schema_arrow.names)
            for batch in file.iter_batches(BATCH_ROWS, columns=[name for name in names if name in wanted]):
                yield names, batch
        except (pa.ArrowException, OSError) as error:
            first = str(error).strip().split("\n")[0].rstrip(".")
            raise InputError(f"{source.shown} is not a readable parquet file ({first}); write it again") from None
