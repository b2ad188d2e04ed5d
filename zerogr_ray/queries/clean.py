"""The one rule that makes pseudo-queries of whatever the LM wrote.

1. Take the first line that holds a letter or digit, without a label such as "Query:" and without quotation marks.
2. Collapse white space and control characters; keep the first `max_words` words and at most 400 characters.
3. If nothing is left, a passage of the document stands in, then its title, then its docno.
"""

from __future__ import annotations

import re

MAX_CHARS = 400

_LABEL = re.compile(
    r"^\W*(?:search\s+)?(?:query|question|answer|q|keywords?|claim|statement|request)\s*\d*\s*(?::|[\-–—]\s)\s*", re.I
)
_QUOTES = "\"'`“”‘’«» \t"


def clean_query(written: str, max_words: int) -> str:
    """One query on one line, or "" if nothing usable was written."""
    for line in written.splitlines():
        words = "".join(c if c.isprintable() else " " for c in _LABEL.sub("", line.strip(_QUOTES))).split()
        query = " ".join(words[:max_words])[:MAX_CHARS].strip(_QUOTES)
        if any(c.isalnum() for c in query):
            return query
    return ""


def clean_queries(written: list[str], stand_ins: list[str], max_words: int) -> list[str]:
    """One query per text written, in order; `stand_ins` (never empty) replace unusable ones in turn."""
    cleaned = [clean_query(text, max_words) for text in written]
    return [query or stand_ins[i % len(stand_ins)] for i, query in enumerate(cleaned)]


def is_copy(query: str, title: str, text: str) -> bool:
    """Whether the query is its document, text or title and text, but for case, white space and the last stop.

    Such a query teaches to copy.
    """
    return _bare(query) in (_bare(text), _bare(f"{title} {text}"))


def _bare(words: str) -> str:
    return " ".join(words.lower().split()).rstrip(" .?!")
