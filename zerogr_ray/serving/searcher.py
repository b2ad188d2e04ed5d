"""What one replica does, without Ray: load the versions, follow the state folder, answer, take changes."""

from __future__ import annotations

import asyncio
import os
import threading
import time
import uuid
from collections.abc import Awaitable, Callable
from concurrent.futures import Future
from functools import partial
from typing import TYPE_CHECKING, Any

from zerogr_ray.decoding.job import Request
from zerogr_ray.errors import IndexRefused, ModelError, ZeroGRError
from zerogr_ray.rows import Hit
from zerogr_ray.s3 import place_of
from zerogr_ray.serving.config import ServiceConfig
from zerogr_ray.serving.decoder import Decoder, Effort, Found, Work
from zerogr_ray.serving.errors import NotFound, TooLarge, Unavailable
from zerogr_ray.serving.journal import Change
from zerogr_ray.serving.state import Beat, State, VersionRef, Versions
from zerogr_ray.serving.version import Version, ref_of

if TYPE_CHECKING:
    from zerogr_ray.decoding.retriever import Retriever

LOOK = 0.5
"""Seconds between two looks at the state folder; the active version is looked up before every round as well."""
RETRY = 30.0
"""Seconds after which an active version that could not be loaded is tried again."""
STUCK = 600.0
"""Seconds of one round after which a replica calls itself unhealthy."""

Observe = Callable[[str, Effort, list[float]], None]


class Searcher:
    """One replica. `start` it, ask it, `close` it."""

    def __init__(
        self,
        cfg: ServiceConfig,
        load: Callable[[VersionRef], Retriever],
        write: Callable[[str, str, str], Awaitable[str]] | None = None,
        observe: Observe = lambda name, effort, queued: None,
    ) -> None:
        """`load` opens a version; `write` makes a docid of (docno, title, text)."""
        self.cfg, self.state, self._load, self._write = cfg, State(cfg.state), load, write
        self.id = uuid.uuid4().hex[:12]
        self.decoder = Decoder(self._current_version, cfg.cache.batch, cfg.waiting, observe)
        self.current: dict[str, Version] = {}
        self.replicas = 1
        self._loaded: dict[str, dict[VersionRef, Version]] = {name: {} for name in cfg.indexes}
        self._refused: dict[str, dict[VersionRef, tuple[str, float]]] = {name: {} for name in cfg.indexes}
        self._closing = threading.Event()
        self._watcher = threading.Thread(target=self._watch, name="watcher", daemon=True)

    def start(self) -> None:
        """Load, warm and serve the active versions. Raises IndexRefused and ModelError."""
        self.decoder.thread.start()
        try:
            for name, path in self.cfg.indexes.items():
                if name not in self.state.versions():
                    self.state.change(name, partial(_unless_known, Versions(ref_of(path), configured=place_of(path))))
                active = self.state.versions()[name].active
                self.current[name] = self._loaded[name][active] = self._opened(name, active)
        except BaseException:
            self.decoder.close()
            raise
        self._beat()
        self._watcher.start()

    def close(self) -> None:
        """Answer what is being decoded, refuse the rest, and say goodbye."""
        self._closing.set()
        if self._watcher.is_alive():
            self._watcher.join()
        self.decoder.close()
        self.state.gone(self.id)

    def named(self, name: str | None) -> str:
        """The name of the index that is meant. Raises NotFound."""
        if name is None:
            return self.cfg.default
        if name not in self.cfg.indexes:
            raise NotFound(f"there is no index {name!r} here; there are {', '.join(self.cfg.indexes)}")
        return name

    async def search(
        self,
        name: str,
        requests: list[Request],
        on_hits: Callable[[list[Hit], dict[str, str], str], None] | None = None,
    ) -> Found:
        """Answer the requests by one version. Raises Overloaded and TooLarge at once, Unavailable after too long."""
        if (size := sum(map(self.current[name].exhausted, requests))) > self.cfg.limits.exhaustive:
            allowed = self.cfg.limits.exhaustive
            raise TooLarge(f"mode exhaustive would score {size} docids, this service allows {allowed}; see top_k")
        work = Work(name, requests, on_hits)
        found: Found = await self._within(self.decoder.submit(work), work)
        return found

    async def add(self, name: str, docno: str, docid: str | None, text: str, title: str) -> str:
        """Let every search that begins from now on find this document; returns its docid."""
        if docid is None:
            if self._write is None:
                raise Unavailable("this service has no model that writes docids; send a docid with the document")
            try:
                docid = await asyncio.wait_for(self._write(docno, title, text), self.cfg.limits.seconds)
            except TimeoutError:
                raise Unavailable("no docid was written in time; try again later, or send one") from None
        written = docid

        def check() -> None:
            self._current_version(name).check_docid(written)

        await self._within(self.decoder.call(check))
        await self._record(name, Change("add", docno, docid, title))
        return docid

    async def delete(self, name: str, docno: str) -> None:
        """Let no search show this document from now on. Raises NotFound."""

        def check() -> None:
            version = self._current_version(name)
            version.catch_up()
            if not version.titles([docno]):
                raise NotFound(f"there is no document {docno!r} in {name}")

        await self._within(self.decoder.call(check))
        await self._record(name, Change("delete", docno))

    def healthy(self) -> None:
        """Raises Unavailable where the decoder has died or is stuck."""
        busy = self.decoder.busy_since
        if not self.decoder.thread.is_alive() or (busy is not None and time.monotonic() - busy > STUCK):
            raise Unavailable("the decoder of this replica does not go on")

    def ready(self) -> None:
        """Raises Unavailable where searches would fail: a journal or a state folder that cannot be read."""
        self.healthy()
        try:
            for name in self.cfg.indexes:
                self.state.versions()
                self.state.journal(name).since(self.current[name].position)
        except (IndexRefused, OSError):
            raise Unavailable("the state folder of this service cannot be read") from None

    async def _record(self, name: str, change: Change) -> None:
        try:
            await asyncio.to_thread(self.state.journal(name).append, [change])
        except OSError:
            raise Unavailable("the journal cannot be written; nothing was changed") from None

    async def _within(self, future: Future[Any], work: Work | None = None) -> Any:
        try:
            return await asyncio.wait_for(asyncio.wrap_future(future), self.cfg.limits.seconds)
        except TimeoutError:
            raise Unavailable(f"not answered within {self.cfg.limits.seconds:g} s; try again later") from None
        except (IndexRefused, OSError):
            raise Unavailable("the state of this index cannot be read; its operator has to look at it") from None
        finally:
            if work is not None:
                work.cancelled = True  # nobody waits for it any more

    def _current_version(self, name: str) -> Version:
        """The version that answers now: the active one if this replica has it, else the one it had."""
        versions = self.state.versions().get(name)
        found = self._loaded[name].get(versions.active) if versions else None
        if found is not None:
            self.current[name] = found
        return self.current[name]

    def _opened(self, name: str, ref: VersionRef) -> Version:
        """Load a version, bring it up to date and let it answer once."""
        version = Version(name, ref, self._load(ref), self.state.journal(name))
        work = Work(name, [Request("warm up", k=1)], version=version)
        self.decoder.submit(work, admit=False).result()
        return version

    def _watch(self) -> None:
        while not self._closing.wait(LOOK):
            try:
                for name in self.cfg.indexes:
                    self._follow(name)
                self._beat()
            except (ZeroGRError, OSError):
                continue  # a damaged state folder is told by `ready`, not by the end of this thread

    def _follow(self, name: str) -> None:
        """Load what the state folder wants, forget what nobody wants."""
        versions = self.state.versions()[name]
        wanted = [ref for ref in (versions.active, versions.candidate) if ref]
        loaded, refused = self._loaded[name], self._refused[name]
        for ref in list(refused):
            if ref not in wanted or (ref == versions.active and time.monotonic() - refused[ref][1] > RETRY):
                del refused[ref]
        for ref in wanted:
            if ref not in loaded and ref not in refused:
                try:
                    loaded[ref] = self._opened(name, ref)
                except (ZeroGRError, OSError, ValueError, RuntimeError, MemoryError, KeyError) as error:
                    known = isinstance(error, (IndexRefused, ModelError))
                    refused[ref] = (str(error) if known else f"{type(error).__name__}: {error}", time.monotonic())
        for ref in [ref for ref in loaded if ref not in wanted and loaded[ref] is not self.current[name]]:
            del loaded[ref]
        self._move(name)

    def _move(self, name: str) -> None:
        """Follow a switch while nobody asks: otherwise an idle replica would keep the old version loaded."""
        self.decoder.call(lambda: self._current_version(name))

    def _beat(self) -> None:
        loaded = {name: sorted(ref.version for ref in refs) for name, refs in self._loaded.items()}
        refused = {name: {ref.version: why for ref, (why, _) in refs.items()} for name, refs in self._refused.items()}
        active = {name: version.ref.version for name, version in self.current.items()}
        self.state.beat(Beat(self.id, os.getpid(), active, loaded, refused))
        self.replicas = max(1, len(self.state.alive()))


def _unless_known(first: Versions, known: Versions | None) -> Versions:
    return known or first
