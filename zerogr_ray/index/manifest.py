"""What vouches for an index: its manifest, on a disk or under s3://, and the copy of it that this machine has."""

from __future__ import annotations

import hashlib
import json
import shutil
from pathlib import Path
from typing import Any

from zerogr_ray.cache import cache_folder, evict, keep, locked, scratch
from zerogr_ray.errors import IndexRefused
from zerogr_ray.published import current
from zerogr_ray.s3 import is_url, place_of
from zerogr_ray.store import Folder, sha256_of

FORMAT = 4
MANIFEST = "manifest.json"


def pinned(path: str | Path) -> str:
    """What names this index and no later one: the folder; under s3://, where versions stay, that of its version."""
    return current(place_of(path)) if is_url(path) else place_of(path)


def read_manifest(path: str | Path) -> dict[str, Any]:
    """The manifest of the index at `path`. Raises IndexRefused, and InputError where a store refuses."""
    place = pinned(path)
    try:
        return parse_manifest(Folder(place).read(MANIFEST), place)
    except FileNotFoundError:
        what = "is not an index (it has no manifest.json)" if Folder(place).exists() else "does not exist"
        raise IndexRefused(f"{path} {what}; build one: zerogr index CORPUS {path}") from None
    except NotADirectoryError:
        raise IndexRefused(f"{path} is a file, not an index folder; build one: zerogr index CORPUS OUT") from None


def parse_manifest(text: bytes, path: str | Path) -> dict[str, Any]:
    """The manifest in the bytes of a manifest.json. Raises IndexRefused."""
    try:
        manifest = json.loads(text.decode("utf-8"))
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
    if manifest.get("sha256") != digest(manifest):
        raise IndexRefused(
            f"{path}/manifest.json was changed after the index was written; build or copy the index again"
        )
    return manifest


def refuse_changed(path: Path, manifest: dict[str, Any], shown: str | Path) -> None:
    """Raises IndexRefused naming the first file in `path` that is not as it was written."""
    for name, expected in manifest["files"].items():
        file = path / name
        if not file.is_file():
            raise IndexRefused(f"{shown}/{name} is missing; build the index again or copy it whole")
        if (size := file.stat().st_size) != expected["size"]:
            raise IndexRefused(
                f"{shown}/{name} has {size} bytes instead of {expected['size']}; build or copy the index again"
            )
        if sha256_of(file) != expected["sha256"]:
            raise IndexRefused(f"{shown}/{name} was changed after the index was written; build or copy the index again")


def fetch_index(url: str) -> Path:
    """The copy of an index under s3:// in this machine's cache, made and verified where it is not there yet.

    The files lie under the manifest's digest, each comes whole under its name, manifest.json last: an interrupted copy
    goes on with what is missing, and of several processes that want it one copies while the others wait.
    Raises IndexRefused, and InputError where the store refuses.
    """
    place = pinned(url)
    manifest = read_manifest(place)
    target = cache_folder() / "indexes" / str(manifest["sha256"])[:32]
    keep(target)
    if _missing(target, manifest):
        try:
            with locked(target.with_name(f".{target.name}.lock")):
                _fetch(Folder(place), manifest, target)
        except FileNotFoundError as error:
            if pinned(url) != place:  # the version went while it was copied: another has been published
                return fetch_index(url)
            raise IndexRefused(f"{error.filename} is missing; build the index again or copy it whole") from None
        evict()
    return target


def _missing(copy: Path, manifest: dict[str, Any]) -> list[str]:
    return [name for name in [*manifest["files"], MANIFEST] if not (copy / name).is_file()]


def _fetch(folder: Folder, manifest: dict[str, Any], target: Path) -> None:
    with scratch(str(target)) as building:
        for name in _missing(target, manifest):
            file = building / name
            folder.fetch(name, file)
            if name != MANIFEST:
                refuse_changed(building, {"files": {name: manifest["files"][name]}}, str(folder))
            (target / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.move(file, target / name)


def digest(manifest: dict[str, Any]) -> str:
    """sha256 of what the manifest says, its own digest left out."""
    said = {name: value for name, value in manifest.items() if name != "sha256"}
    return hashlib.sha256(json.dumps(said, sort_keys=True).encode()).hexdigest()
