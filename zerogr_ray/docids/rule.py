"""The docid of a document by a written rule, with no model: what a docid generator is trained to write.

1. Words are those of a docid (see clean.py): lower case, no stop words. A bare number counts only in the title.
2. The title gives its MOST_OF_TITLE words with the highest tf-idf; the text fills up to MOST with its highest.
3. All are ordered by how many documents of the collection hold them, most first: from general to specific. Ties
   keep the order of the document.

tf-idf is f(w) * ln((N + 1) / (n(w) + 1)), with f(w) the count in title and text, N documents, n(w) of them with w. A
document with fewer different words than MOST has all of them for its docid.
"""

from __future__ import annotations

from collections import Counter

from zerogr_ray.corpus.terms import STOP_WORDS, Frequencies
from zerogr_ray.docids.clean import MAX_CHARS, words_of

MOST = 8
MOST_OF_TITLE = 4


def core_terms(title: str, text: str, frequencies: Frequencies, most: int = MOST) -> str:
    """The docid of a document: at most `most` of its words, from general to specific; "" if it has no word.

    `frequencies` are of the words (see words_of) of the documents of its collection.
    """
    of_title = [word for word in words_of(title) if word not in STOP_WORDS]
    of_text = [word for word in words_of(text) if word not in STOP_WORDS and any(map(str.isalpha, word))]
    counts = Counter(of_title + of_text)

    def best(words: list[str], wanted: int) -> list[str]:
        weighed = sorted(dict.fromkeys(words), key=lambda word: -counts[word] * frequencies.idf(word))
        return weighed[: max(0, wanted)]

    chosen = best(of_title, min(most, MOST_OF_TITLE))
    chosen += best([word for word in of_text if word not in chosen], most - len(chosen))
    # A long title with a short text: its other words are better than none.
    chosen += best([word for word in of_title if word not in chosen], most - len(chosen))
    place = {word: at for at, word in reversed(list(enumerate(of_title + of_text)))}
    ordered = sorted(chosen, key=lambda word: (-frequencies.of(word), place[word]))
    while len(docid := " ".join(ordered)) > MAX_CHARS and len(ordered) > 1:
        ordered.remove(max(ordered, key=len))  # a URL or an identifier; the words around it say more
    return docid[:MAX_CHARS]
