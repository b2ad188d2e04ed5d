"""The index folder: what serving loads. Flat arrays, an Arrow table, safetensors, and a manifest that vouches for them.

    manifest.json      counts, fingerprints, every file's size and sha256
    trie/*.npy         see trie.py
    documents.arrow    docno, docid, tokens, title in the trie's document order
    model/             safetensors, tokenizer, chat template

It is built under a temporary name and appears in one step, so there is never half an index; nothing in it is code.
"""

from __future__ import annotations

import ctypes
import hashlib
import json
import os
import shutil
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from zerogr_ray.errors import BuildError, IndexRefused
from zerogr_ray.index.trie import ARRAYS, Trie

FORMAT = 1

DOCUMENTS = pa.schema(
    [("docno", pa.string()), ("docid", pa.string()), ("tokens", pa.list_(pa.uint32())), ("title", pa.string())]
)


@dataclass(frozen=True)
class Bundle:
    """An open, verified index. Arrays and documents are memory-mapped, read-only."""

    path: Path
    manifest: dict[str, Any]
    trie: Trie
    documents: pa.Table

    @property
    def model(self) -> Path:
        """Folder of the retriever's LM."""
        return self.path / "model"


def write_index(
    out: Path,
    docnos: Sequence[str],
    docids: Sequence[str],
    tokens: Sequence[Sequence[int]],
    titles: Sequence[str],
    end: int,
    model: Path,
    facts: dict[str, Any],
) -> dict[str, Any]:
    """Build the index of these documents and publish it as `out`, replacing an index that is there.

    `tokens[i]` are the tokens of docids[i], `end` the end-of-turn token, `facts` go into the manifest.
    Returns the manifest.
    """
    with _publishing(out) as folder:
        trie, order = Trie.build(tokens, end)
        (folder / "trie").mkdir()
        for name, array in trie.arrays().items():
            np.save(folder / "trie" / f"{name}.npy", array, allow_pickle=False)
        columns: list[list[Any]] = [[column[i] for i in order] for column in (docnos, docids, tokens, titles)]
        table = pa.table(columns, schema=DOCUMENTS)
        with pa.OSFile(str(folder / "documents.arrow"), "wb") as sink, pa.ipc.new_file(sink, DOCUMENTS) as writer:
            writer.write_table(table, max_chunksize=1 << 16)
        shutil.copytree(model, folder / "model")
        counts = {"documents": trie.documents, "docids": trie.leaves, "nodes": trie.nodes}
        manifest = {"format": FORMAT, **counts, **facts, "files": _describe(folder)}
        manifest["sha256"] = _digest(manifest)
        (folder / "manifest.json").write_text(
            json.dumps(manifest, indent=1, ensure_ascii=False) + "\n", encoding="utf-8"
        )
    return manifest


def read_manifest(path: Path) -> dict[str, Any]:
    """The manifest of the index at `path`. Raises IndexRefused."""
    try:
        manifest = json.loads((path / "manifest.json").read_text(encoding="utf-8"))
    except FileNotFoundError:
        what = "is not an index (it has no manifest.json)" if path.exists() else "does not exist"
        raise IndexRefused(f"{path} {what}; build one: zerogr index CORPUS {path}") from None
    except NotADirectoryError:
        raise IndexRefused(f"{path} is a file, not an index folder; build one: zerogr index CORPUS OUT") from None
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise IndexRefused(f"{path}/manifest.json is damaged ({error}); build the index again") from None
    if (
        not isinstance(manifest, dict)
        or manifest.get("format") != FORMAT
        or not isinstance(manifest.get("files"), dict)
    ):
        found = manifest.get("format") if isinstance(manifest, dict) else None
        raise IndexRefused(
            f"{path} has index format {found}, this version reads format {FORMAT}; build the index again"
        )
    if manifest.get("sha256") != _digest(manifest):
        raise IndexRefused(
            f"{path}/manifest.json was changed after the index was written; build or copy the index again"
        )
    return manifest


def open_index(path: Path) -> Bundle:
    """Verify and open the index at `path`. Raises IndexRefused naming the first file that is not as it was written."""
    manifest = read_manifest(path)
    for name, expected in manifest["files"].items():
        file = path / name
        if not file.is_file():
            raise IndexRefused(f"{file} is missing; build the index again or copy it whole")
        if (size := file.stat().st_size) != expected["size"]:
            raise IndexRefused(f"{file} has {size} bytes instead of {expected['size']}; build or copy the index again")
        if _sha256(file) != expected["sha256"]:
            raise IndexRefused(f"{file} was changed after the index was written; build or copy the index again")
    present = {str(file.relative_to(path)) for file in path.rglob("*") if file.is_file()} - {"manifest.json"}
    if extra := sorted(present - set(manifest["files"])):
        raise IndexRefused(f"{path / extra[0]} does not belong to the index; remove it")
    needed = ["documents.arrow", *(f"trie/{name}.npy" for name in ARRAYS)]
    if lost := [name for name in needed if name not in manifest["files"]]:
        raise IndexRefused(f"{path}/manifest.json does not list {lost[0]}; build the index again")
    arrays = {name: np.load(path / "trie" / f"{name}.npy", mmap_mode="r", allow_pickle=False) for name in ARRAYS}
    documents = pa.ipc.open_file(pa.memory_map(str(path / "documents.arrow"))).read_all()
    trie = Trie(**arrays)
    if documents.num_rows != trie.documents:
        raise IndexRefused(
            f"{path} holds {documents.num_rows} documents but {trie.documents} in its trie; build it again"
        )
    return Bundle(path, manifest, trie, documents)


def check_target(out: Path) -> None:
    """Refuse a path where something else than an index is; remove what a killed build left beside it."""
    if out.exists() and not (out / "manifest.json").exists() and any(out.iterdir() if out.is_dir() else [out]):
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
    return {str(f.relative_to(folder)): {"size": f.stat().st_size, "sha256": _sha256(f)} for f in files}


def _digest(manifest: dict[str, Any]) -> str:
    """sha256 of what the manifest says, its own digest left out."""
    said = {name: value for name, value in manifest.items() if name != "sha256"}
    return hashlib.sha256(json.dumps(said, sort_keys=True).encode()).hexdigest()


def _sha256(file: Path) -> str:
    with file.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()
