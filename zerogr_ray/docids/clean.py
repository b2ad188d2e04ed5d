"""The one rule that makes a docid of whatever the LM wrote. Nothing is dropped: every document ends with a docid.

1. Take the first line that holds a letter or digit, without a label such as "Keywords:".
2. NFKC, lower case; anything but letters, digits, and . _ - + # between them becomes a space.
3. Drop articles, pronouns, prepositions, auxiliaries, and words said before.
4. Keep the first `max_words` words and at most 96 characters.
5. If nothing is left, do the same with the title, the text, and the docno; a docno without a letter or digit is
   taken as it stands.
"""

from __future__ import annotations

import re
import unicodedata

MAX_CHARS = 96

STOP_WORDS = frozenset(
    """
    a an the this that these those it its they them their he his she her we our you your i my me
    of in on at by for from with without into onto to as and or nor but if than then so such via per
    is are was were be been being am do does did done has have had can could will would shall should may might must
    there here which who whom whose what when where why how not no also any all each some
    """.split()
)

_LABEL = re.compile(
    r"^\W*(?:key\s?words?|key terms?|terms|docid|identifier|answer|title|document|tags)\W*(?::|[\-–—]\s)\s*", re.I
)


def clean_docid(written: str, title: str, text: str, docno: str, max_words: int) -> tuple[str, str]:
    """The docid and where it comes from: "lm" or "fallback"."""
    for line in written.splitlines():
        if docid := _normal(_LABEL.sub("", line), max_words):
            return docid, "lm"
    for other in (title, text[:2000], docno):
        if docid := _normal(other, max_words):
            return docid, "fallback"
    return docno, "fallback"


def words_of(text: str) -> list[str]:
    """The words of `text` as a docid may hold them, stop words and repetitions included."""
    text = unicodedata.normalize("NFKC", text).lower()
    # Combining marks are parts of letters: without them Hindi and Thai words fall to pieces.
    letters = (c if c.isalnum() or c in "._-+#" or unicodedata.category(c)[0] == "M" else " " for c in text)
    runs = (run.lstrip("._-+#").rstrip("._-") for run in "".join(letters).split())
    return [run for run in runs if any(map(str.isalnum, run))]


def _normal(line: str, max_words: int) -> str:
    words = words_of(line)
    kept = list(dict.fromkeys(word for word in words if word not in STOP_WORDS)) or list(dict.fromkeys(words))
    docid = " ".join(kept[:max_words])
    if len(docid) > MAX_CHARS:
        docid = docid[:MAX_CHARS].rpartition(" ")[0] or docid[:MAX_CHARS]
    return docid
