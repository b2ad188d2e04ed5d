"""Which lines of a document to show where there is no room for all: those that say what this document is.

The rule, for any text:

1. A line is *silent* if all its terms but stop words occur in more than half of the corpus's documents (or it has no
   term); a *sentence* if 8 plain words or more make up at least 60 % of its characters; *data* otherwise.
   A plain word is one of letters, with hyphens and apostrophes, perhaps with an opening bracket before and punctuation
   behind it; of a script without spaces, every letter.
2. If 60 % of the characters of what fits from the beginning are in sentences, the beginning is shown as it is.
3. Else sentences get three quarters of the room (all that data lines leave, if those need less than a quarter), data
   lines the rest, silent lines what is then left: of each sort the first lines, the last one cut. They are shown in
   the document's order.

So prose keeps its beginning, code without sentences loses nothing but silent lines, and a record of fields shows its
description, then its first fields.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from typing import Literal

from zerogr_ray.corpus.terms import STOP_WORDS, Frequencies, terms
from zerogr_ray.corpus.text import UNSPACED

Sort = Literal["sentence", "data", "silent"]

WORDS = 8
"""Plain words of a sentence, at least."""
PROSE = 0.6
"""Share of characters: of a line's in plain words, of the beginning's in sentences."""
ROOM = 0.75
"""Share of the room that sentences get."""

_PLAIN = re.compile(rf"(?<![^\s(])[^\W\d_{UNSPACED}]+(?:[-'’][^\W\d_]+)*(?=[.,;:!?)]{{0,2}}(?!\S))|[{UNSPACED}]")


def sort_of(line: str, known: Frequencies) -> Sort:
    """Whether a line is a sentence, data or silent."""
    own = [term for term in terms(line) if term not in STOP_WORDS]
    if all(map(known.common, own)):
        return "silent"
    plain = _PLAIN.findall(line)
    characters = len("".join(line.split()))
    return "sentence" if len(plain) >= WORDS and sum(map(len, plain)) >= PROSE * characters else "data"


def pick_lines(
    text: str, beginning: str, room: int, known: Frequencies, cost: Callable[[Sequence[str]], list[int]]
) -> list[tuple[str, int]] | None:
    """The lines of `text` to show, with the tokens that each may take; None where its `beginning` should be shown.

    `room` is in tokens, as is what `cost` gives for each of several lines; `beginning` is what of `text` fits into it.
    """
    lines = text.splitlines(keepends=True)
    sorts = [sort_of(line, known) for line in lines]
    seen, prose = 0, 0
    for line, sort in zip(lines, sorts, strict=True):
        fits = len(line[: max(0, len(beginning) - seen)])
        prose += fits if sort == "sentence" else 0
        seen += len(line)
    if prose >= PROSE * len(beginning):
        return None
    costs = cost(lines)
    data = sum(cost for cost, sort in zip(costs, sorts, strict=True) if sort == "data")
    taken = [0] * len(lines)
    _fill(taken, costs, [sort == "sentence" for sort in sorts], max(int(ROOM * room), room - data))
    for sort in ("data", "sentence", "silent"):
        _fill(taken, costs, [other == sort for other in sorts], room - sum(taken))
    chosen = [(line, tokens) for line, tokens in zip(lines, taken, strict=True) if tokens]
    whole = next((place for place, tokens in enumerate(taken) if tokens < costs[place]), len(lines))
    return None if not any(taken[whole + 1 :]) else chosen


def _fill(taken: list[int], costs: list[int], wanted: list[bool], room: int) -> None:
    """Give the wanted lines, in order, what they cost until the room is used up."""
    for place, want in enumerate(wanted):
        if want:
            more = min(costs[place] - taken[place], max(0, room))
            taken[place] += more
            room -= more
