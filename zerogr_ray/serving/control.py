"""What an operator does to a service: bring in another version of an index, go back, fold the journal into a new one.

    verify the folder ── candidate ── every replica loads it, warms it ── active ── every replica answers from it
                                 └─ one refuses ── the candidate is withdrawn, nothing has changed

Both happen through the state folder. No address, no port and no key are needed, and no request can do it.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from zerogr_ray.errors import IndexRefused, InputError, ZeroGRError
from zerogr_ray.index.bundle import open_index
from zerogr_ray.index.manifest import pinned
from zerogr_ray.models import load_format
from zerogr_ray.s3 import place_of
from zerogr_ray.serving.journal import Mark
from zerogr_ray.serving.state import Beat, State, VersionRef, Versions
from zerogr_ray.serving.version import Version, label_of
from zerogr_ray.store import Folder

if TYPE_CHECKING:
    from zerogr_ray.models import DType

SECONDS = 900.0
"""How long replicas may take to load a version."""


def activate(
    state: State,
    name: str,
    path: str | Path,
    say: Callable[[str], None] = lambda line: None,
    seconds: float = SECONDS,
    folded: Mark | None = None,
    over: VersionRef | None = None,
) -> VersionRef:
    """Let the index in the folder `path` answer as `name`; returns what answers now.

    `folded` says how far the journal is in it already, `over` which version it may replace (default: any).
    Raises IndexRefused where it is damaged, or a replica cannot load it: then the version that answered goes on.
    Raises InputError where the service never had an index of this name, or another version than `over` answers.
    """
    _known(state, name)
    place = pinned(path)
    bundle = open_index(place)
    if (now := load_format(bundle.model).fingerprint) != bundle.manifest["prompt_format"]:
        raise IndexRefused(
            f"{place} was built with another prompt format than its tokenizer gives ({now}); build again"
        )
    ref = VersionRef(place, label_of(bundle.manifest), folded)
    if state.versions()[name].active == ref:
        say(f"active\t{name}\t{ref.version}\t{ref.path}")
        return ref
    say(f"verified\t{name}\t{ref.version}\t{ref.path}")
    state.change(name, lambda known: replace(_only(_there(known), over, ref), candidate=ref))
    try:
        _wait(state, lambda beat: ref.version in beat.loaded.get(name, []), name, ref, seconds)
        state.change(name, lambda known: _switched(_only(_there(known), over, ref), ref))
    except BaseException:
        state.change(name, lambda known: replace(_there(known), candidate=None))
        raise
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
    return activate(state, name, known.previous.path, say, seconds, known.previous.folded)


def compact(
    state: State,
    name: str,
    out: str | Path,
    say: Callable[[str], None] = lambda line: None,
    seconds: float = SECONDS,
    dtype: DType = "auto",
) -> VersionRef:
    """Write the active version and the journal's changes as a new index to `out`, and let it answer.

    For it the journal begins where it was read to: changes that are made meanwhile are applied to it, as to any
    version. The file stays whole, for a version that is built from the documents later has to hear of all of it.
    Raises InputError where there is nothing to fold, `out` is there, or another version was activated meanwhile; else
    as `activate`.
    """
    from zerogr_ray.decoding.retriever import Retriever

    base = _known(state, name).active
    place = place_of(out)
    if Folder(place).exists():
        raise InputError(f"{place} is there already; give a folder that is not there yet")
    retriever = Retriever.load(base.path, dtype=dtype)
    if label_of(retriever.bundle.manifest) != base.version:
        raise IndexRefused(f"{base.path} is not what answers: it was built again in place; bring it in with --activate")
    version = Version(name, base, retriever, state.journal(name))
    began = version.position
    version.catch_up()
    if version.position == began:
        raise InputError(f"no change of {name!r} since {base.path} was written; there is nothing to fold into {place}")
    mark = version.journal.mark(version.position)
    if version.skipped:
        say(f"left out\t{name}\t{version.skipped} additions that its tokenizer cannot write")
    retriever.compact(place)
    say(f"written\t{name}\t{retriever.live.counts['living']} documents\t{place}")
    return activate(state, name, place, say, seconds, mark, over=base)


def follow_settings(
    state: State, indexes: dict[str, str], say: Callable[[str], None] = lambda line: None, seconds: float = SECONDS
) -> None:
    """Activate the folders that the settings name now and did not name before. Raises as `activate`.

    Settings that are as they were decide nothing: what was activated, or rolled back to, since then stays.
    """
    for name, path in indexes.items():
        known, place = state.versions().get(name), place_of(path)
        if known is None or known.configured == place:
            continue  # where there is none yet, the first replica begins with it
        if known.configured is not None:
            activate(state, name, place, say, seconds)
        state.change(name, partial(_configured, place))


def _configured(place: str, known: Versions | None) -> Versions:
    return replace(_there(known), configured=place)


def _switched(known: Versions, ref: VersionRef) -> Versions:
    return replace(known, active=ref, previous=known.active, candidate=None)


def _known(state: State, name: str) -> Versions:
    """The versions of an index that the service has had."""
    versions = state.versions()
    if name not in versions:
        known = ", ".join(versions) or "none yet"
        raise InputError(f"{state.path} knows no index {name!r} (it has: {known}); start it first: zerogr serve")
    return versions[name]


def _only(known: Versions, over: VersionRef | None, ref: VersionRef) -> Versions:
    if over is not None and known.active != over:
        raise InputError(f"{known.active.path} was activated meanwhile; {ref.path} is written and answers nothing")
    return known


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
