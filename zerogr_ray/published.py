"""Finished folders on an object store: an index, an adapter, a model. A reader sees the old one or the new one, whole.

    URL/versions/NAME/...    every version's files, exactly as they would lie in a folder on a disk
    URL/current.json         which version counts, its files, and the version before, which stays readable; written last

The files go up under a name that nobody else has, then current.json is replaced if it is still the one that was there
before: of two that publish at the same time one comes too late, and takes its own files away again.
"""

from __future__ import annotations

import secrets
from dataclasses import dataclass
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

from zerogr_ray.errors import BuildError, InputError
from zerogr_ray.store import Folder, as_json

POINTER = "current.json"
VERSIONS = "versions"

LEFT_FOR = timedelta(days=1)
"""How long nothing was written to a version that nobody names before it is taken for what a killed run has left."""


@dataclass(frozen=True)
class Published:
    """What URL/current.json says."""

    url: str
    """Of the version's own folder."""
    key: str
    """What it was made from: two versions of one key are the same."""
    files: dict[str, str]
    """Its files, with size and etag as they were when it was published."""

    def whole(self) -> bool:
        """Whether every file is there as it was published."""
        return Folder(self.url).files() == self.files


def find_published(url: str) -> Published | None:
    """What counts at `url` now; None where nothing was published. Raises InputError where the store refuses."""
    said = _pointer(Folder(url))
    return Published(f"{url}/{VERSIONS}/{said['version']}", said["key"], said["files"]) if said else None


def current(url: str) -> str:
    """URL of the folder that counts: of the current version, or `url` itself, where a folder was copied by hand."""
    found = find_published(url)
    return found.url if found else url


def refuse_other(url: str, mark: str) -> None:
    """Raises BuildError where something lies that was neither published nor has the file `mark`."""
    folder = Folder(url)
    if any(folder.exists(name) for name in (POINTER, mark)):
        return
    # By what is listed: some stores go on showing a folder for a while after its last file was deleted.
    if any(not name.startswith(f"{VERSIONS}/") for name in folder.files()):
        raise BuildError(f"{url} exists and is not what would be written there; give another path or remove it")


def publish_folder(url: str, folder: Path, key: str, last: str) -> Published:
    """Publish the files of `folder` at `url`; `key` says what they were made from, `last` is the file that goes last.

    Where another run was faster with the same key, that is returned. Raises BuildError where it was with another.
    """
    place = Folder(url)
    seen = place.stamp(POINTER)  # before the upload: whoever publishes during it is noticed
    before = _pointer(place)
    name = f"{key}-{secrets.token_hex(4)}"
    ours = place / f"{VERSIONS}/{name}"
    try:
        ours.upload(folder, last)
        files = ours.files()
        said = {"version": name, "key": key, "before": before["version"] if before else None, "files": files}
        won = place.swap(POINTER, as_json(said), seen)
    except BaseException:
        if (_pointer(place) or {}).get("version") != name:  # the answer alone may have been lost
            ours.delete()
        raise
    if not won:
        ours.delete()
        winner = find_published(url)
        if winner is None or winner.key != key:
            raise BuildError(
                f"another run published {url} while this one did, and that stays; to replace it, "
                "run the same command again"
            )
        return winner
    if before and before["before"]:
        (place / f"{VERSIONS}/{before['before']}").delete()  # two are kept: a reader may be on its way with the older
    for left in _left_behind(place / VERSIONS, name):
        if not before or left != before["version"]:
            (place / f"{VERSIONS}/{left}").delete()
    return Published(str(ours), key, files)


def _left_behind(versions: Folder, ours: str) -> list[str]:
    """Other versions to which nothing was written for long when ours was; whoever is still uploading writes."""
    newest: dict[str, datetime] = {}
    for name, at in versions.written().items():
        version = name.partition("/")[0]
        newest[version] = max(at, newest.get(version, at))
    return [version for version, at in newest.items() if newest[ours] - at > LEFT_FOR and version != ours]


def _pointer(folder: Folder) -> dict[str, Any] | None:
    """What current.json says. Raises InputError where it is damaged."""
    try:
        said = folder.read_json(POINTER)
        if said is not None and not all(isinstance(said[name], str) for name in ("version", "key")):
            raise ValueError("it names no version")
    except (ValueError, TypeError, KeyError) as error:
        raise InputError(
            f"{folder.url_of(POINTER)} is damaged ({error}); publish there again after removing it"
        ) from None
    return said if said is None else {"before": None, "files": {}, **said}
