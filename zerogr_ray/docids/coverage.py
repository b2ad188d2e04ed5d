"""How much of its document's vocabulary a docid covers. It needs the corpus, so a build computes it."""

from __future__ import annotations

import math
from collections import Counter
from typing import Any

from zerogr_ray.corpus.terms import SAMPLE, Frequencies, terms, whole_texts
from zerogr_ray.stage import Output, sample_shards


def covered(docid: str, text: str, known: Frequencies) -> tuple[float, float]:
    """Share of the docid's words that occur in the document, and share of the document's tf-idf mass that it covers.

    A word occurs if all its terms do. The mass of a term is tf · ln((1 + N) / DF), tf in the document, DF among the N
    documents of the corpus; the docid covers the terms that it holds.
    """
    counts = Counter(terms(text))
    words = docid.split()
    mass = {term: tf * math.log((1 + known.documents) / known.of(term)) for term, tf in counts.items()}
    held = mass.keys() & set(terms(docid))
    occurring = sum(counts.keys() >= set(terms(word)) for word in words)
    return occurring / max(1, len(words)), sum(map(mass.__getitem__, held)) / (sum(mass.values()) or 1.0)


def coverage(source: Output, docids: Output, sizes: dict[str, int], known: Frequencies) -> dict[str, Any]:
    """Means of `covered` over the documents, of a large corpus over SAMPLE of them; the share that an LM wrote."""
    words = mass = 0.0
    documents = written = 0
    for shard in sample_shards(sizes, SAMPLE):
        rows = docids.folder.read_table(shard, ["docid", "source"]).to_pylist()
        for row, text in zip(rows, whole_texts(source, shard), strict=True):
            found, share = covered(row["docid"], text, known)
            words, mass = words + found, mass + share
            written += row["source"] != "fallback"
            documents += 1
    figures = {"words_in_document": words, "tfidf_covered": mass, "written_by_lm": written}
    return {"documents": documents, **{name: round(total / max(1, documents), 4) for name, total in figures.items()}}
