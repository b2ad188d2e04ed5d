"""Whether training resembled the evaluation: nearest training instructions, and test queries in the training pool."""

from __future__ import annotations

import math
import re
import unicodedata
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from zerogr_ray.corpus.fields import RowError, clean, parse_object, pick, text
from zerogr_ray.corpus.files import Source, lines, locate
from zerogr_ray.corpus.text import UNSPACED
from zerogr_ray.errors import InputError
from zerogr_ray.rows import Collection

NEAR_TFIDF = 0.35
"""Cosine from which two instructions are near.

Among the 137 distinct instructions of MAIR and E5, nearly every pair above it is one task in two wordings ("the tool
that can fulfil it", "the tools that are needed to fulfil it": 0.41) or in two domains ("a claim", "a scientific
claim": 0.78); below it, most share only the phrasing of instructions ("in natural language, retrieve the": 0.27).
"""
NEAR_ENCODER = 0.75
"""The same for the cosine of all-MiniLM-L6-v2, by the same pairs: 0.93 and 0.83 for those above, 0.41 for the last."""
NEAR_QUERY = 0.8
"""Jaccard similarity of word trigrams from which two queries are near.

One word changed at the end of 11, or in the middle of 29: copies with small edits, not paraphrases.
"""

POOL_FILES = (".jsonl", ".jsonl.gz", ".ndjson", ".ndjson.gz", ".tsv", ".json")
QUERY_FIELDS = ("query", "question")
EXAMPLES = 3
WORD = re.compile(rf"[{UNSPACED}]|[^\W{UNSPACED}]+")

Similarity = Callable[[list[str], list[str]], NDArray[np.floating[Any]]]
"""n evaluated and m training instructions to their cosines, shape (n, m)."""


@dataclass(frozen=True)
class Pool:
    """What training read: instructions and queries without repetitions, each with the tasks it stood under."""

    instructions: dict[str, tuple[str, ...]]
    queries: dict[str, tuple[str, ...]]


@dataclass(frozen=True)
class Match:
    """One training instruction near the evaluated one."""

    kind: str
    """exact: the same words; near: at or above the threshold; far: below it."""
    similarity: float
    tasks: tuple[str, ...]
    instruction: str


@dataclass(frozen=True)
class Leak:
    """One test query that the training pool holds."""

    kind: str
    """exact: the same words; near: at or above NEAR_QUERY."""
    similarity: float
    qid: str
    query: str
    tasks: tuple[str, ...]
    trained: str


@dataclass(frozen=True)
class Overlap:
    """What one collection shares with the training pool."""

    collection: str
    verdict: str
    """leaked queries: at least one; similar instruction: exact or near, and no query; clean: neither."""
    nearest: list[Match]
    """The nearest training instructions, best first; none if the collection or the pool has no instruction."""
    queries: int
    exact: int
    near: int
    tasks: dict[str, int]
    """Leaked queries by training task."""
    leaks: list[Leak]
    """A few examples, exact ones first, then the most similar."""

    def as_text(self) -> str:
        """One fact a line, in columns between tabs; every line begins with the collection."""
        rows: list[list[object]] = [["verdict", self.verdict]]
        for match in self.nearest:
            tasks = ", ".join(match.tasks)
            rows.append(["instruction", match.kind, f"{match.similarity:.3f}", tasks, match.instruction])
        rows.append(["queries", self.queries, f"{self.exact} exact", f"{self.near} near"])
        rows += [["leaked from", task, count] for task, count in self.tasks.items()]
        for leak in self.leaks:
            rows.append(["leak", leak.kind, f"{leak.similarity:.3f}", leak.qid, leak.query, leak.trained])
        return "\n".join("\t".join(" ".join(str(cell).split()) for cell in [self.collection, *row]) for row in rows)


def overlap(
    pool: Pool, collections: Sequence[Collection], similarity: Similarity | None = None, near: float = NEAR_TFIDF
) -> list[Overlap]:
    """Compare every collection with the training pool.

    Instructions are compared by `similarity`, tf-idf cosine unless given, and are near from `near` on; a collection
    whose queries bring instructions of their own is as near as the nearest of them.
    """
    trained = list(pool.instructions)
    asked = [
        sorted({collection.instruction, *(query.instruction for query in collection.queries)} - {""})
        for collection in collections
    ]
    evaluated = sorted({instruction for instructions in asked for instruction in instructions})
    cosine_ET = (similarity or tfidf_cosine)(evaluated, trained) if evaluated and trained else np.zeros((0, 0))
    index = QueryIndex(list(pool.queries))
    found = []
    for collection, instructions in zip(collections, asked, strict=True):
        rows = [evaluated.index(instruction) for instruction in instructions]
        words = {normalise(instruction) for instruction in instructions}
        nearest = []
        if rows and trained:
            best_T = cosine_ET[rows].max(axis=0)
            for place in np.argsort(-best_T, kind="stable")[:EXAMPLES]:
                value = float(best_T[place])
                kind = "exact" if normalise(trained[place]) in words else "near" if value >= near else "far"
                nearest.append(Match(kind, value, pool.instructions[trained[place]], trained[place]))
        leaks = []
        for query in collection.queries:
            match = index.match(query.text)
            if match:
                kind, value, other = match
                leaks.append(Leak(kind, value, query.qid, query.text, pool.queries[other], other))
        leaks.sort(key=lambda leak: (leak.kind != "exact", -leak.similarity))
        kinds = Counter(leak.kind for leak in leaks)
        similar = any(match.kind != "far" for match in nearest)
        verdict = "leaked queries" if leaks else "similar instruction" if similar else "clean"
        tasks = Counter(task for leak in leaks for task in leak.tasks)
        found.append(
            Overlap(
                collection.name, verdict, nearest, len(collection.queries), kinds["exact"], kinds["near"],
                dict(tasks.most_common()), leaks[:EXAMPLES],
            )
        )  # fmt: skip
    return found


class QueryIndex:
    """An inverted index from word trigrams to training queries: no test query is compared with all of them."""

    def __init__(self, queries: Sequence[str]) -> None:
        self.queries = queries
        self.exact: dict[str, int] = {}
        self.trigrams: list[frozenset[str]] = []
        self.postings: dict[str, list[int]] = defaultdict(list)
        for place, query in enumerate(queries):
            words = normalise(query)
            self.exact.setdefault(words, place)
            self.trigrams.append(_trigrams(words))
            for trigram in self.trigrams[-1]:
                self.postings[trigram].append(place)

    def match(self, query: str) -> tuple[str, float, str] | None:
        """(kind, similarity, training query) of the most similar one, the first of equals; None if none is near.

        A query whose Jaccard similarity with x is t or more has at least t|x| of x's trigrams, and so at least one of
        any |x| - ceil(t|x|) + 1 of them: only the postings of that many, the rarest, are read.
        """
        words = normalise(query)
        if words in self.exact:
            return "exact", 1.0, self.queries[self.exact[words]]
        own = _trigrams(words)
        needed = math.ceil(NEAR_QUERY * len(own) - 1e-9)
        rarest = sorted(own, key=lambda trigram: (len(self.postings.get(trigram, ())), trigram))
        candidates = {place for trigram in rarest[: len(own) - needed + 1] for place in self.postings.get(trigram, ())}
        best = max(((_jaccard(own, self.trigrams[place]), -place) for place in candidates), default=(0.0, 0))
        return ("near", best[0], self.queries[-best[1]]) if best[0] >= NEAR_QUERY else None


def normalise(raw: str) -> str:
    """The words of a text between single spaces: case, punctuation and Unicode forms do not count.

    A text without words stays as it is but for its case and outer space.
    """
    folded = unicodedata.normalize("NFKC", raw).casefold()
    return " ".join(WORD.findall(folded)) or folded.strip()


def tfidf_cosine(evaluated: list[str], trained: list[str]) -> NDArray[np.float64]:
    """Cosine of word 1- to 3-gram vectors, shape (evaluated, trained).

    weight = tf * (ln((1 + N) / (1 + df)) + 1)

    over all N texts given, so that the phrasing which instructions share counts little.
    """
    counts = [_grams(normalise(instruction).split()) for instruction in evaluated + trained]
    df = Counter(gram for grams in counts for gram in grams)
    idf = {gram: math.log((1 + len(counts)) / (1 + texts)) + 1 for gram, texts in df.items()}
    postings: dict[str, list[tuple[int, float]]] = defaultdict(list)
    for column, grams in enumerate(counts[len(evaluated) :]):
        for gram, weight in _unit(grams, idf):
            postings[gram].append((column, weight))
    cosine_ET = np.zeros((len(evaluated), len(trained)))
    for row, grams in enumerate(counts[: len(evaluated)]):
        for gram, weight in _unit(grams, idf):
            columns = [column for column, _ in postings[gram]]
            cosine_ET[row, columns] += weight * np.array([other for _, other in postings[gram]])
    return cosine_ET


def read_pool(path: str, without: Sequence[str] = ()) -> Pool:
    """The instructions and queries of a training pool: one file, or every file of a folder that can be read.

    Rows of .jsonl and of .tsv with a header have `query` (or `question`) or `instruction` or both, and perhaps `task`;
    a .json is an object of task: instruction. A row without a task belongs to one named after its file. `without`
    names tasks that were left out of training.

    Raises InputError for a row that cannot be read, since leaving it out might hide a leak; for a pool without
    queries and instructions; and for a task in `without` that the pool lacks.
    """
    root = locate(path)
    names = [name for name in root.children() if name.lower().endswith(POOL_FILES)] if root.is_folder() else []
    sources = [root / name for name in names] if root.is_folder() else [root]
    instructions: dict[str, dict[str, None]] = {}
    queries: dict[str, dict[str, None]] = {}
    tasks: set[str] = set()
    for source in sources:
        stem = source.name.rsplit("/", 1)[-1].split(".")[0]
        for number, row in _rows(source):
            try:
                task = text("task", row.get("task")).strip() or stem
                instruction = clean(text("instruction", row.get("instruction"))).strip()
                asks = not instruction or any(name in row for name in QUERY_FIELDS)
                query = clean(text(*pick(row, QUERY_FIELDS))).strip() if asks else ""
            except RowError as error:
                raise InputError(f"{source.shown} line {number}: {error}; correct the line") from None
            tasks.add(task)
            if task in without:
                continue
            for found, value in ((instructions, instruction), (queries, query)):
                if value:
                    found.setdefault(value, {})[task] = None
    unknown = sorted(set(without) - tasks)
    if unknown:
        raise InputError(f"{path} has no task {unknown[0]!r}; its tasks are {', '.join(sorted(tasks)) or 'none'}")
    if not instructions and not queries:
        raise InputError(f"{path} holds no training instructions or queries; it reads {', '.join(POOL_FILES)}")
    return Pool(*({value: tuple(under) for value, under in found.items()} for found in (instructions, queries)))


def _rows(source: Source) -> Iterator[tuple[int, dict[str, object]]]:
    """(line, row) of one file of a pool."""
    name = source.name.lower()
    if name.endswith(".json"):
        with source.reading() as stream:
            content = stream.read()
        try:
            for task, instruction in parse_object(content).items():
                yield 1, {"task": task, "instruction": instruction}
        except RowError as error:
            raise InputError(f"{source.shown} is not an object of task: instruction ({error})") from None
        return
    header: list[str] = []
    for number, line in lines(source):
        try:
            if not name.endswith(".tsv"):
                yield number, parse_object(line)
                continue
            cells = line.decode("utf-8").split("\t")
            if header and len(cells) != len(header):
                raise RowError(f"it has {len(cells)} columns, not {len(header)} as the header")
            if header:
                yield number, dict(zip(header, cells, strict=True))
            header = header or cells
        except UnicodeDecodeError:
            raise InputError(f"{source.shown} line {number}: it is not UTF-8; correct the line") from None
        except RowError as error:
            raise InputError(f"{source.shown} line {number}: {error}; correct the line") from None


def _grams(words: list[str]) -> Counter[str]:
    return Counter(" ".join(words[i : i + n]) for n in (1, 2, 3) for i in range(len(words) - n + 1))


def _unit(grams: Counter[str], idf: dict[str, float]) -> list[tuple[str, float]]:
    """The tf-idf vector of one text, at length 1."""
    length = math.hypot(*(tf * idf[gram] for gram, tf in grams.items()))
    return [(gram, tf * idf[gram] / length) for gram, tf in grams.items()]


def _trigrams(words: str) -> frozenset[str]:
    """Word trigrams of a normalised text; a shorter text is its own and only one."""
    split = words.split()
    return frozenset(" ".join(split[i : i + 3]) for i in range(max(1, len(split) - 2)))


def _jaccard(a: frozenset[str], b: frozenset[str]) -> float:
    return len(a & b) / len(a | b)
