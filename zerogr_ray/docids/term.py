"""One more word for documents that share a docid: the LM's, else a rule's.

Asked outright for a word that only this document has, a small LM repeats what the documents have in common. So it is
shown what they have not: the lines and sentences with a word that another document of the group lacks. Of that it
writes a docid as of any document (generate.py), and the word of it that the fewest others have is the one.
"""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import count
from typing import TYPE_CHECKING, NamedTuple

from zerogr_ray.config import DocIdConfig
from zerogr_ray.corpus.terms import STOP_WORDS, Frequencies, terms
from zerogr_ray.docids.clean import first_words, words_of
from zerogr_ray.docids.generate import docid_prompt
from zerogr_ray.generation.engine import Engine, Sampling

if TYPE_CHECKING:
    import pyarrow as pa

LONG = 24
"""Characters beyond which the rule takes a word only if there is no other."""

_PARTS = re.compile(r"(?<=[.!?;])\s+|\n+")


class Difference(NamedTuple):
    """What sets a text apart from others."""

    text: str
    """Its lines and sentences that hold one of the words."""
    words: list[str]
    """Words of it that not every text has."""
    times: list[int]
    """How many of the texts have each."""


def differences(texts: Sequence[str], without: Sequence[set[str]]) -> Iterator[Difference]:
    """For each of these different texts what sets it apart from the rest; the words of its `without` do not count."""
    among = Counter(word for text in texts for word in set(words_of(text)))
    for text, known in zip(texts, without, strict=True):
        no = known | STOP_WORDS
        own = dict.fromkeys(word for word in words_of(text) if among[word] < len(texts) and word not in no)
        parts = [part for part in _PARTS.split(text) if not own.keys().isdisjoint(words_of(part))]
        yield Difference("\n".join(parts), list(own), [among[word] for word in own])


@dataclass(frozen=True)
class AddTerm:
    """Ask the LM for one more word for every document of a shard."""

    cfg: DocIdConfig
    name: str = "terms"

    def __call__(self, documents: pa.Table, engine: Engine) -> pa.Table:
        """For each row (docno, the columns of Difference) its docno and `term`; "" where the LM wrote none of them."""
        import pyarrow as pa

        rows = documents.to_pylist()
        prompts = [docid_prompt(engine.format, self.cfg, "", row["text"]) for row in rows]
        written = engine.generate(engine.format.tokens(prompts), Sampling(self.cfg.max_new_tokens), seed=0)
        found = [
            rarest(answers[0], dict(zip(row["words"], row["times"], strict=True)))
            for row, answers in zip(rows, written, strict=True)
        ]
        return pa.table({"docno": documents["docno"], "term": pa.array(found, pa.string())})


def rarest(written: str, times: dict[str, int]) -> str:
    """The word of what the LM wrote that the fewest texts have, the first of equals; "" where it wrote none of them."""
    return min((word for word in first_words(written) if word in times), key=lambda word: times[word], default="")


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
