"""One more word for documents that share a docid: the LM's, else a rule's."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import count
from typing import TYPE_CHECKING

from zerogr_ray.config import DocIdConfig
from zerogr_ray.corpus.terms import STOP_WORDS, Frequencies, terms
from zerogr_ray.docids.clean import first_words, words_of
from zerogr_ray.docids.generate import show
from zerogr_ray.generation.engine import Engine, Sampling
from zerogr_ray.generation.examples import EXAMPLES

if TYPE_CHECKING:
    import pyarrow as pa

PROMPT = (
    "Several documents have the same keywords. Write one more word from this document that only this document has: "
    "a name, a number or a special term."
)

TERMS = ("chlorophyll", "merging", "placebo", "twelve", "14 days", "walls", "rovers", "fridge")
"""What the worked examples answer."""

MAX_TOKENS = 8
LONG = 24
"""Characters beyond which a word is taken only if there is no other."""


@dataclass(frozen=True)
class AddTerm:
    """Ask the LM for one more word for every document of a shard."""

    cfg: DocIdConfig
    known: Frequencies | None = None
    """Of the corpus: its common words are no answer, and its documents' telling lines are shown."""
    name: str = "terms"

    def __call__(self, documents: pa.Table, engine: Engine) -> pa.Table:
        """For each row (docno, title, text, tried) its docno and `term`: "" where the LM wrote none that will do.

        `tried` is the docid and the words that did not tell the document from others.
        """
        import pyarrow as pa

        rows = documents.to_pylist()
        known = self.known if self.cfg.pick_lines else None
        examples = zip(EXAMPLES[: self.cfg.examples], TERMS, strict=False)
        turns = [(_asked(example.document, example.docid), term) for example, term in examples]
        prompts = [
            engine.format.render(
                PROMPT,
                _asked(show(row["title"], row["text"], engine.format, self.cfg.doc_tokens, known), row["tried"]),
                turns,
            )
            for row in rows
        ]
        written = engine.generate(engine.format.tokens(prompts), Sampling(MAX_TOKENS), seed=0)
        found = [
            clean_term(answers[0], row["tried"], f"{row['title']}\n{row['text']}", self.known)
            for row, answers in zip(rows, written, strict=True)
        ]
        return pa.table({"docno": documents["docno"], "term": pa.array(found, pa.string())})


def _asked(shown: str, docid: str) -> str:
    return f"{shown}\nKeywords of several documents: {docid}"


def clean_term(written: str, tried: str, text: str, known: Frequencies | None = None) -> str:
    """The first word of the first line written that will do, else "".

    It must not have been tried, occur in the document, be no stop word and not be common in the corpus.
    """
    have, there = set(tried.split()), set(terms(text))
    for word in first_words(written):
        parts = set(terms(word))
        telling = known is None or not all(map(known.common, parts))
        if telling and parts <= there and word not in have and word not in STOP_WORDS:
            return word
    return ""


def distinguish(
    docid: str, texts: Sequence[str], frequencies: Frequencies | None, taken: Callable[[str], bool]
) -> list[str]:
    """A docid of its own for each of these different texts, two or more, which share `docid`, by a rule.

    Each text in turn adds its best word w that makes a docid which is not `taken`: the highest

        tf(w) · ln(n / df(w)) · ln((1 + N) / DF(w)),

    tf in the text, df among the n texts, DF among the N documents of the corpus (of the rarest term of w), the first
    in the text where two are equal. After these come words of all n texts that this one has more often than any other,
    by the difference times the last factor. Words in the docid and stop words are left out; those of less than two
    letters or more than 24 characters are taken only if there is no other. The first text that has no word left keeps
    the docid; the next ones add a number.
    """
    have = set(docid.split()) | STOP_WORDS
    counts = [Counter(word for word in words_of(text) if word not in have) for text in texts]
    among = Counter(word for words in counts for word in words)
    most = {word: sorted(words[word] for words in counts)[-2:] for word, df in among.items() if df == len(texts) > 1}
    made: list[str] = []
    new: set[str] = set()
    for words in counts:

        def worth(word: str, tf: Counter[str] = words) -> tuple[bool, bool, float]:
            plain = sum(map(str.isalpha, word)) >= 2 and len(word) <= LONG
            own = tf[word] * math.log(len(texts) / among[word]) or tf[word] - most[word][0]
            return plain, word not in most, own * _rarity(word, frequencies)

        able = (word for word in words if word not in most or words[word] > most[word][0])
        options = [f"{docid} {word}" for word in sorted(able, key=worth, reverse=True)]
        options += [docid] if docid not in new else []
        numbers = (f"{docid} {number}" for number in count(2))
        free = (option for option in options if option not in new and (option == docid or not taken(option)))
        chosen = next(free, None) or next(option for option in numbers if option not in new and not taken(option))
        new.add(chosen)
        made.append(chosen)
    return made


def _rarity(word: str, frequencies: Frequencies | None) -> float:
    if frequencies is None:
        return 1.0
    rarest = min((frequencies.of(term) for term in terms(word)), default=1)
    return math.log((1 + frequencies.documents) / rarest)
