"""What all tests share: a model cache of this checkout's own, and no cluster but their own."""

from __future__ import annotations

import os
import re
import secrets
import sys
from pathlib import Path

import pytest
from hypothesis import settings

ROOT = Path(__file__).parent.parent

pytest_plugins = ["tests.storage.fixtures"]

os.environ["ZEROGR_CACHE"] = str(ROOT / ".cache" / "zerogr")
os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["HF_HUB_DISABLE_PROGRESS_BARS"] = "1"
os.environ["TOKENIZERS_PARALLELISM"] = "false"
os.environ.pop("RAY_ADDRESS", None)
# Two Rays that start at once in a new home would both make the user's token, and one would have the wrong one.
os.environ.setdefault("RAY_AUTH_TOKEN", secrets.token_hex(32))

LONGEST = [
    "tests/test_path.py",
    "tests/training/test_finetune.py",
    "tests/generation/test_engines.py",
    "tests/jobs/test_cluster.py",
    "tests/training/test_fit.py",
    "tests/storage/test_build.py",
    "tests/test_build.py",
    "tests/recovery/test_matrix.py",
    "tests/serving/test_serve.py",
]
"""Files that take a minute or more, begun first: of two that run side by side none should be the last alone."""

# The same examples in every run: a test that depends on luck is a bug.
settings.register_profile("zerogr", derandomize=True, deadline=None, max_examples=50)
settings.load_profile("zerogr")


@pytest.fixture(scope="module")
def float32():
    """dtype "auto" is float32, here and in processes that start meanwhile, whatever the machine.

    In bfloat16, which newer CPUs multiply, a logit depends on what is computed together with it.
    """
    import torch

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(torch.cpu, "_is_avx512_bf16_supported", lambda: False)
        patch.setenv("ONEDNN_MAX_CPU_ISA", "AVX2")
        yield


def pytest_collection_modifyitems(items) -> None:
    """Longest files first; within a file all stays as it is."""
    place = {file: number for number, file in enumerate(LONGEST)}
    items.sort(key=lambda item: place.get(item.location[0], len(LONGEST)))


def pytest_collection_finish() -> None:
    """Matrices this small are not worth a second thread; on a busy machine threads would wait for each other."""
    if "torch" in sys.modules:
        sys.modules["torch"].set_num_threads(1)


def pytest_ignore_collect(collection_path: Path, config) -> bool | None:
    """A run without models or Ray does not even import the files whose every test needs them: torch takes seconds."""
    if not collection_path.name.startswith("test_"):
        return None
    own = re.search(r"^pytestmark = (.*)$", collection_path.read_text(), re.MULTILINE)
    marks = re.findall(r"pytest\.mark\.(\w+)", own[1]) if own else []
    return True if any(f"not {mark}" in config.getoption("-m") for mark in marks if mark != "timeout") else None
