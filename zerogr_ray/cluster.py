"""The Ray that the work runs on: the one that is there, the one $RAY_ADDRESS names, or a local one for this command."""

from __future__ import annotations

import logging
import os
from collections.abc import Iterator
from contextlib import contextmanager

from zerogr_ray.errors import InputError

LOCAL_OBJECT_STORE = 1 << 30
"""Bytes. Shards travel by name, not through the object store, so that a small one is enough."""


def cores() -> int:
    """CPU cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def spare_cpus() -> int:
    """CPUs of the Ray that is running, less one for what reads and collects; at least 1."""
    import ray

    return max(1, int(ray.cluster_resources().get("CPU", 1)) - 1)


@contextmanager
def ray_cluster(
    object_store: int = LOCAL_OBJECT_STORE, cpus: int | None = None, metrics_port: int | None = None
) -> Iterator[None]:
    """Join the running Ray, or start one that ends with the block. Nothing listens beyond loopback.

    One that is started gets `object_store` bytes, counts `cpus` CPUs, and exports metrics on `metrics_port`.

    Ray must not count less than 4 CPUs on a small machine: Ray Train's controller and worker, an engine and a
    reader are four actors, and Ray waits for ever rather than sharing a core between them.
    """
    os.environ.setdefault("RAY_BACKEND_LOG_LEVEL", "fatal")  # its C++ notices would run through our progress bars
    import ray

    if ray.is_initialized():
        yield
        return
    os.environ.setdefault("RAY_TRAIN_ENABLE_STATE_TRACKING", "0")
    if address := os.environ.get("RAY_ADDRESS"):
        try:
            ray.init(log_to_driver=False, logging_level=logging.ERROR)
        except (ConnectionError, RuntimeError, ValueError) as error:
            raise InputError(f"no Ray answers at RAY_ADDRESS={address}: {error}") from error
    else:
        ray.init(
            "local",  # without it Ray would join whatever was started last on this machine
            num_cpus=cpus or max(4, cores()),
            object_store_memory=object_store,
            **({"_metrics_export_port": metrics_port} if metrics_port else {}),
            include_dashboard=False,
            log_to_driver=False,
            logging_level=logging.ERROR,
        )
    logging.getLogger("ray").setLevel(logging.ERROR)  # after init, which sets it
    try:
        yield
    finally:
        ray.shutdown()
