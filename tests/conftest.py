"""What all tests share: a model cache of this checkout's own, and no cluster but their own."""

from __future__ import annotations

import os
from pathlib import Path

from hypothesis import settings

ROOT = Path(__file__).parent.parent

os.environ["ZEROGR_CACHE"] = str(ROOT / ".cache" / "zerogr")
os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["HF_HUB_DISABLE_PROGRESS_BARS"] = "1"
os.environ["TOKENIZERS_PARALLELISM"] = "false"
os.environ.pop("RAY_ADDRESS", None)

# The same examples in every run: a test that depends on luck is a bug.
settings.register_profile("zerogr", derandomize=True, deadline=None)
settings.load_profile("zerogr")
