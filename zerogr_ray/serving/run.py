"""`zerogr serve`: bring the service up, here or on the cluster of $RAY_ADDRESS, and stay until told to end."""

from __future__ import annotations

import logging
import os
import signal
import socket
import threading
from collections.abc import Callable

from zerogr_ray.cluster import LOCAL_OBJECT_STORE, cores, ray_cluster
from zerogr_ray.errors import InputError, ModelError
from zerogr_ray.index.bundle import open_index
from zerogr_ray.index.manifest import pinned, read_manifest
from zerogr_ray.serving.config import ServiceConfig
from zerogr_ray.serving.control import follow_settings
from zerogr_ray.serving.state import State

APP = "zerogr"


def serve_until_told(cfg: ServiceConfig, say: Callable[[str], None]) -> None:
    """Serve until SIGINT or SIGTERM. Raises InputError, IndexRefused, ModelError where the service cannot start."""
    from zerogr_ray.serving.deploy import application, http_options, quiet_ray

    quiet_ray()
    app = application(cfg)
    _port_is_free(cfg)
    follow_settings(State(cfg.state), cfg.indexes, say)
    known = State(cfg.state).versions()
    for name, path in cfg.indexes.items():  # here a damaged index is one sentence, in a replica it is Serve's traceback
        open_index(known[name].active.path if name in known else path)
    told = threading.Event()
    with ray_cluster(_object_store(cfg), max(4, cores(), round(cfg.cpus * cfg.at_most) + 2), cfg.metrics_port):
        from ray import serve

        for number in (signal.SIGINT, signal.SIGTERM):  # after Ray, which has handlers of its own
            signal.signal(number, lambda *_: told.set())
        logging.getLogger("ray.serve").setLevel(logging.WARNING)
        serve.start(http_options=http_options(cfg))
        try:
            serve.run_many(
                [serve.RunTarget(target=app, name=APP)],
                wait_for_ingress_deployment_creation=False,
                wait_for_applications_running=False,
            )
            _wait_until_running(told)
            if not told.is_set():
                for name, versions in State(cfg.state).versions().items():
                    if name in cfg.indexes:
                        say(f"index\t{name}\t{versions.active.version}\t{versions.active.path}")
                        if versions.active.path != pinned(given := cfg.indexes[name]):
                            say(f"note\t{name}\twas switched by --activate; to serve {given}: --activate {given}")
                if os.environ.get("RAY_SERVE_ENABLE_HA_PROXY") == "1":
                    say("note\thaproxy\tits statistics answer on every address; let nobody reach ports 8404 and 9101")
                say(f"ready\thttp://{cfg.host}:{cfg.port}")
            told.wait()
        finally:
            serve.shutdown()


def _wait_until_running(told: threading.Event) -> None:
    from ray import serve

    while not told.wait(0.2):
        found = serve.status().applications.get(APP)
        if found is None:
            continue
        if found.status == "RUNNING":
            return
        if found.status in ("DEPLOY_FAILED", "UNHEALTHY"):
            why = [one.message for one in found.deployments.values() if one.message] or [found.message]
            raise ModelError(f"the service did not start: {_last_line(why[0])}")


def _last_line(trace: str) -> str:
    """The error itself, of a traceback that Serve quotes."""
    lines = [line for line in trace.strip().splitlines() if line and not line.startswith((" ", "Traceback"))]
    said = [line for line in lines if line.startswith(("zerogr_ray.", "ray.", "Runtime", "OS"))] or lines or [trace]
    return said[-1].removeprefix("zerogr_ray.errors.")


def _port_is_free(cfg: ServiceConfig) -> None:
    if "RAY_ADDRESS" in os.environ:
        return  # the proxies listen on the cluster's nodes
    family = socket.AF_INET6 if ":" in cfg.host else socket.AF_INET
    with socket.socket(family, socket.SOCK_STREAM) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((cfg.host, cfg.port))
        except OSError as error:
            raise InputError(
                f"cannot listen on {cfg.host}:{cfg.port} ({error.strerror}); choose another: --port"
            ) from None


def _object_store(cfg: ServiceConfig) -> int:
    """Bytes of the object store: two versions of every trie, and what Ray itself needs."""
    tries = 0
    state = State(cfg.state).versions()
    for name, path in cfg.indexes.items():
        manifest = read_manifest(state[name].active.path if name in state else path)
        tries += sum(file["size"] for part, file in manifest["files"].items() if part.startswith("trie/"))
    return LOCAL_OBJECT_STORE + 2 * tries
