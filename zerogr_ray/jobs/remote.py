"""What a submitted job runs on the cluster: `python -m zerogr_ray.jobs.remote VERSION VERB ARGUMENTS`."""

from __future__ import annotations

import io
import sys
from importlib.metadata import version
from typing import TextIO

RESULT = "\x1e"
"""Begins a line of standard output in a job's log, where both streams come together; terminals do not show it."""


class Marked(io.TextIOBase):
    """Standard output whose lines can be told from standard error's afterwards."""

    def __init__(self, stream: TextIO) -> None:
        self.stream, self.rest = stream, ""

    def writable(self) -> bool:
        """Yes."""
        return True

    def write(self, text: str) -> int:
        """Write the lines that `text` completes, each in one piece: progress bars write to the same file."""
        *lines, self.rest = (self.rest + text).split("\n")
        for line in lines:
            self.stream.write(f"{RESULT}{line}\n")
            self.stream.flush()
        return len(text)

    def finish(self) -> None:
        """End the last line."""
        if self.rest:
            self.write("\n")


def main() -> None:
    """Run the verb; exits as it does, and with 2 where the submitter has another version of this package."""
    wanted, *arguments = sys.argv[1:]
    if wanted != (have := version("zerogr-ray")):
        print(f"zerogr: submitted by zerogr_ray {wanted}, the cluster has {have}; use one on both", file=sys.stderr)
        raise SystemExit(2)
    from zerogr_ray.cli import main as zerogr

    sys.argv = ["zerogr", *arguments]
    sys.stdout = out = Marked(sys.stdout)
    try:
        zerogr()
    finally:
        out.finish()


if __name__ == "__main__":
    main()
