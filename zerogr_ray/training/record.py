"""What an index keeps of its training: the log without what differs from run to run."""

from __future__ import annotations

import json
from pathlib import Path

from zerogr_ray.training.checkpoints import read_log

TIMED = ("_per_second", "seconds")
"""Endings of the fields that a clock wrote: they would make every index of the same inputs another one."""


def training_record(folder: Path) -> bytes:
    """`folder/log.jsonl` without its timings, one JSON object a line; empty where there is no log."""
    rows = [{name: value for name, value in row.items() if not name.endswith(TIMED)} for row in read_log(folder)]
    return "".join(json.dumps(row) + "\n" for row in rows).encode()
