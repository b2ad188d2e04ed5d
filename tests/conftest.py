"""What all tests share: a model cache of this checkout's own, and no cluster but their own."""

from __future__ import annotations

import os
import re
import sys
from pathlib import Path

from hypothesis import settings

ROOT = Path(__file__).parent.parent

pytest_plugins = ["tests.storage.fixtures"]

os.environ["ZEROGR_CACHE"] = str(ROOT / ".cache" / "zerogr")
os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["HF_HUB_DISABLE_PROGRESS_BARS"] = "1"
os.environ["TOKENIZERS_PARALLELISM"] = "false"
os.environ.pop("RAY_ADDRESS", None)

# The same examples in every run: a test that depends on luck is a bug.
settings.register_profile("zerogr", derandomize=True, deadline=None, max_examples=50)
settings.load_profile("zerogr")


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
