"""What an operator sees: Prometheus metrics, through Ray where it runs, and one line of JSON per request."""

from __future__ import annotations

import json
import logging
from collections.abc import Sequence
from logging.handlers import RotatingFileHandler
from pathlib import Path
from typing import Any, Literal, Protocol

from zerogr_ray.serving.decoder import Effort
from zerogr_ray.serving.searcher import Searcher

SECONDS = [0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30]
COUNTS = [1, 2, 4, 8, 16, 32, 64, 128, 256, 512, 1024, 2048, 4096, 8192]
LOG_FILES = 128
"""Files of a state folder's log that are kept."""

SHARES = [0.01, 0.02, 0.05, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 1.0]

METRICS: dict[str, tuple[Literal["histogram", "counter", "gauge"], str, tuple[str, ...], list[float] | None]] = {
    "zerogr_request_seconds": ("histogram", "Request, from arrival to answer.", ("route", "code"), SECONDS),
    "zerogr_requests": ("counter", "Requests by route and status.", ("route", "code"), None),
    "zerogr_stage_seconds": ("histogram", "Queue, prompt, waves, rerank.", ("index", "stage"), SECONDS),
    "zerogr_waves_per_round": ("histogram", "Forward passes of a round.", ("index",), list(map(float, COUNTS))),
    "zerogr_tokens_per_query": ("histogram", "Tokens forwarded per query.", ("index",), list(map(float, COUNTS))),
    "zerogr_round_queries": ("histogram", "Queries decoded together.", ("index",), list(map(float, COUNTS))),
    "zerogr_cache_share": ("histogram", "Cached tokens in use, of those allowed.", ("index",), SHARES),
    "zerogr_waiting_queries": ("gauge", "Queries that wait.", (), None),
    "zerogr_documents": ("gauge", "Documents that can be found.", ("index",), None),
    "zerogr_added": ("gauge", "Documents added since the build.", ("index",), None),
    "zerogr_tombstones": ("gauge", "Documents deleted or replaced since the build.", ("index",), None),
    "zerogr_index_info": ("gauge", "1 for the version that answers, else 0.", ("index", "version"), None),
}


class Metrics(Protocol):
    """Where figures go."""

    def record(self, name: str, value: float, **tags: str) -> None:
        """One observation of the metric called `name`."""
        ...


class NoMetrics:
    """For a replica outside Ray."""

    def record(self, name: str, value: float, **tags: str) -> None:
        """Forget it."""


class RayMetrics:
    """Ray's metrics: every node exports them for Prometheus."""

    def __init__(self) -> None:
        from ray.util.metrics import Counter, Gauge, Histogram

        self._metrics: dict[str, Any] = {}
        for name, (kind, about, tags, bounds) in METRICS.items():
            if kind == "histogram":
                self._metrics[name] = Histogram(name, about, boundaries=bounds or [], tag_keys=tags)
            else:
                self._metrics[name] = {"counter": Counter, "gauge": Gauge}[kind](name, about, tag_keys=tags)

    def record(self, name: str, value: float, **tags: str) -> None:
        """One observation; a counter goes up by `value`."""
        metric, kind = self._metrics[name], METRICS[name][0]
        if kind == "histogram":
            metric.observe(value, tags)
        elif kind == "counter":
            metric.inc(value, tags)
        else:
            metric.set(value, tags)


def observe_round(metrics: Metrics, name: str, effort: Effort, queued: Sequence[float]) -> None:
    """Record one round of the decoder; `queued` are its requests' seconds in the queue."""
    for seconds in queued:
        metrics.record("zerogr_stage_seconds", seconds, index=name, stage="queue")
    for stage in ("prompt", "waves", "rerank"):
        if spent := getattr(effort, stage):
            metrics.record("zerogr_stage_seconds", spent, index=name, stage=stage)
    metrics.record("zerogr_waves_per_round", effort.forwards, index=name)
    metrics.record("zerogr_tokens_per_query", effort.tokens / max(1, effort.queries), index=name)
    metrics.record("zerogr_round_queries", effort.queries, index=name)
    metrics.record("zerogr_cache_share", effort.cache_share, index=name)


class Gauges:
    """What is rather than what happens: looked at when `look` is called."""

    def __init__(self, metrics: Metrics, searcher: Searcher) -> None:
        self.metrics, self.searcher = metrics, searcher
        self._versions: dict[str, str] = {}

    def look(self) -> None:
        """Record the queue, and every index's version and counts."""
        self.metrics.record("zerogr_waiting_queries", self.searcher.decoder.waiting)
        for name, version in self.searcher.current.items():
            counts = version.retriever.live.counts
            self.metrics.record("zerogr_documents", counts["living"], index=name)
            self.metrics.record("zerogr_added", counts["added"], index=name)
            self.metrics.record("zerogr_tombstones", counts["removed"], index=name)
            if (before := self._versions.get(name)) not in (None, version.label):
                self.metrics.record("zerogr_index_info", 0, index=name, version=str(before))
            self._versions[name] = version.label
            self.metrics.record("zerogr_index_info", 1, index=name, version=version.label)


class RequestLog:
    """One line of JSON per request in a file of this replica, 8 files of 16 MB at most; of all replicas, LOG_FILES."""

    def __init__(self, folder: Path, replica: str) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        written = sorted(folder.glob("requests-*.jsonl*"), key=lambda file: file.stat().st_mtime)
        for old in written[:-LOG_FILES]:
            old.unlink(missing_ok=True)
        self.logger = logging.Logger(f"zerogr.requests.{replica}")
        handler = RotatingFileHandler(
            folder / f"requests-{replica}.jsonl", maxBytes=16 << 20, backupCount=7, encoding="utf-8", delay=True
        )
        self.logger.addHandler(handler)

    def write(self, row: dict[str, Any]) -> None:
        """Write one line."""
        self.logger.info(json.dumps(row, ensure_ascii=True))

    def close(self) -> None:
        """Close the file."""
        for handler in self.logger.handlers:
            handler.close()
