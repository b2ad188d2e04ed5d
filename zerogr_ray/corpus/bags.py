"""What a document is about, in the LM's own tokens: a sparse vector over the vocabulary, with the weights of BM25.

    weight(v, d)  ~  idf(v) · n (k1 + 1) / (n + k1 (1 − b + b · |d| / mean |d|)),    n = times that d holds token v
    idf(v)        =  ln(1 + (N − df(v) + 1/2) / (df(v) + 1/2))

Only the MOST heaviest are kept; a vector has unit length, and a weight is stored in steps of 1/255. The next-token
distribution of an LM is a vector over the same vocabulary: planning ahead compares the two (see decoding/plan.py).
"""

from __future__ import annotations

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
from zerogr_ray.corpus.terms import SAMPLE, STOP_WORDS, terms, texts_of, whole_texts
from zerogr_ray.stage import Output, ShardWorker, Spent, map_shards, sample_shards
from zerogr_ray.store import map_arrays, save_arrays

if TYPE_CHECKING:
    from zerogr_ray.chat import PromptFormat

K1, B = 1.2, 0.5

MOST = 256
"""Tokens of a document that are kept."""

STEPS = 255
"""Weights are multiples of 1 / STEPS."""

FLOOR = 1.0
"""Nats by which the LM has to hold a token for likelier than for any text, for it to count as asked for."""

BAG = pa.schema([("tokens", pa.list_(pa.uint32())), ("weights", pa.list_(pa.uint8()))])
"""One row per document: its tokens, ascending, and the weight of each in steps; both empty for a text of no terms."""

ARRAYS = ("first", "tokens", "weights")

Ints = NDArray[Any]


@dataclass(frozen=True, eq=False)
class Bags:
    """The bags of D documents, laid end to end.

    first    (D + 1,)  bag i is tokens[first[i] : first[i + 1]]
    tokens   (P,)      ascending within a bag
    weights  (P,)      how much each counts, in steps of 1 / STEPS
    """

    first: Ints
    tokens: Ints
    weights: Ints

    def __len__(self) -> int:
        return len(self.first) - 1

    @classmethod
    def of(cls, tables: Iterable[pa.Table]) -> Bags:
        """Those of tables of schema BAG, one after the other."""
        lengths, tokens, weights = [np.zeros(1, np.int64)], [np.zeros(0, np.uint32)], [np.zeros(0, np.uint8)]
        for table in tables:
            for batch in table.to_batches():
                lengths.append(pc.list_value_length(batch["tokens"]).to_numpy().astype(np.int64))
                tokens.append(batch["tokens"].flatten().to_numpy())
                weights.append(batch["weights"].flatten().to_numpy())
        return cls(np.cumsum(np.concatenate(lengths)), np.concatenate(tokens), np.concatenate(weights))

    def take(self, rows: Ints) -> Bags:
        """The bags of these documents, in this order."""
        starts = self.first[rows].astype(np.int64)
        first, where = laid_out(starts, self.first[np.asarray(rows) + 1].astype(np.int64) - starts)
        return Bags(first, self.tokens[where], self.weights[where])

    def join(self, other: Bags) -> Bags:
        """These and then those."""
        first = np.concatenate([self.first[:-1].astype(np.int64), other.first.astype(np.int64) + int(self.first[-1])])
        pairs = ((self.tokens, other.tokens), (self.weights, other.weights))
        return Bags(first, *(np.concatenate(pair) for pair in pairs))

    def save(self, folder: Path) -> None:
        """Write the arrays as `folder`/*.npy."""
        save_arrays(folder, {name: getattr(self, name) for name in ARRAYS})

    @classmethod
    def open(cls, folder: str | Path) -> Bags:
        """Map the arrays that `save` wrote; of a folder under s3://, in this machine's copy."""
        return cls(**map_arrays(cls.fetched(folder), ARRAYS))

    @staticmethod
    def fetched(folder: str | Path) -> Path:
        """The local folder of the arrays that are in `folder`, which may be a URL."""
        return here(folder, [f"{name}.npy" for name in ARRAYS])


def laid_out(starts: Ints, lengths: Ints) -> tuple[Ints, Ints]:
    """m ranges of positions laid end to end: where each begins in the row, (m + 1,), and the positions themselves."""
    at = np.concatenate([[0], np.cumsum(lengths)])
    return at, np.repeat(starts - at[:-1], lengths) + np.arange(at[-1])


def count_tokens(fmt: PromptFormat, texts: Sequence[str]) -> list[Counter[int]]:
    """For each text how often each token comes in its terms, stop words left out; a term as it stands in a sentence."""
    found = [[term for term in terms(text) if term not in STOP_WORDS] for text in texts]
    distinct = list({term for some in found for term in some})
    tokens = dict(zip(distinct, map(set, fmt.tokens([f" {term}" for term in distinct])), strict=True))
    return [Counter(token for term in some for token in tokens[term]) for some in found]


def query_bag(fmt: PromptFormat, query: str) -> tuple[Ints, NDArray[np.float32]]:
    """(tokens, weights): the query's own tokens, each by the square of its share, so that the length is 1."""
    [counts] = count_tokens(fmt, [query])
    weights = np.array(list(counts.values()), dtype=np.float32)
    return np.array(list(counts), dtype=np.int64), weights / max(1.0, float(np.linalg.norm(weights)))


@dataclass(frozen=True, eq=False)
class TokenStatistics:
    """What weights depend on beside the document."""

    documents: int
    length: float
    """Mean number of tokens of a document."""
    held_V: NDArray[np.int64]
    """(V,) documents that hold each token."""

    @classmethod
    def counted(cls, counts: Sequence[Counter[int]], vocab: int) -> TokenStatistics:
        """Of documents with these tokens."""
        held = np.zeros(vocab, dtype=np.int64)
        for some in counts:
            held[list(some)] += 1
        return cls(len(counts), max(1.0, sum(some.total() for some in counts) / max(1, len(counts))), held)

    def bag(self, counts: Counter[int]) -> tuple[Ints, Ints]:
        """(tokens, weights in steps) of one document."""
        tokens = np.array(sorted(counts), dtype=np.int64)
        times = np.array([counts[token] for token in tokens.tolist()], dtype=np.float64)
        held = np.minimum(self.held_V[tokens], self.documents)
        idf = np.log1p((self.documents - held + 0.5) / (held + 0.5))
        weights = idf * times * (K1 + 1) / (times + K1 * (1 - B + B * times.sum() / self.length))
        if len(tokens) > MOST:
            kept = np.sort(np.argsort(-weights, kind="stable")[:MOST])
            tokens, weights = tokens[kept], weights[kept]
        steps = np.rint(STEPS * weights / max(float(np.linalg.norm(weights)), 1e-9)).astype(np.int64)
        return tokens[steps > 0], steps[steps > 0]


def make_bags(fmt: PromptFormat, texts: Sequence[str], statistics: TokenStatistics | None = None) -> pa.Table:
    """The bag of each text, schema BAG; without `statistics`, by those of the texts themselves."""
    counts = count_tokens(fmt, texts)
    known = statistics or TokenStatistics.counted(counts, len(fmt.tokenizer))
    bags = [known.bag(some) for some in counts]
    return pa.table([[bag[0] for bag in bags], [bag[1] for bag in bags]], schema=BAG)


@dataclass(frozen=True)
class WeighTokens:
    """The task of the stage's workers."""

    fmt: PromptFormat
    statistics: TokenStatistics
    name: str = "bags"

    def __call__(self, documents: pa.Table, engine: None) -> pa.Table:
        """Rows of BAG, one per document."""
        return make_bags(self.fmt, texts_of(documents), self.statistics)


class Weigher(ShardWorker):
    """The Ray Data actor around WeighTokens."""

    def work(self, shard: str, task: WeighTokens, output: Output) -> tuple[int, int]:
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
    options of Ray for the workers. Returns what the
    workers took.
    """
    if bags.done() is not None:
        return {}
    counts = [some for shard in sample_shards(sizes, SAMPLE) for some in count_tokens(fmt, whole_texts(source, shard))]
    task = WeighTokens(fmt, TokenStatistics.counted(counts, len(fmt.tokenizer)))
    spent = map_shards(source, [(task, bags)], Weigher, {}, {"num_cpus": 1, **pool}, actors, sizes.__getitem__, quiet)
    joined = Bags.of(bags.folder.read_table(shard) for shard in bags.shards())
    if bags.folder.local:
        joined.save(Path(bags.folder.path))
    else:
        with TemporaryDirectory(prefix="zerogr-bags-") as folder:
            joined.save(Path(folder))
            bags.folder.upload(Path(folder))
    bags.finish(sum(sizes.values()))
    return spent
