"""Cutting text at words. A word is a run without spaces, or one character of a script that writes none."""

from __future__ import annotations

import re
from itertools import islice

# Thai to Burmese, Khmer, kana, Chinese: scripts without spaces between words.
UNSPACED = (
    "\u0e00-\u0eff\u1000-\u109f\u1780-\u17ff\u3040-\u30ff\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff\U00020000-\U0003ffff"
)
# An unspaced character takes the punctuation behind it along. A run of 64 characters is cut: it is data, not a word.
WORD = re.compile(rf"[{UNSPACED}][^\w\s]*|[^\s{UNSPACED}]{{1,64}}")
SENTENCE_END = re.compile(r"[.!?…。！？][\"'”’)\]」』]*$")


def truncate_words(text: str, words: int) -> str:
    """The first `words` words, as they stand in the text; the text itself if it has no more."""
    end = 0
    for match in islice(WORD.finditer(text), words + 1):
        if words == 0:
            return text[:end].rstrip()
        end, words = match.end(), words - 1
    return text


def passages(text: str, words: int, most: int) -> list[str]:
    """At most `most` passages of at most `words` words (1 or more), in order, spread evenly over the text.

    A passage ends at a sentence end if one lies in the second half of its window. White space becomes one space.
    Passages without a letter or digit, and repetitions, are left out.
    """
    spans = [match.span() for match in WORD.finditer(text)]
    found: dict[str, None] = {}
    first = 0
    while first < len(spans):
        end = _window_end(text, spans, first, words)
        passage = " ".join(text[spans[first][0] : spans[end - 1][1]].split())
        if re.search(r"[^\W_]", passage):
            found[passage] = None
        first = end
    kept = list(found)
    return kept if len(kept) <= most else [kept[i * len(kept) // most] for i in range(most)]


def _window_end(text: str, spans: list[tuple[int, int]], first: int, words: int) -> int:
    """Number of the word after the window that begins at word `first`."""
    last = min(first + words, len(spans))
    for end in range(last, first + max(1, words // 2) - 1, -1):
        if end == len(spans):
            return end
        ending, gap = text[slice(*spans[end - 1])], text[spans[end - 1][1] : spans[end][0]]
        if SENTENCE_END.search(ending) or "\n" in gap:
            return end
    return last
