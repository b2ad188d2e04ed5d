"""What the tests of serving share: a tiny index, a replica behind a real HTTP server, without Ray."""

from __future__ import annotations

import socket
import threading
import time
from contextlib import contextmanager

import httpx
import numpy as np
import uvicorn

from tests.decoding.test_retriever import WORDS, make_index
from zerogr_ray.config import CacheConfig
from zerogr_ray.serving.app import create_app
from zerogr_ray.serving.config import LimitsConfig, ServiceConfig
from zerogr_ray.serving.keys import Keys
from zerogr_ray.serving.loader import Loader
from zerogr_ray.serving.searcher import Searcher
from zerogr_ray.serving.watching import RequestLog


def tiny_index(folder, seed=1, count=60):
    """An index of `count` documents under random words, docnos d0, d1, …"""
    folder.mkdir(parents=True, exist_ok=True)
    rng = np.random.default_rng(seed)
    return make_index(folder, [" ".join(rng.choice(WORDS, size=rng.integers(2, 6))) for _ in range(count)])


def settings(index, state, **more):
    """Settings of a service of one tiny index."""
    limits = LimitsConfig(**{"seconds": 30, **more.pop("limits", {})})
    given = {"dtype": "float32", "threads": 1, "cache": CacheConfig(batch=4), "limits": limits} | more
    indexes = index if isinstance(index, dict) else {"docs": str(index)}
    return ServiceConfig(indexes=indexes, state=str(state), **given)


class Recorded:
    """Metrics that a test can look at."""

    def __init__(self):
        self.rows = []

    def record(self, name, value, **tags):
        self.rows.append((name, value, tags))


@contextmanager
def replica(cfg, write=None, load=None, metrics=None):
    """A replica as Serve would start one, without Serve."""
    metrics = metrics or Recorded()
    from zerogr_ray.serving.watching import observe_round

    searcher = Searcher(cfg, load or Loader(cfg), write, lambda *said: observe_round(metrics, *said))
    searcher.start()
    try:
        yield searcher
    finally:
        searcher.close()


@contextmanager
def held(searcher):
    """The decoder does nothing inside the block: what arrives waits."""
    holds, release = threading.Event(), threading.Event()

    def hold():
        holds.set()
        release.wait()

    searcher.decoder.call(hold)
    holds.wait()
    try:
        yield
    finally:
        release.set()


@contextmanager
def stopped_after_first_hits(searcher):
    """Inside the block the decoder stops when it has told a stream its first hits, and rests until the block ends."""
    told, go_on, tell = threading.Event(), threading.Event(), searcher.decoder._tell

    def stopping(*what):
        tell(*what)
        if not told.is_set():
            told.set()
            go_on.wait()

    searcher.decoder._tell = stopping
    try:
        yield
    finally:
        go_on.set()
        searcher.decoder._tell = tell


def until(condition, seconds=20.0):
    """Wait for what must come; the limit only bounds a failing test."""
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "it did not come"
        time.sleep(0.01)


@contextmanager
def served(cfg, keys=(), write=None, metrics=None):
    """(client, replica): the app behind uvicorn on a port of its own."""
    metrics = metrics or Recorded()
    with replica(cfg, write, metrics=metrics) as searcher:
        log = RequestLog(searcher.state.path / "logs", searcher.id)
        app = create_app(searcher, cfg, Keys(list(keys)), metrics, log)
        with socket.socket() as listening:
            listening.bind(("127.0.0.1", 0))
            server = uvicorn.Server(uvicorn.Config(app, log_level="critical", lifespan="off"))
            thread = threading.Thread(target=server.run, kwargs={"sockets": [listening]}, daemon=True)
            thread.start()
            url = f"http://127.0.0.1:{listening.getsockname()[1]}"
            try:
                with httpx.Client(base_url=url, timeout=30, transport=httpx.HTTPTransport(retries=20)) as client:
                    client.get("/healthz")
                    yield client, searcher
            finally:
                server.should_exit = True
                thread.join()
                log.close()
