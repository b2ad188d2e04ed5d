"""What all tests share: a model cache of this checkout's own, and a local Ray for the tests that ask for one."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent

os.environ["ZEROGR_CACHE"] = str(ROOT / ".cache" / "zerogr")
os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["HF_HUB_DISABLE_PROGRESS_BARS"] = "1"
os.environ["TOKENIZERS_PARALLELISM"] = "false"
os.environ.pop("RAY_ADDRESS", None)


@pytest.fixture(scope="session")
def local_ray():
    """A Ray of this test run's own: its ports are free ones, its sessions do not meet another's."""
    import ray

    from zerogr_ray.cluster import ray_cluster

    with ray_cluster():
        yield ray
