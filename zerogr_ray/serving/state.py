"""The folder that a service and its operator share: which version of each index is active, who is alive, the journals.

    versions.json             name -> active, previous and candidate version
    journals/NAME.jsonl       changes since the index was built
    replicas/ID.json          written by each replica every second
    logs/                     one line of JSON per request

Replicas look at `versions.json` before every batch, so a switch needs no message to arrive anywhere: all batches that
begin after it was written are answered by the new version.
"""

from __future__ import annotations

import fcntl
import json
import os
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from zerogr_ray.errors import IndexRefused
from zerogr_ray.serving.journal import Journal, Mark
from zerogr_ray.store import Folder, local_path

ALIVE = 10.0
"""Seconds after its last sign of life in which a replica counts as alive."""


@dataclass(frozen=True, slots=True)
class VersionRef:
    """A version of an index: its folder, and the first digits of what its manifest's digest was."""

    path: str
    version: str
    folded: Mark | None = field(default=None, compare=False)
    """How far the journal is in it already; None for a version that was built from documents."""


@dataclass(frozen=True, slots=True)
class Versions:
    """The versions of one index that matter."""

    active: VersionRef
    previous: VersionRef | None = None
    candidate: VersionRef | None = None
    """What replicas load and warm while they go on answering from the active one."""
    configured: str | None = None
    """Folder that the service's settings named when they last decided which version is active."""


@dataclass(frozen=True)
class Beat:
    """What a replica says of itself."""

    replica: str
    pid: int
    active: dict[str, str] = field(default_factory=dict)
    """Index -> version that answers."""
    loaded: dict[str, list[str]] = field(default_factory=dict)
    """Index -> versions that could answer."""
    refused: dict[str, dict[str, str]] = field(default_factory=dict)
    """Index -> version -> why it could not be loaded."""


class State:
    """The state folder. Plain files: everything here works while no service runs."""

    def __init__(self, path: str | Path) -> None:
        self.path = local_path(path)
        self.folder = Folder(self.path)
        self._seen: tuple[tuple[int, int, int] | None, dict[str, Versions]] = (None, {})

    def journal(self, name: str) -> Journal:
        """The journal of the index called `name`."""
        return Journal(self.path / "journals" / f"{name}.jsonl")

    def versions(self) -> dict[str, Versions]:
        """Name -> versions; read again only when the file is another one. Raises IndexRefused for a damaged file."""
        file = self.path / "versions.json"
        try:
            with file.open("rb") as stream:
                about = os.fstat(stream.fileno())
                mark = (about.st_ino, about.st_mtime_ns, about.st_size)
                if mark != self._seen[0]:
                    self._seen = mark, _versions(json.load(stream))
        except FileNotFoundError:
            self._seen = None, {}
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise IndexRefused(f"{file} is damaged ({error}); remove it to begin with the configured indexes") from None
        return self._seen[1]

    def change(self, name: str, how: Callable[[Versions | None], Versions]) -> Versions:
        """Replace the versions of `name` by what `how` makes of them, in one step."""
        self.path.mkdir(parents=True, exist_ok=True)
        lock = os.open(self.path / ".lock", os.O_RDWR | os.O_CREAT, 0o600)
        try:
            fcntl.flock(lock, fcntl.LOCK_EX)
            known = dict(self.versions())
            known[name] = how(known.get(name))
            self.folder.write_json("versions.json", {each: asdict(versions) for each, versions in known.items()})
            return known[name]
        finally:
            os.close(lock)

    def beat(self, beat: Beat) -> None:
        """Say that a replica is alive."""
        file = self.path / "replicas" / f"{beat.replica}.json"
        file.parent.mkdir(parents=True, exist_ok=True)
        building = file.with_suffix(".writing")
        building.write_text(json.dumps(asdict(beat)))
        building.replace(file)

    def gone(self, replica: str) -> None:
        """Say that a replica has ended."""
        (self.path / "replicas" / f"{replica}.json").unlink(missing_ok=True)

    def alive(self) -> list[Beat]:
        """The replicas that have given a sign of life; traces of those long dead are removed."""
        found = []
        for file in sorted((self.path / "replicas").glob("*.json")):
            try:
                age = time.time() - file.stat().st_mtime
                if age > 60 * ALIVE:
                    file.unlink(missing_ok=True)
                elif age < ALIVE:
                    found.append(Beat(**json.loads(file.read_text())))
            except (FileNotFoundError, ValueError, TypeError):
                continue  # it ended just now
        return found


def _versions(said: dict[str, dict[str, Any]]) -> dict[str, Versions]:
    def ref(said: dict[str, Any] | None) -> VersionRef | None:
        return known(said) if said else None

    def known(said: dict[str, Any]) -> VersionRef:
        folded = said.get("folded")
        return VersionRef(said["path"], said["version"], Mark(**folded) if folded else None)

    return {
        name: Versions(
            known(roles["active"]), ref(roles.get("previous")), ref(roles.get("candidate")), roles.get("configured")
        )
        for name, roles in said.items()
    }
