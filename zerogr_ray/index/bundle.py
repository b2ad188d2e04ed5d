"""The index folder: what serving loads. Flat arrays, an Arrow table, safetensors, and a manifest that vouches for them.

    manifest.json      counts, fingerprints, every file's size and sha256
    trie/*.npy         see trie.py
    documents.arrow    docno, docid, tokens, title in the trie's document order
    by_docno.npy       numbers of the documents, sorted by docno
    owners.npy         whose each document is, where one has several docids
    postings/*.npy     see postings.py; absent where not asked for
    training.jsonl     loss of each training step, one JSON object a line; absent where nothing was trained
    model/             safetensors, tokenizer, chat template

It is built under a temporary name and appears in one step, so there is never half an index; nothing in it is code.
"""

from __future__ import annotations

import ctypes
import errno
import os
import shutil
import tempfile
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from zerogr_ray.cache import scratch
from zerogr_ray.config import DecodeConfig
from zerogr_ray.corpus.bags import Bags, laid_out
from zerogr_ray.errors import BuildError, IndexRefused
from zerogr_ray.index.manifest import FORMAT, MANIFEST, digest, fetch_index, read_manifest, refuse_changed
from zerogr_ray.index.postings import Postings
from zerogr_ray.index.table import spooled, take
from zerogr_ray.index.trie import ARRAYS, Trie
from zerogr_ray.index.trie_build import Ints
from zerogr_ray.published import publish_folder, refuse_other
from zerogr_ray.s3 import is_url, place_of
from zerogr_ray.store import as_json, map_arrays, save_arrays, sha256_of

DOCUMENTS = pa.schema(
    [("docno", pa.string()), ("docid", pa.string()), ("tokens", pa.list_(pa.uint32())), ("title", pa.string())]
)

PRIORS = ("priors", "tail_priors", "next_prior")

TRAINING = "training.jsonl"

WRITTEN = 1 << 20
"""Documents that are put into the trie's order at a time."""


@dataclass(frozen=True)
class Bundle:
    """An open, verified index. Arrays and documents are memory-mapped, read-only."""

    path: Path
    manifest: dict[str, Any]
    trie: Trie
    documents: pa.Table
    by_docno: Ints
    owners: Ints | None = None
    """(documents,) which docno each has, as a number; None where every document has one docid."""
    postings: Postings | None = None
    priors: NDArray[np.float16] | None = None
    """(N,) for each trie edge, the mean over calibration texts of its log-probability over the whole vocabulary."""
    tail_priors: NDArray[np.float16] | None = None
    """(documents,) the same, summed over the docid's tokens after its distinguishing prefix and the end."""
    next_prior: NDArray[np.float32] | None = None
    """(vocabulary,) the same for the token that comes first."""

    @cached_property
    def decode(self) -> DecodeConfig:
        """How to search it where a request does not say: what its build chose, else the published algorithm."""
        return DecodeConfig(**self.manifest.get("decode", {}))

    @property
    def model(self) -> Path:
        """Folder of the retriever's LM."""
        return self.path / "model"

    @property
    def training(self) -> bytes:
        """JSON lines, the loss of each training step; empty where the index has none."""
        return (self.path / TRAINING).read_bytes() if TRAINING in self.manifest["files"] else b""

    def rows_of(self, docnos: Sequence[str]) -> tuple[NDArray[np.int64], list[str]]:
        """Numbers of all documents that have one of these docnos, ascending, and the docnos that none has.

        A docno has several where a document has several docids. A binary search for all docnos at once: it reads
        log2(documents) of the stored docnos for each, whatever the size of the index.
        """
        wanted = pa.array(docnos, pa.string()).unique()
        first = self._bisect(wanted, pc.less)
        if self.owners is not None:
            counts = self._bisect(wanted, pc.less_equal) - first
        else:  # every docno comes once at most
            counts = np.zeros(len(first), dtype=np.int64)
            there = np.flatnonzero(first < len(self.by_docno))
            stored = take(self.documents.select(["docno"]), self.by_docno[first[there]])["docno"]
            counts[there] = pc.equal(stored, wanted.take(pa.array(there))).to_numpy()
        _, places = laid_out(first, counts)
        rows = np.sort(self.by_docno[places].astype(np.int64))
        return rows, wanted.filter(pa.array(counts == 0)).to_pylist()

    def _bisect(self, wanted: pa.Array, comes_before: Callable[[Any, Any], Any]) -> NDArray[np.int64]:
        """For each wanted docno the number of stored ones that come before it, shape (wanted,)."""
        docnos, documents = self.documents.select(["docno"]), self.documents.num_rows
        low, high = np.zeros(len(wanted), dtype=np.int64), np.full(len(wanted), documents)
        for _ in range(documents.bit_length()):
            middle = np.minimum((low + high) // 2, documents - 1)
            stored = take(docnos, self.by_docno[middle])["docno"]
            before = comes_before(stored, wanted).to_numpy() & (low < high)
            low, high = np.where(before, middle + 1, low), np.where(before, high, np.minimum(middle, high))
        return low


def write_index(
    out: Path,
    documents: pa.Table | Iterable[pa.Table],
    end: int,
    model: Path,
    facts: dict[str, Any],
    vocab: int | None = None,
    bags: Bags | None = None,
    priors: Callable[[Trie, pa.Table], dict[str, NDArray[Any]]] | None = None,
    choose: Callable[[Bundle], dict[str, Any]] | None = None,
    training: bytes = b"",
    build: Callable[[pa.ChunkedArray, int], tuple[Trie, NDArray[np.int64]]] = Trie.build,
) -> dict[str, Any]:
    """Build the index of these documents and publish it as `out`, replacing an index that is there.

    `documents` has the columns of DOCUMENTS, or gives tables that have, which then lie on the disk, not in memory.
    `end` is the end-of-turn token, `build` does what Trie.build does, `facts` go into the manifest. With
    `vocab`, the model's number of tokens, it gets postings (see postings.py): of `bags`, what each document is
    about, or without them of the docids' tokens. `priors`, given the trie and the documents in its order, makes the
    arrays of PRIORS. `choose`, given the index before it is published, adds facts to its manifest, such as `decode`;
    `training` becomes training.jsonl. Returns the manifest.
    """
    with _publishing(out) as folder:
        if not isinstance(documents, pa.Table):
            documents = spooled(documents, DOCUMENTS, folder / "unordered.arrow")
        documents = documents.select(DOCUMENTS.names).cast(DOCUMENTS)
        trie, order = build(documents["tokens"], end)
        trie.save(folder / "trie")
        path = str(folder / "documents.arrow")
        with pa.OSFile(path, "wb") as sink, pa.ipc.new_file(sink, DOCUMENTS) as writer:
            for start in range(0, len(order), WRITTEN):
                writer.write_table(take(documents, order[start : start + WRITTEN]), max_chunksize=1 << 16)
        del documents
        ordered = pa.ipc.open_file(pa.memory_map(path)).read_all()
        by_docno = pc.sort_indices(ordered["docno"]).to_numpy()
        wide = np.uint32 if len(by_docno) < 1 << 32 else np.uint64
        arrays = {"by_docno": by_docno.astype(wide), **_owners(ordered["docno"], by_docno, wide)}
        if priors:
            arrays |= {f"trie/{name}": array for name, array in priors(trie, ordered).items()}
        save_arrays(folder, arrays)
        if vocab:
            made = Postings.of_bags(bags.take(order)) if bags else Postings.build(ordered["tokens"], vocab)
            made.save(folder / "postings")
        if training:
            (folder / TRAINING).write_bytes(training)
        # Not with its mode: safetensors writes files that only their owner may read.
        shutil.copytree(model, folder / "model", copy_function=shutil.copyfile)
        counts = {"documents": trie.documents, "docids": trie.leaves, "nodes": trie.nodes}
        manifest = {"format": FORMAT, **counts, **facts, "files": _describe(folder)}
        if choose:
            manifest |= choose(opened(folder, manifest))
        manifest["sha256"] = digest(manifest)
        (folder / MANIFEST).write_bytes(as_json(manifest))
    return manifest


def _owners(docnos: pa.ChunkedArray, by_docno: Ints, wide: Any) -> dict[str, Ints]:
    """The array `owners`, where a docno comes more than once."""
    new = np.ones(len(by_docno), dtype=bool)
    for start in range(1, len(new), WRITTEN):
        ordered = take(pa.table([docnos], ["docno"]), by_docno[start - 1 : start + WRITTEN])["docno"]
        new[start : start + WRITTEN] = pc.not_equal(ordered[1:], ordered[:-1]).to_numpy()
    if new.all():
        return {}
    owners = np.empty(len(new), dtype=wide)
    owners[by_docno] = np.cumsum(new) - 1
    return {"owners": owners}


def open_index(path: str | Path) -> Bundle:
    """Verify and open the index at `path`; one under s3:// by its copy in this machine's cache.

    Raises IndexRefused naming the first file that is not as it was written, and InputError where a store refuses.
    """
    if not is_url(path):
        return _verified(Path(path))
    copy = fetch_index(place_of(path))
    try:
        return _verified(copy)
    except IndexRefused:  # something happened to the copy after it was made
        shutil.rmtree(copy)
        return _verified(fetch_index(place_of(path)))


def _verified(path: Path) -> Bundle:
    manifest = read_manifest(path)
    refuse_changed(path, manifest, path)
    present = {str(file.relative_to(path)) for file in path.rglob("*") if file.is_file()} - {MANIFEST}
    if extra := sorted(present - set(manifest["files"])):
        raise IndexRefused(f"{path / extra[0]} does not belong to the index; remove it")
    needed = ["documents.arrow", "by_docno.npy", *(f"trie/{name}.npy" for name in ARRAYS)]
    if lost := [name for name in needed if name not in manifest["files"]]:
        raise IndexRefused(f"{path}/manifest.json does not list {lost[0]}; build the index again")
    return opened(path, manifest)


def opened(path: Path, manifest: dict[str, Any]) -> Bundle:
    """The index at `path` with this manifest, its files taken as they are: open_index verifies them."""
    documents = pa.ipc.open_file(pa.memory_map(str(path / "documents.arrow"))).read_all()
    trie = Trie.open(path / "trie")
    listed = manifest["files"]
    optional = [name for name in ("owners", *(f"trie/{name}" for name in PRIORS)) if f"{name}.npy" in listed]
    mapped = map_arrays(path, ["by_docno", *optional])
    arrays = {name.rpartition("/")[2]: array for name, array in mapped.items()}
    postings = Postings.open(path / "postings") if "postings/rows.npy" in listed else None
    if documents.num_rows != trie.documents:
        raise IndexRefused(
            f"{path} holds {documents.num_rows} documents but {trie.documents} in its trie; build it again"
        )
    return Bundle(path, manifest, trie, documents, postings=postings, **arrays)


@contextmanager
def writing_index(out: str | Path) -> Iterator[Path]:
    """Where to write the index `out`: there; or, for one under s3://, in a folder from which it is published then.

    Raises BuildError where another run has published another index meanwhile.
    """
    if not is_url(out):
        yield Path(out)
        return
    url = place_of(out)
    with scratch(url) as folder:
        shutil.rmtree(folder / "index", ignore_errors=True)
        yield folder / "index"
        manifest = read_manifest(folder / "index")
        publish_folder(url, folder / "index", str(manifest.get("key", manifest["sha256"][:16])), MANIFEST)


def check_target(out: str | Path) -> None:
    """Refuse a path where something else than an index is; remove what a killed build left beside it."""
    if is_url(out):
        refuse_other(place_of(out), MANIFEST)
        return
    out = Path(out)
    if out.exists() and not (out / MANIFEST).exists() and any(out.iterdir() if out.is_dir() else [out]):
        raise BuildError(f"{out} exists and is not an index; give another path or remove it")
    out.parent.mkdir(parents=True, exist_ok=True)
    for left in out.parent.glob(f".{out.name}-building-*"):
        shutil.rmtree(left, ignore_errors=True)


@contextmanager
def _publishing(out: Path) -> Iterator[Path]:
    """A folder to build in; it becomes `out` in one step when the block ends well and vanishes when it does not."""
    check_target(out)
    building = Path(tempfile.mkdtemp(dir=out.parent, prefix=f".{out.name}-building-"))
    building.chmod(0o755)
    try:
        yield building
        for file in building.rglob("*"):
            _flush(file)
        if out.exists():
            _exchange(building, out)  # what was there is now under the temporary name; open readers keep their files
        else:
            building.rename(out)
        _flush(out.parent)
    except OSError as error:
        if error.errno != errno.ENOSPC:
            raise
        raise BuildError(
            f"the index cannot be written to {out}: {error.strerror}; make room and run the same command again to go on"
        ) from error
    finally:
        shutil.rmtree(building, ignore_errors=True)


def _exchange(one: Path, other: Path) -> None:
    """Swap two folders. Linux does it in one step; elsewhere there is a moment with neither."""
    here, swap = -100, 2  # AT_FDCWD, RENAME_EXCHANGE
    try:
        renameat2 = ctypes.CDLL(None, use_errno=True).renameat2
        if renameat2(here, os.fsencode(one), here, os.fsencode(other), swap) == 0:
            return
    except (AttributeError, OSError):
        pass
    aside = other.with_name(f".{other.name}-replaced-{os.getpid()}")
    other.rename(aside)
    one.rename(other)
    aside.rename(one)


def _flush(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def _describe(folder: Path) -> dict[str, dict[str, Any]]:
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    return {str(f.relative_to(folder)): {"size": f.stat().st_size, "sha256": sha256_of(f)} for f in files}
