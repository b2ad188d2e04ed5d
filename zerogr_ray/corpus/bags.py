"""What a document is about: a sparse vector over words, with the weights of BM25 (k1 = K1, b = B).

    weight(w, d)  =  bm25(w, d) / sqrt(|bm25(d)| · mean |bm25|)
    bm25(w, d)    =  idf(w) · n (k1 + 1) / (n + k1 (1 − b + b · |d| / mean |d|)),    n = times that d holds word w
    idf(w)        =  ln(1 + (N − df(w) + 1/2) / (df(w) + 1/2))

That lies between BM25, which does not look at the vector's length, and the cosine, which divides by it. Only the MOST
heaviest words are kept; a weight is stored in steps of 1 / STEPS.

A word is the family of a term (see `families`), hashed to one of BUCKETS numbers. The next-token distribution of an LM
is a vector over tokens; what it expects of a word is what it expects of the token that begins the word as it is mostly
written. Planning ahead compares the two (see decoding/plan.py).

A bag may hold gists too: tokens that the LM itself would name of the document (see decoding/gists.py). Token v of the
vocabulary is then word BUCKETS + v, and begins with itself.
"""

from __future__ import annotations

import zlib
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from zerogr_ray.cache import here
from zerogr_ray.corpus.terms import SAMPLE, STOP_WORDS, stemmed, terms, texts_of, whole_texts
from zerogr_ray.stage import Output, ShardWorker, Spent, map_shards, sample_shards
from zerogr_ray.store import map_arrays, save_arrays

if TYPE_CHECKING:
    from zerogr_ray.chat import PromptFormat

K1, B = 1.2, 0.75

MOST = 256
"""Words of a document that are kept."""

BUCKETS = 1 << 20
"""Numbers that words are hashed to: two of a million words share one now and then, as two meanings share a word."""

FAMILY = 7
"""Letters of a stem by which words are told apart (a truncated stem; McNamee and Mayfield, 2004)."""

RECODED = {
    "fi": "f",  # classify, classification
    "nit": "n",  # recognition, recognize
    "ript": "rib",  # description, describe
    "ceiv": "cept",  # perceive, perception
    "olut": "olv",  # resolution, resolve
    "umpt": "um",  # assumption, assume
    "orpt": "orb",  # absorption, absorb
    "thesi": "thes",  # synthesis, synthesize
}
"""Endings of stems that English writes in two ways and Snowball leaves apart (as Lovins's stemmer recodes; 1968)."""

STEPS = 128
"""Weights are multiples of 1 / STEPS, and below 2."""

FLOOR = 1.0
"""Nats by which the LM has to hold a token for likelier than for any text, for it to count as asked for."""

UNKNOWN = np.uint32(0xFFFFFFFF)
"""In place of a token: no document that was counted has this word."""

BAG = pa.schema([("words", pa.list_(pa.uint32())), ("weights", pa.list_(pa.uint8()))])
"""One row per document: its words, ascending, and the weight of each in steps; both empty for a text of no terms."""

ARRAYS = ("first", "words", "weights", "begins")

Ints = NDArray[Any]


@dataclass(frozen=True, eq=False)
class Bags:
    """The bags of D documents, laid end to end.

    first    (D + 1,)  bag i is words[first[i] : first[i + 1]]
    words    (P,)      ascending within a bag
    weights  (P,)      how much each counts, in steps of 1 / STEPS
    begins   (H,)      for every word there may be, the LM's token that begins it, or UNKNOWN
    prior    (V,)      with gists, the mean log-probability of each token where texts that ask for nothing stand for
                       the query; None without
    """

    first: Ints
    words: Ints
    weights: Ints
    begins: Ints
    prior: NDArray[np.float32] | None = None

    def __len__(self) -> int:
        return len(self.first) - 1

    @classmethod
    def of(cls, tables: Iterable[pa.Table], begins: Ints) -> Bags:
        """Those of tables of schema BAG, one after the other."""
        lengths, words, weights = [np.zeros(1, np.int64)], [np.zeros(0, np.uint32)], [np.zeros(0, np.uint8)]
        for table in tables:
            for batch in table.to_batches():
                lengths.append(pc.list_value_length(batch["words"]).to_numpy().astype(np.int64))
                words.append(batch["words"].flatten().to_numpy())
                weights.append(batch["weights"].flatten().to_numpy())
        return cls(np.cumsum(np.concatenate(lengths)), np.concatenate(words), np.concatenate(weights), begins)

    def take(self, rows: Ints) -> Bags:
        """The bags of these documents, in this order."""
        starts = self.first[rows].astype(np.int64)
        first, where = laid_out(starts, self.first[np.asarray(rows) + 1].astype(np.int64) - starts)
        return Bags(first, self.words[where], self.weights[where], self.begins, self.prior)

    def join(self, other: Bags) -> Bags:
        """These and then those."""
        first = np.concatenate([self.first[:-1].astype(np.int64), other.first.astype(np.int64) + int(self.first[-1])])
        pairs = ((self.words, other.words), (self.weights, other.weights))
        words, weights = (np.concatenate(pair) for pair in pairs)
        return Bags(first, words, weights, self.begins, self.prior)

    def with_gists(self, tables: Iterable[pa.Table], prior: NDArray[np.float32]) -> Bags:
        """These bags, each with the tokens in its row of `tables`, schema BAG, beside its words."""
        begins = np.concatenate([self.begins, np.arange(len(prior), dtype=np.uint32)])
        gists = Bags.of(tables, begins)
        own, more = self.first.astype(np.int64), gists.first
        first = own + more
        words, weights = np.empty(first[-1], dtype=np.uint32), np.empty(first[-1], dtype=np.uint8)
        place = np.arange(own[-1]) + np.repeat(more[:-1], np.diff(own))  # what of the gists comes before
        words[place], weights[place] = self.words, self.weights
        place = np.arange(more[-1]) + np.repeat(own[1:], np.diff(more))
        words[place], weights[place] = gists.words, gists.weights
        return Bags(first, words, weights, begins, prior)

    def save(self, folder: Path) -> None:
        """Write the arrays as `folder`/*.npy."""
        save_arrays(folder, {name: getattr(self, name) for name in ARRAYS})

    @classmethod
    def open(cls, folder: str | Path) -> Bags:
        """Map the arrays that `save` wrote; of a folder under s3://, in this machine's copy."""
        return cls(**map_arrays(here(folder, [f"{name}.npy" for name in ARRAYS]), ARRAYS))


def laid_out(starts: Ints, lengths: Ints) -> tuple[Ints, Ints]:
    """m ranges of positions laid end to end: where each begins in the row, (m + 1,), and the positions themselves."""
    at = np.concatenate([[0], np.cumsum(lengths)])
    return at, np.repeat(starts - at[:-1], lengths) + np.arange(at[-1])


def words_of(text: str) -> Counter[int]:
    """How often each word comes in a text, stop words left out."""
    return Counter(map(_bucket, families([term for term in terms(text) if term not in STOP_WORDS])))


def families(terms: list[str]) -> list[str]:
    """What each term and its derivations have in common: of its stem, recoded, the first FAMILY letters.

    A term with a digit stays as long as its stem is: part numbers often begin alike.
    """
    found = []
    for stem in stemmed(terms):
        ending = next((end for end in RECODED if stem.endswith(end) and len(stem) > len(end) + 2), "")
        stem = stem.removesuffix(ending) + RECODED.get(ending, "")
        found.append(stem[:FAMILY] if stem.isalpha() else stem)
    return found


def query_bag(query: str) -> tuple[Ints, NDArray[np.float32]]:
    """(words, weights): the query's own words, each as much as any other, at unit length."""
    words = np.array(sorted(words_of(query)), dtype=np.int64)
    return words, np.full(len(words), len(words) ** -0.5 if len(words) else 0.0, dtype=np.float32)


def first_tokens(fmt: PromptFormat, texts: Iterable[str]) -> Ints:
    """(BUCKETS,): the token that begins each word of these texts, in a sentence, as it is written most often."""
    forms = Counter(term for text in texts for term in terms(text) if term not in STOP_WORDS)
    often: dict[int, str] = {}
    for form, family in zip(forms, families(list(forms)), strict=True):
        known = often.setdefault(_bucket(family), form)
        if (forms[form], known) > (forms[known], form):  # of equals the first in the alphabet
            often[_bucket(family)] = form
    begins = np.full(BUCKETS, UNKNOWN)
    if often:
        begins[list(often)] = [tokens[0] for tokens in fmt.tokens([f" {form}" for form in often.values()])]
    return begins


def _bucket(family: str) -> int:
    return zlib.crc32(family.encode()) % BUCKETS


@dataclass(frozen=True, eq=False)
class WordStatistics:
    """What weights depend on beside the document."""

    documents: int
    length: float
    """Mean number of words of a document."""
    held_H: NDArray[np.int32]
    """(BUCKETS,) documents that hold each word."""
    norm: float = 1.0
    """Mean length of the vectors of BM25 weights."""

    @classmethod
    def counted(cls, counts: Sequence[Counter[int]]) -> WordStatistics:
        """Of documents with these words."""
        held = np.zeros(BUCKETS, dtype=np.int32)
        for some in counts:
            held[list(some)] += 1
        length = max(1.0, sum(some.total() for some in counts) / max(1, len(counts)))
        bare = cls(len(counts), length, held)
        norms = [norm for some in counts if (norm := float(np.linalg.norm(bare.bm25(some)[1])))]
        return cls(len(counts), length, held, float(np.mean(norms)) if norms else 1.0)

    def bm25(self, counts: Counter[int]) -> tuple[Ints, NDArray[np.float64]]:
        """(words, weights) of one document, the MOST heaviest, words ascending."""
        words = np.array(sorted(counts), dtype=np.int64)
        times = np.array([counts[word] for word in words.tolist()], dtype=np.float64)
        held = np.minimum(self.held_H[words], self.documents)
        idf = np.log1p((self.documents - held + 0.5) / (held + 0.5))
        weights = idf * times * (K1 + 1) / (times + K1 * (1 - B + B * times.sum() / self.length))
        kept = np.sort(np.argsort(-weights, kind="stable")[:MOST])
        return words[kept], weights[kept]

    def bag(self, counts: Counter[int]) -> tuple[Ints, Ints]:
        """(words, weights in steps) of one document."""
        words, weights = self.bm25(counts)
        scale = STEPS / max(float(np.linalg.norm(weights)) * self.norm, 1e-9) ** 0.5
        steps = np.minimum(np.rint(scale * weights), 255).astype(np.int64)
        return words[steps > 0], steps[steps > 0]


def unit_bag(weights_V: NDArray[np.floating], most: int, by_V: NDArray[np.floating]) -> tuple[Ints, Ints]:
    """The `most` tokens that are best by `by_V`: (words from BUCKETS on, ascending; weights in steps, at unit length).

    Tokens of weight 0 are left out.
    """
    tokens = np.argsort(-by_V, kind="stable")[:most]
    weights = weights_V[tokens] / max(float(np.linalg.norm(weights_V[tokens])), 1e-9)
    steps = np.rint(STEPS * weights).astype(np.int64)
    kept = np.flatnonzero(steps)
    order = kept[np.argsort(tokens[kept])]
    return BUCKETS + tokens[order], steps[order]


def added(one: pa.Table, other: pa.Table) -> pa.Table:
    """Two tables of schema BAG over the same documents as one: what both hold counts as much as in both together."""
    return _sum(one, other, 1)


def taken_off(both: pa.Table, other: pa.Table) -> pa.Table:
    """What `other` was `added` to; of a weight that reached the most there may be, what went beyond is lost."""
    return _sum(both, other, -1)


def _sum(one: pa.Table, other: pa.Table, sign: int) -> pa.Table:
    (rows, words, weights), (more, others, counts) = _flat(one), _flat(other)
    rows, words = np.concatenate([rows, more]), np.concatenate([words, others])
    weights = np.concatenate([weights.astype(np.int64), sign * counts.astype(np.int64)])
    order = np.lexsort((words, rows))
    rows, words, weights = rows[order], words[order], weights[order]
    first = np.flatnonzero(np.diff(rows, prepend=-1) | np.diff(words.astype(np.int64), prepend=-1))
    sums = np.minimum(np.add.reduceat(weights, first), 255) if len(first) else weights
    if sign < 0:
        first, sums = first[sums > 0], sums[sums > 0]
    starts = np.searchsorted(rows[first], np.arange(one.num_rows + 1)).astype(np.int32)
    columns = [pa.array(words[first], pa.uint32()), pa.array(sums, pa.uint8())]
    return pa.table([pa.ListArray.from_arrays(starts, column) for column in columns], schema=BAG)


def _flat(table: pa.Table) -> tuple[Ints, Ints, Ints]:
    """(row, word, weight) of everything in a table of schema BAG."""
    words, weights = (table[name].combine_chunks() for name in ("words", "weights"))
    rows = np.repeat(np.arange(table.num_rows), words.value_lengths().to_numpy(zero_copy_only=False))
    return rows, words.flatten().to_numpy(), weights.flatten().to_numpy()


def make_bags(texts: Sequence[str], statistics: WordStatistics | None = None) -> pa.Table:
    """The bag of each text, schema BAG; without `statistics`, by those of the texts themselves."""
    counts = [words_of(text) for text in texts]
    known = statistics or WordStatistics.counted(counts)
    bags = [known.bag(some) for some in counts]
    return pa.table([[bag[0] for bag in bags], [bag[1] for bag in bags]], schema=BAG)


@dataclass(frozen=True)
class WeighWords:
    """The task of the stage's workers."""

    statistics: WordStatistics
    name: str = "bags"

    def __call__(self, documents: pa.Table, engine: None) -> pa.Table:
        """Rows of BAG, one per document."""
        return make_bags(texts_of(documents), self.statistics)


class Weigher(ShardWorker):
    """The Ray Data actor around WeighWords."""

    def work(self, shard: str, task: WeighWords, output: Output) -> tuple[int, int]:
        """Weigh one shard."""
        bags = task(self.source.folder.read_table(shard, ["title", "text"]), None)
        output.folder.write_table(shard, bags)
        return bags.num_rows, 0


def write_bags(
    source: Output,
    bags: Output,
    fmt: PromptFormat,
    sizes: dict[str, int],
    actors: int,
    quiet: bool = False,
    pool: Mapping[str, Any] = MappingProxyType({}),
) -> dict[str, Spent]:
    """Fill `bags` with a row of BAG for every document of the normalised corpus, and its folder with the same as Bags.

    Frequencies are counted over SAMPLE documents at most, in shards spread evenly over the corpus. `pool` are
    options of Ray for the workers. Returns what the workers took.
    """
    if bags.done() is not None:
        return {}
    texts = [text for shard in sample_shards(sizes, SAMPLE) for text in whole_texts(source, shard)]
    begins = first_tokens(fmt, texts)
    task = WeighWords(WordStatistics.counted(list(map(words_of, texts))))
    spent = map_shards(source, [(task, bags)], Weigher, {}, {"num_cpus": 1, **pool}, actors, sizes.__getitem__, quiet)
    joined = Bags.of((bags.folder.read_table(shard) for shard in bags.shards()), begins)
    if bags.folder.local:
        joined.save(Path(bags.folder.path))
    else:
        with TemporaryDirectory(prefix="zerogr-bags-") as folder:
            joined.save(Path(folder))
            bags.folder.upload(Path(folder))
    bags.finish(sum(sizes.values()))
    return spent
