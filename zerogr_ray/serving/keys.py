"""API keys: kept hashed, compared in constant time, each with a name and rights; and how often each may ask.

A key is 256 random bits, so one round of sha256 keeps it: there is nothing to guess.
"""

from __future__ import annotations

import hashlib
import hmac
import json
import os
import secrets
import tempfile
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, get_args

from zerogr_ray.errors import InputError

Right = Literal["search", "change"]

PREFIX = "zgr_"


@dataclass(frozen=True, slots=True)
class Key:
    """One key: what it is called, the sha256 of its text, what it may do."""

    name: str
    sha256: str
    rights: tuple[Right, ...]


ANYBODY = Key("anybody", "", ("search", "change"))
"""Who asks a service that has no keys."""


class Keys:
    """The keys of a service. Without any, everybody is ANYBODY."""

    def __init__(self, keys: Sequence[Key]) -> None:
        self.keys = tuple(keys)

    def find(self, presented: str | None) -> Key | None:
        """The key that was presented; None where there is no such key. Takes as long whichever it is."""
        if not self.keys:
            return ANYBODY
        digest = hashlib.sha256((presented or "").encode("utf-8", "surrogatepass")).hexdigest()
        found = None
        for key in self.keys:
            if hmac.compare_digest(key.sha256, digest):
                found = key
        return found


def read_keys(file: Path) -> list[Key]:
    """The keys in a file. Raises InputError naming what is wrong with it."""
    try:
        said = json.loads(file.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise InputError(f"there is no key file {file}; make one: zerogr key NAME --file {file}") from None
    except (ValueError, OSError) as error:
        raise InputError(f"{file} is no key file: {error}") from None
    keys = []
    for number, row in enumerate(said if isinstance(said, list) else [None], 1):
        if (
            not isinstance(row, dict)
            or set(row) != {"name", "sha256", "rights"}
            or not isinstance(row["sha256"], str)
            or len(row["sha256"]) != 64
            or not isinstance(row["rights"], list)
            or not set(row["rights"]) <= set(get_args(Right))
        ):
            raise InputError(f"{file}: entry {number} is not a name, a sha256 and rights; make it with zerogr key")
        keys.append(Key(str(row["name"]), row["sha256"], tuple(row["rights"])))
    if not keys:
        raise InputError(f"{file} holds no key; make one: zerogr key NAME --file {file}")
    return keys


def new_key(file: Path, name: str, rights: Sequence[str]) -> str:
    """Add a key to the file, which is made where there is none, and return its text: it is shown this once.

    Raises InputError for a name that is there, and for unknown rights.
    """
    known: tuple[Right, ...] = get_args(Right)
    if unknown := sorted(set(rights) - set(known)):
        raise InputError(f"there is no right {unknown[0]!r}; choose among {', '.join(known)}")
    keys = read_keys(file) if file.exists() else []
    if name in (key.name for key in keys):
        raise InputError(f"{file} has a key {name!r} already; take another name, or remove its entry from the file")
    text = PREFIX + secrets.token_urlsafe(32)
    granted = tuple(right for right in known if right in rights)
    keys.append(Key(name, hashlib.sha256(text.encode()).hexdigest(), granted))
    rows = [{"name": key.name, "sha256": key.sha256, "rights": list(key.rights)} for key in keys]
    file.parent.mkdir(parents=True, exist_ok=True)
    handle, building = tempfile.mkstemp(dir=file.parent, prefix=f".{file.name}-")  # readable by the owner alone
    with os.fdopen(handle, "w", encoding="utf-8") as stream:
        stream.write(json.dumps(rows, indent=1) + "\n")
    os.replace(building, file)
    return text


class Rates:
    """A bucket of tokens per key: `burst` at most, refilled at `rate` per second; a request takes one."""

    def __init__(self, rate: float, burst: int, clock: Callable[[], float] = time.monotonic) -> None:
        self.rate, self.burst, self._clock = rate, burst, clock
        self._buckets: dict[str, tuple[float, float]] = {}  # key -> (tokens, when)
        self._lock = threading.Lock()

    def take(self, name: str, sharers: int = 1) -> float:
        """Seconds until the key called `name` may ask again; 0 if it may now. `sharers` replicas share its rate."""
        if not self.rate:
            return 0.0
        rate, now = self.rate / max(1, sharers), self._clock()
        burst = max(1.0, self.burst / max(1, sharers))
        with self._lock:
            tokens, then = self._buckets.get(name, (burst, now))
            tokens = min(burst, tokens + (now - then) * rate)
            self._buckets[name] = (tokens - 1 if tokens >= 1 else tokens), now
        return 0.0 if tokens >= 1 else (1 - tokens) / rate
