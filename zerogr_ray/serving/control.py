"""What an operator does to a running service: bring in another version of an index, go back to the one before.

    verify the folder ── candidate ── every replica loads it, warms it ── active ── every replica answers from it
                                 └─ one refuses ── the candidate is withdrawn, nothing has changed

Both happen through the state folder. No address, no port and no key are needed, and no request can do it.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

from zerogr_ray.errors import IndexRefused, InputError, ZeroGRError
from zerogr_ray.index.bundle import open_index
from zerogr_ray.index.manifest import pinned
from zerogr_ray.models import load_format
from zerogr_ray.serving.state import Beat, State, VersionRef, Versions
from zerogr_ray.serving.version import label_of

SECONDS = 900.0
"""How long replicas may take to load a version."""


def activate(
    state: State, name: str, path: str | Path, say: Callable[[str], None] = lambda line: None, seconds: float = SECONDS
) -> VersionRef:
    """Let the index in the folder `path` answer as `name`; returns what answers now.

    Raises IndexRefused where it is damaged, or a replica cannot load it: then the version that answered goes on.
    Raises InputError where the service never had an index of this name.
    """
    if name not in state.versions():
        known = ", ".join(state.versions()) or "none yet"
        raise InputError(f"{state.path} knows no index {name!r} (it has: {known}); start it first: zerogr serve")
    place = pinned(path)
    bundle = open_index(place)
    if (now := load_format(bundle.model).fingerprint) != bundle.manifest["prompt_format"]:
        raise IndexRefused(
            f"{place} was built with another prompt format than its tokenizer gives ({now}); build again"
        )
    ref = VersionRef(place, label_of(bundle.manifest))
    if state.versions()[name].active == ref:
        say(f"active\t{name}\t{ref.version}\t{ref.path}")
        return ref
    say(f"verified\t{name}\t{ref.version}\t{ref.path}")
    state.change(name, lambda known: replace(_there(known), candidate=ref))
    try:
        _wait(state, lambda beat: ref.version in beat.loaded.get(name, []), name, ref, seconds)
    except BaseException:
        state.change(name, lambda known: replace(_there(known), candidate=None))
        raise
    state.change(name, lambda known: Versions(ref, previous=_there(known).active))
    if state.alive():
        say(f"switched\t{name}\t{ref.version}\t{ref.path}")
    _wait(state, lambda beat: beat.active.get(name) == ref.version, name, ref, seconds)
    say(f"active\t{name}\t{ref.version}\t{ref.path}")
    return ref


def roll_back(
    state: State, name: str, say: Callable[[str], None] = lambda line: None, seconds: float = SECONDS
) -> VersionRef:
    """Let the version that answered before answer again. Raises InputError where there was none, else as activate."""
    known = state.versions().get(name)
    if known is None or known.previous is None:
        raise InputError(f"{state.path} has no version before the active one of {name!r}; nothing was changed")
    return activate(state, name, known.previous.path, say, seconds)


def _there(known: Versions | None) -> Versions:
    if known is None:
        raise InputError("the state folder was removed meanwhile; start the service again")
    return known


def _wait(state: State, done: Callable[[Beat], bool], name: str, ref: VersionRef, seconds: float) -> None:
    """Until `done` of every replica that is alive. Raises IndexRefused where one cannot load the version."""
    until = time.monotonic() + seconds
    while True:
        alive = state.alive()
        if all(map(done, alive)):
            return
        for beat in alive:
            if why := beat.refused.get(name, {}).get(ref.version):
                raise IndexRefused(f"{ref.path} cannot be loaded by a replica: {why}; the version before goes on")
        if time.monotonic() > until:
            raise ZeroGRError(f"{ref.path} was not loaded by every replica within {seconds:g} s; see {state.path}/logs")
        time.sleep(0.1)
