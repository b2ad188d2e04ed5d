"""Terms: what texts are compared by, and how many documents of a corpus hold each."""

from __future__ import annotations

import math
import re
import unicodedata
from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import cache
from importlib import import_module
from typing import Any

from zerogr_ray.corpus.text import UNSPACED
from zerogr_ray.stage import Output, sample_shards

STOP_WORDS = frozenset(
    """
    a an the this that these those it its they them their he his she her we our you your i my me
    of in on at by for from with without into onto to as and or nor but if than then so such via per
    is are was were be been being am do does did done has have had can could will would shall should may might must
    there here which who whom whose what when where why how not no also any all each some
    """.split()
)

SAMPLE = 20_000
"""Documents whose terms are counted, at most: shards spread evenly over the corpus."""

KEPT = 200_000
"""Terms whose counts are kept, the most frequent first: a few MB, which every worker holds."""

FEW = 20
"""In a corpus of fewer documents no term is called common: the counts say too little."""

_TERM = re.compile(rf"[{UNSPACED}]|[^\W_{UNSPACED}]+")


def terms(text: str) -> list[str]:
    """Runs of letters and digits in `text`, caseless, in order; a script without spaces gives its characters."""
    return _TERM.findall((text if text.isascii() else unicodedata.normalize("NFKC", text)).casefold())


def stems(text: str) -> list[str]:
    """The terms of `text` without stop words, stemmed (Snowball English); stop words are all it may have."""
    found = terms(text)
    kept = [term for term in found if term not in STOP_WORDS] or found
    return stemmed(kept)


def stemmed(terms: list[str]) -> list[str]:
    """The stem of each term (Snowball English)."""
    return list(_stemmer().stemWords(terms))


@cache
def _stemmer() -> Any:
    return import_module("Stemmer").Stemmer("english")


@dataclass(frozen=True)
class Frequencies:
    """In how many of `documents` documents each term occurs; terms that are not listed are in one or none."""

    documents: int
    counts: dict[str, int]

    def of(self, term: str) -> int:
        """Documents that hold `term`, at least 1."""
        return max(1, self.counts.get(term, 0))

    def common(self, term: str) -> bool:
        """Whether more than half of the documents hold `term`: it does not tell one from another."""
        return self.documents >= FEW and 2 * self.of(term) > self.documents

    def idf(self, term: str) -> float:
        """ln((N + 1) / (n + 1)); 0 for a term that every document holds."""
        return math.log((self.documents + 1) / (self.of(term) + 1))

    @classmethod
    def counted(cls, texts: Iterable[str], terms_of: Callable[[str], Iterable[str]] = terms) -> Frequencies:
        """Counts over `texts` of what `terms_of` finds in each."""
        counts: Counter[str] = Counter()
        documents = 0
        for text in texts:
            documents += 1
            counts.update(set(terms_of(text)))
        # Ties are cut in the order of the terms, so that the same corpus gives the same counts.
        most = sorted(((-n, term) for term, n in counts.items() if n > 1))[:KEPT]
        return cls(documents, {term: -n for n, term in most})


def corpus_frequencies(source: Output, sizes: dict[str, int], output: Output) -> Frequencies:
    """Frequencies in the normalised corpus `source`, counted once and kept in `output`."""
    import pyarrow as pa

    if (manifest := output.done()) is not None:
        table = output.folder.read_table("terms.parquet")
        counts = zip(table["term"].to_pylist(), table["documents"].to_pylist(), strict=True)
        return Frequencies(manifest["documents"], dict(counts))
    shards = sample_shards(sizes, SAMPLE)
    found = Frequencies.counted(text for shard in shards for text in whole_texts(source, shard))
    columns = {"term": pa.array(list(found.counts), pa.string()), "documents": pa.array(found.counts.values())}
    output.folder.write_table("terms.parquet", pa.table(columns))
    output.finish(len(found.counts), documents=found.documents)
    return found


def whole_texts(source: Output, shard: str) -> list[str]:
    """Title and text of each document of a shard."""
    return texts_of(source.folder.read_table(shard, ["title", "text"]))


def texts_of(documents: Any) -> list[str]:
    """Title and text of each row of an Arrow table of documents."""
    columns = documents["title"].to_pylist(), documents["text"].to_pylist()
    return [f"{title}\n{text}" for title, text in zip(*columns, strict=True)]
