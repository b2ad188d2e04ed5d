"""The service on Ray Serve: replicas behind its proxy, the owner of the tries, the writer of docids."""

from __future__ import annotations

import logging
import os
from pathlib import Path
from typing import Any

import ray
from ray import serve
from ray.exceptions import RayError
from ray.serve.config import AutoscalingConfig, BackpressureConfig, DeploymentActorConfig
from ray.serve.exceptions import BackPressureError

from zerogr_ray.cluster import cores
from zerogr_ray.errors import InputError
from zerogr_ray.serving.app import create_app
from zerogr_ray.serving.config import ServiceConfig, is_loopback
from zerogr_ray.serving.errors import Overloaded, Unavailable
from zerogr_ray.serving.keys import Key, Keys, read_keys
from zerogr_ray.serving.loader import Arrays, Loader
from zerogr_ray.serving.owner import TrieOwner
from zerogr_ray.serving.searcher import Searcher
from zerogr_ray.serving.state import State, VersionRef, Versions
from zerogr_ray.serving.version import ref_of
from zerogr_ray.serving.watching import Gauges, RayMetrics, RequestLog, observe_round
from zerogr_ray.serving.writer import DocidWriter

OWNER = "tries"
OWNER_SECONDS = 120.0
"""How long a replica waits for the owner before it maps the files itself."""
QUICK = 64
"""Requests beyond those that are searched for which a replica has room: refusals, health, changes."""

log = logging.getLogger("zerogr.serving")


@serve.deployment(max_ongoing_requests=4, max_queued_requests=32)
class Writer:
    """The docid writer as a deployment of its own: a model more, so one replica for all."""

    def __init__(self, service: dict[str, Any]) -> None:
        cfg = ServiceConfig.model_validate(service)
        self.writer = DocidWriter(cfg.docids, cfg.llm)

    def write(self, docno: str, title: str, text: str) -> str:
        """The docid of a document."""
        return self.writer.write(docno, title, text)


@serve.deployment
@serve.ingress()
class Search:
    """One replica: a Searcher and its app."""

    def __init__(self, service: dict[str, Any], keys: list[dict[str, Any]], writer: Any) -> None:
        self.cfg, self._writer = ServiceConfig.model_validate(service), writer
        self.keys = Keys([Key(**key) for key in keys])
        self.metrics = RayMetrics()
        self.searcher = Searcher(
            self.cfg,
            Loader(self.cfg, self._shared),
            self._write,
            lambda name, effort, queued: observe_round(self.metrics, name, effort, queued),
        )
        self._gauges = Gauges(self.metrics, self.searcher)
        self.searcher.start()

    def __serve_build_asgi_app__(self) -> Any:
        """The app, made in the replica."""
        requests = RequestLog(Path(self.cfg.state) / "logs", self.searcher.id)
        return create_app(self.searcher, self.cfg, self.keys, self.metrics, requests, tell_trace=False)

    def check_health(self) -> None:
        """Asked by Serve: raises where this replica should be replaced."""
        self._gauges.look()
        self.searcher.healthy()

    def __del__(self) -> None:
        if hasattr(self, "searcher"):
            self.searcher.close()

    async def _write(self, docno: str, title: str, text: str) -> str:
        try:
            return str(await self._writer.write.remote(docno, title, text))
        except BackPressureError:
            raise Overloaded("more documents wait for a docid than may; try again later", 5.0) from None
        except RayError:
            log.exception("no docid was written")
            raise Unavailable("the model that writes docids failed; send a docid with the document") from None

    def _shared(self, ref: VersionRef) -> Arrays | None:
        """The arrays of a version in this node's object store; None where the owner does not give them."""
        in_use = [used for each in State(self.cfg.state).versions().values() for used in _used(each)]
        try:
            refs = ray.get(serve.get_deployment_actor(OWNER).arrays.remote(ref, in_use), timeout=OWNER_SECONDS)
            return {name: ray.get(inside[0], timeout=OWNER_SECONDS) for name, inside in refs.items()}
        except (RayError, ValueError) as error:
            log.warning("the owner of the tries does not answer, mapping the files instead: %s", error)
            return None


def _used(versions: Versions) -> list[VersionRef]:
    return [ref for ref in (versions.active, versions.candidate) if ref]


def application(cfg: ServiceConfig) -> serve.Application:
    """The application of these settings. Raises InputError, IndexRefused: nothing is deployed that cannot start."""
    if not is_loopback(cfg.host) and cfg.keys is None:
        raise InputError(
            f"host {cfg.host} can be reached from other machines, and the service has no keys; make one "
            f"(zerogr key NAME --file keys.json --right search) and give keys, or listen on 127.0.0.1"
        )
    keys = read_keys(Path(cfg.keys)) if cfg.keys else []
    state = State(cfg.state)
    for name, path in cfg.indexes.items():
        if name not in state.versions():
            ref_of(path)
    service = cfg.model_dump()
    threads = str(cfg.threads or max(1, cores() // cfg.at_most))
    variables = {"OMP_NUM_THREADS": threads, "TOKENIZERS_PARALLELISM": "false"}
    ongoing = cfg.cache.batch + cfg.waiting
    scaling: dict[str, Any] = {"num_replicas": cfg.replicas}
    if cfg.at_most > cfg.replicas:
        scaling = {
            "autoscaling_config": AutoscalingConfig(
                min_replicas=cfg.replicas,
                max_replicas=cfg.at_most,
                target_ongoing_requests=max(1.0, cfg.cache.batch / 2),
                upscale_delay_s=10,
                downscale_delay_s=300,
            )
        }
    writer = Writer.options(  # type: ignore[attr-defined]
        ray_actor_options={"num_cpus": 0, "runtime_env": {"env_vars": variables}}
    ).bind(service)
    return Search.options(  # type: ignore[attr-defined]
        **scaling,
        max_ongoing_requests=ongoing + QUICK,
        max_queued_requests=ongoing + QUICK,
        backpressure_config=BackpressureConfig(status_code=429, retry_after_s=1),
        ray_actor_options={"num_cpus": cfg.cpus, "num_gpus": cfg.gpus, "runtime_env": {"env_vars": variables}},
        deployment_actors=[DeploymentActorConfig(name=OWNER, actor_class=TrieOwner, actor_options={"num_cpus": 0})],
        health_check_period_s=2,
        graceful_shutdown_timeout_s=cfg.limits.seconds,
    ).bind(service, [{"name": key.name, "sha256": key.sha256, "rights": key.rights} for key in keys], writer)


def http_options(cfg: ServiceConfig) -> dict[str, Any]:
    """Where Serve's proxy listens. A request that its replica lost is given up after a while, never waited for."""
    return {"host": cfg.host, "port": cfg.port, "request_timeout_s": cfg.limits.seconds + 10}


def quiet_ray() -> None:
    """Settings that Ray's processes read from the environment when they start."""
    os.environ.setdefault("RAY_SERVE_LOG_TO_STDERR", "0")
    # Ray's workers stand back behind everything else on a machine (niceness 15); these have people waiting for them.
    os.environ.setdefault("RAY_worker_niceness", "0")
    os.environ.setdefault("RAY_SERVE_DEPLOYMENT_ACTOR_HEALTH_CHECK_PERIOD_S", "2")
