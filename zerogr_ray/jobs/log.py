"""A job's log on this terminal: its result on standard output, all the rest on standard error."""

from __future__ import annotations

import re
import sys

from zerogr_ray.jobs.remote import RESULT

BAR = re.compile(r"\[\d+:\d\d(:\d\d)?[<,]")
"""What every progress bar shows: the time that it has taken."""


class LogPrinter:
    """Prints a log piece by piece, however it is cut."""

    def __init__(self) -> None:
        self.in_result, self.on_bar, self.at_start = False, False, True
        self.tail = ""
        """The last characters, for what a failed job said."""

    def feed(self, text: str) -> None:
        """Print what has come."""
        self.tail = (self.tail + text)[-4000:]
        for piece in re.split(f"(?<=\n)|(?={RESULT})", text):
            if piece.startswith(RESULT):
                self.in_result, piece = True, piece[1:]
            self._show(piece)
            if piece.endswith("\n"):
                self.in_result = False

    def _show(self, piece: str) -> None:
        if self.in_result:
            print(piece, end="", flush=True)
            return
        empty, self.at_start = self.at_start and piece == "\n", piece.endswith("\n") or (self.at_start and not piece)
        if empty:  # what a bar begins with
            return
        # Ray turns the carriage return of a bar into a new line; on a terminal a bar is drawn over itself again.
        bar = sys.stderr.isatty() and piece.endswith("\n") and BAR.search(piece) is not None
        if bar:
            piece = f"\r\x1b[2K{piece[:-1]}"
        elif self.on_bar and piece:
            piece = f"\n{piece}"
        if piece:
            self.on_bar = bar
            print(piece, end="", file=sys.stderr, flush=True)
