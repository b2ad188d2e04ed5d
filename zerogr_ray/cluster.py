"""The Ray that the work runs on: the one that is there, the one $RAY_ADDRESS names, or a local one for this command."""

from __future__ import annotations

import logging
import os
from collections.abc import Iterator
from contextlib import contextmanager

LOCAL_OBJECT_STORE = 1 << 30
"""Bytes. Shards travel by name, not through the object store, so that a small one is enough."""


@contextmanager
def ray_cluster() -> Iterator[None]:
    """Join the running Ray, or start one that ends with the block. Nothing listens beyond loopback.

    Ray must not count less than 4 CPUs on a small machine: Ray Train's controller and worker, an engine and a
    reader are four actors, and Ray waits for ever rather than sharing a core between them.
    """
    import ray

    if ray.is_initialized():
        yield
        return
    os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
    os.environ.setdefault("RAY_TRAIN_ENABLE_STATE_TRACKING", "0")
    for name in ("ray", "ray.data", "ray.train"):
        logging.getLogger(name).setLevel(logging.ERROR)
    if os.environ.get("RAY_ADDRESS"):
        ray.init(log_to_driver=False, logging_level=logging.ERROR)
    else:
        ray.init(
            num_cpus=max(4, os.cpu_count() or 4),
            object_store_memory=LOCAL_OBJECT_STORE,
            include_dashboard=False,
            log_to_driver=False,
            logging_level=logging.ERROR,
        )
    try:
        yield
    finally:
        ray.shutdown()
