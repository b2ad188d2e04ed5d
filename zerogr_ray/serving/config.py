"""Settings of the search service. A service file is a ServiceConfig as TOML."""

from __future__ import annotations

import re
from ipaddress import ip_address
from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field, StringConstraints

from zerogr_ray.config import CacheConfig, DocIdConfig, LLMConfig, Strict
from zerogr_ray.errors import InputError
from zerogr_ray.s3 import is_url, place_of
from zerogr_ray.store import local_path

NAME = r"^[a-z0-9][a-z0-9._-]{0,63}$"
"""Names of indexes: they stand in addresses, in file names and in metrics."""


class WriterConfig(LLMConfig):
    """The language model that writes docids for documents that are added, one now and then."""

    engine: Literal["auto", "vllm", "transformers"] = "transformers"
    """For single documents vLLM's start and memory are not worth it."""


class LimitsConfig(Strict):
    """What one request may ask for, and how many may wait."""

    k: int = Field(1000, ge=1)
    """Documents that a search may ask for."""
    draws: int = Field(1000, ge=1)
    """K, docids that a search may draw."""
    queries: int = Field(64, ge=1)
    """Queries in one request."""
    query_chars: int = Field(4000, ge=1)
    """Characters of a query, and of an instruction."""
    exhaustive: int = Field(5000, ge=0)
    """Docids that mode exhaustive may score for one request, of all its queries together."""
    docnos: int = Field(10_000, ge=1)
    """Documents in a filter."""
    text_chars: int = Field(100_000, ge=1)
    """Characters of a document that is added."""
    body_bytes: int = Field(1 << 20, ge=1024)
    """Bytes of a request."""
    waiting: int = Field(0, ge=0)
    """Queries that may wait in a replica for its next batches; 0: as many as one batch holds. What comes beyond is
    answered 429 at once: a longer queue serves nobody sooner."""
    seconds: float = Field(60, gt=0)
    """Time after which a request that was accepted is given up with 503."""
    rate: float = Field(0, ge=0)
    """Requests per second and key, over all replicas; 0: no limit. Without keys, of all callers together."""
    burst: int = Field(20, ge=1)
    """Requests that a key may send at once before its rate counts."""


class ServiceConfig(Strict):
    """The search service: which indexes, how many replicas, who may ask what."""

    indexes: dict[Annotated[str, StringConstraints(pattern=NAME)], str] = Field(min_length=1)
    """Name -> folder of the index that the service begins with; the first is the one that is asked by default."""
    state: str
    """Folder of the journals, of the active versions and of the request logs. All nodes must see it."""
    host: str = "127.0.0.1"
    """Address to listen on. Beyond loopback only with keys."""
    port: int = Field(8000, ge=1, le=65535)
    """Port to listen on."""
    metrics_port: int | None = Field(None, ge=1, le=65535)
    """Port of the Prometheus metrics of a Ray that this command starts; unset, one that is free."""
    keys: str | None = None
    """File of API keys; make them with `zerogr key`. Without one, everybody who reaches the port may do everything."""
    replicas: int = Field(1, ge=1)
    """Replicas at least. Each holds one copy of the model, and runs one batch at a time."""
    max_replicas: int | None = Field(None, ge=1)
    """Replicas at most, by requests under way; unset, as many as at least."""
    cpus: float = Field(1, ge=0)
    """Ray CPUs that one replica reserves."""
    gpus: float = Field(0, ge=0)
    """GPUs that one replica reserves."""
    threads: int = Field(0, ge=0)
    """Threads of one replica's model on a CPU; 0: the machine's cores, shared among the replicas."""
    dtype: Literal["auto", "float32", "bfloat16"] = "auto"
    """auto is bfloat16 where the hardware multiplies it natively, float32 elsewhere."""
    cache: CacheConfig = CacheConfig()
    limits: LimitsConfig = LimitsConfig()
    docids: DocIdConfig = DocIdConfig()
    """How a document that is added gets its docid."""
    llm: WriterConfig = WriterConfig()
    """The language model that writes it. It is loaded when the first document comes without a docid."""
    log_queries: bool = False
    """Write queries into the request log. They may be personal."""

    @property
    def default(self) -> str:
        """The index that is asked where a request names none."""
        return next(iter(self.indexes))

    @property
    def at_most(self) -> int:
        """Replicas at most."""
        return max(self.replicas, self.max_replicas or 0)

    @property
    def waiting(self) -> int:
        """Queries that may wait in one replica."""
        return self.limits.waiting or self.cache.batch


def service_of(indexes: list[str], state: str | None) -> dict[str, object]:
    """The settings that `zerogr serve INDEX...` means: each INDEX a folder, or NAME=FOLDER. Raises InputError."""
    named: dict[str, str] = {}
    for text in indexes:
        name, equals, path = text.partition("=")
        folder = place_of(path if equals else text)
        name = name if equals else re.sub(r"[^a-z0-9._-]+", "-", Path(folder).name.lower()).strip("-._")
        if not re.match(NAME, name):
            raise InputError(f"{text}: {name!r} cannot name an index; write it as NAME={text}, NAME like docs or faq-2")
        if name in named:
            raise InputError(f"two indexes are called {name!r}; write NAME=FOLDER for one of them")
        named[name] = folder
    first = next(iter(named.values()), ".")
    beside = Path(first).name if is_url(first) else first  # the state of an index under s3:// is in this folder
    return {"indexes": named, "state": str(local_path(state or f"{beside}.serving"))}


def is_loopback(host: str) -> bool:
    """Whether only this machine reaches `host`."""
    try:
        return ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"
