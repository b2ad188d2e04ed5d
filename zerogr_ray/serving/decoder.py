"""Requests of many callers, decoded in batches by one thread.

The thread takes what waits, up to a batch, and runs it; what arrives meanwhile is the next batch. So an idle replica
begins at once, and a busy one runs full batches. A request belongs to one batch, or to several of one round where it
has many queries: it is answered by one version of one index.

Deletions are looked up before a round and again before its hits leave: a search that begins after a deletion was
answered does not find the document, and one that was under way does not show it.
"""

from __future__ import annotations

import gc
import math
import threading
import time
from collections import deque
from collections.abc import Callable
from concurrent.futures import Future
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, TypeVar

from zerogr_ray.decoding.job import Job, Prompt, Request
from zerogr_ray.decoding.retriever import steps
from zerogr_ray.errors import InputError, ZeroGRError
from zerogr_ray.rows import Hit
from zerogr_ray.serving.errors import Overloaded, TooLarge, Unavailable

if TYPE_CHECKING:
    from zerogr_ray.decoding.forward import TreeForward
    from zerogr_ray.serving.version import Version

T = TypeVar("T")


CALLS = 64
"""Changes that may wait for the thread."""


@dataclass
class Effort:
    """What one round cost, in seconds and counts; `queue` is the request's own, the rest is of the whole round."""

    queue: float = 0.0
    prompt: float = 0.0
    waves: float = 0.0
    rerank: float = 0.0
    forwards: int = 0
    tokens: int = 0
    queries: int = 0
    cache_share: float = 0.0
    """Of the cached tokens allowed to a batch, the most that were in use."""


@dataclass(frozen=True)
class Found:
    """Answers to the queries of one request, all by one version."""

    version: str
    hits: list[list[Hit]]
    titles: dict[str, str]
    effort: Effort


@dataclass(eq=False)
class Work:
    """A request in the queue."""

    name: str
    requests: list[Request]
    on_hits: Callable[[list[Hit], dict[str, str], str], None] | None = None
    """Told the next hits of a single query as soon as they are certain, with their titles and the version."""
    version: Version | None = None
    """Asked instead of the active version."""
    future: Future[Found] = field(default_factory=Future)
    arrived: float = field(default_factory=time.monotonic)
    given: int = 0
    cancelled: bool = False


class Decoder:
    """The one thread that runs models in this process. Start it, submit to it, close it."""

    def __init__(
        self,
        current: Callable[[str], Version],
        batch: int,
        waiting: int,
        observe: Callable[[str, Effort, list[float]], None] = lambda name, effort, queued: None,
    ) -> None:
        """`current` gives the version of an index that answers now; `observe` is told of every round.

        `batch` queries are decoded together, `waiting` more may wait.
        """
        self._current, self.batch, self.limit, self._observe = current, batch, waiting, observe
        self._works: deque[Work] = deque()
        self._calls: deque[tuple[Callable[[], Any], Future[Any]]] = deque()
        self._wake = threading.Condition()
        self._open = True
        self._round_seconds = 1.0
        self.busy_since: float | None = None
        """When the round that runs now began (monotonic); None between rounds."""
        self.thread = threading.Thread(target=self._loop, name="decoder", daemon=True)

    @property
    def waiting(self) -> int:
        """Queries that wait."""
        with self._wake:
            return sum(len(work.requests) for work in self._works)

    def submit(self, work: Work, admit: bool = True) -> Future[Found]:
        """Queue a request. Raises Overloaded where more would wait than may (unless not `admit`)."""
        with self._wake:
            if not self._open:
                raise Unavailable("this replica is shutting down; send the request again")
            waiting = sum(len(other.requests) for other in self._works)
            # A request of many queries is let in where nothing waits: it could never come in otherwise.
            if admit and waiting and waiting + len(work.requests) > self.limit:
                rounds = math.ceil((waiting + len(work.requests)) / self.batch)
                after = min(60.0, max(1.0, self._round_seconds * rounds))
                raise Overloaded("more searches wait than this service lets wait; try again later", after)
            self._works.append(work)
            self._wake.notify()
        return work.future

    def call(self, function: Callable[[], T]) -> Future[T]:
        """Run `function` in the thread, before the next round. Raises Overloaded."""
        future: Future[T] = Future()
        with self._wake:
            if not self._open:
                raise Unavailable("this replica is shutting down; send the request again")
            if len(self._calls) >= CALLS:
                raise Overloaded("more changes wait than this service lets wait; try again later", 1.0)
            self._calls.append((function, future))
            self._wake.notify()
        return future

    def close(self) -> None:
        """Let the round that runs end, refuse what waits, end the thread."""
        with self._wake:
            self._open = False
            self._wake.notify()
        if self.thread.is_alive():
            self.thread.join()

    def _loop(self) -> None:
        while True:
            with self._wake:
                self._wake.wait_for(lambda: self._works or self._calls or not self._open)
                if not self._open:
                    left: list[Future[Any]] = [work.future for work in self._works]
                    left += [future for _, future in self._calls]
                    for future in left:
                        if future.set_running_or_notify_cancel():
                            future.set_exception(Unavailable("this replica is shutting down; send the request again"))
                    return
                calls, self._calls = self._calls, deque()
                works = self._next_round()
            for function, pending in calls:
                if pending.set_running_or_notify_cancel():
                    _settle(pending, function)
            if works:
                self.busy_since = started = time.monotonic()
                self._round(works)
                self.busy_since = None
                self._round_seconds = 0.7 * self._round_seconds + 0.3 * (time.monotonic() - started)

    def _next_round(self) -> list[Work]:
        """The works of the next round: the first, and what is for the same version, as far as a batch holds them."""
        works: list[Work] = []
        left: deque[Work] = deque()
        size = 0
        for work in self._works:
            first = works[0] if works else work
            alike = (work.name, work.version) == (first.name, first.version)
            if works and (not alike or size + len(work.requests) > self.batch):
                left.append(work)
            elif work.future.set_running_or_notify_cancel():  # else nobody waits for it any more
                works.append(work)
                size += len(work.requests)
        self._works = left
        return works

    def _round(self, works: list[Work]) -> None:
        """Decode the works and settle their futures, whatever happens."""
        try:
            self._decode(works)
        except Exception as error:
            if len(works) > 1:  # one of them, or all of them together: each on its own
                for work in works:
                    if not work.future.done():
                        self._round([work])
            elif not works[0].future.done():
                works[0].future.set_exception(_told(error))
            if _out_of_memory(error):
                _give_back()

    def _decode(self, works: list[Work]) -> None:
        started = time.monotonic()
        version = works[0].version or self._current(works[0].name)
        version.catch_up()
        jobs: list[tuple[Work, list[Job]]] = []
        for work in works:
            try:
                made = [version.retriever.job(request) for request in work.requests]
                jobs.append((work, made))
            except ZeroGRError as error:
                said = str(error).replace(str(version.retriever.bundle.path), version.name)
                work.future.set_exception(InputError(said) if isinstance(error, InputError) else error)
        effort = Effort(queries=sum(len(made) for _, made in jobs))
        every = [(job, work, version.retriever.prompt(job)) for work, made in jobs for job in made]
        every.sort(key=lambda each: len(each[2][0]))  # queries of like length share a batch
        for start in range(0, len(every), self.batch):
            self._run(version, every[start : start + self.batch], effort)
        version.catch_up()
        jobs = [(work, made) for work, made in jobs if not work.cancelled]  # given up meanwhile, and maybe not ended
        hits = {id(job): job.hits() for _, made in jobs for job in made}
        titles = version.titles(list({hit.docno for found in hits.values() for hit in found}))
        for work, made in jobs:
            found = [[hit for hit in hits[id(job)] if hit.docno in titles] for job in made]
            if work.on_hits:
                self._tell(work, found[0], titles, version.label)
            own = Effort(**{**vars(effort), "queue": started - work.arrived})
            if not work.future.done():
                work.future.set_result(Found(version.label, [_ranked(some) for some in found], titles, own))
        if jobs:
            self._observe(version.name, effort, [started - work.arrived for work, _ in jobs])

    def _run(self, version: Version, batch: list[tuple[Job, Work, Prompt]], effort: Effort) -> None:
        """Decode one batch, telling streams what is certain after each wave."""
        forward: TreeForward = version.retriever.forward()
        jobs = [job for job, _, _ in batch]
        waves = steps(forward, jobs, [prompt for _, _, prompt in batch])
        phase, ended = "prompt", object()
        while True:
            began = time.monotonic()
            over = next(waves, ended) is ended
            setattr(effort, phase, getattr(effort, phase) + time.monotonic() - began)
            share = forward.cached_tokens / version.retriever.cache.tokens_per_batch
            effort.cache_share = max(effort.cache_share, share)
            if over or all(work.cancelled for _, work, _ in batch):
                break
            for job, work, _ in batch:
                if work.on_hits and not work.cancelled and len(certain := job.hits()) > work.given:
                    version.catch_up()
                    self._tell(work, certain, version.titles([hit.docno for hit in certain]), version.label)
            scoring = [job for job in jobs if job.scored]
            phase = "rerank" if scoring and all(hasattr(job, "scores") for job in scoring) else "waves"
        effort.forwards += forward.forwards
        effort.tokens += forward.tokens_forwarded

    def _tell(self, work: Work, hits: list[Hit], titles: dict[str, str], version: str) -> None:
        """Give a stream the hits that it has not been given."""
        assert work.on_hits
        new = [hit for hit in hits if hit.rank > work.given]
        work.given = max([work.given, *(hit.rank for hit in new)])
        if shown := [hit for hit in new if hit.docno in titles]:
            work.on_hits(shown, titles, version)


def _ranked(hits: list[Hit]) -> list[Hit]:
    """The hits numbered from 1, where some have been left out."""
    return [hit if hit.rank == rank else replace(hit, rank=rank) for rank, hit in enumerate(hits, 1)]


def _settle(future: Future[Any], function: Callable[[], Any]) -> None:
    try:
        future.set_result(function())
    except Exception as error:
        future.set_exception(error)


def _told(error: Exception) -> Exception:
    """The error as a caller may see it."""
    if _out_of_memory(error):
        return TooLarge("this request needs more memory than a replica has; ask for less: k, draws, a shorter query")
    return error


def _out_of_memory(error: BaseException) -> bool:
    import torch

    said = str(error)
    return isinstance(error, (MemoryError, torch.OutOfMemoryError)) or (
        isinstance(error, RuntimeError) and ("can't allocate memory" in said or "not enough memory" in said)
    )


def _give_back() -> None:
    """Return to the device what the failed batch held."""
    import torch

    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
