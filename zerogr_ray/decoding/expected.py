"""What queries for a document are expected to say: not only in the words that the generator happened to draw.

    a = ln(1 + RISE · p / max(p̄, RARE))                                at unit length

p is the query generator's next-token distribution, averaged over every place of the document's own pseudo-queries; p̄
is the mean of p over documents, so that "how do I" counts for nothing. Of a, the tokens with the largest a · sqrt(p)
are kept. It stands beside the document's gist (decoding/gists.py), and a plan compares it with the query's own tokens
(decoding/plan.py): the query likelihood of a unigram model (Ponte and Croft, 1998) that an LM has smoothed.

It is computed once, when the index is built, by the LM that wrote the queries, on Ray Data shard by shard: one forward
a document, its prompt first and the queries behind it as a pack (training/batches.py).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from zerogr_ray.cache import here
from zerogr_ray.config import QueryConfig, QueryKind
from zerogr_ray.corpus.bags import BAG, unit_bag
from zerogr_ray.corpus.terms import Frequencies
from zerogr_ray.docids.generate import show
from zerogr_ray.models import hush, load_format, load_model
from zerogr_ray.queries.generate import query_prompt
from zerogr_ray.stage import Clock, Output, ShardWorker, map_shards
from zerogr_ray.store import key_of
from zerogr_ray.training.validation import is_held_out

if TYPE_CHECKING:
    import pyarrow as pa

    from zerogr_ray.chat import PromptFormat

RISE = 0.25
"""By what a token's probability counts beside its usual one: four times the usual adds ln 2."""

RARE = 1e-6
"""No token is usually less likely than that."""

MOST_QUERIES = 8
"""Queries of a document that are looked at."""

Floats = NDArray[np.float32]


class Asked(NamedTuple):
    """A document and what is asked of it."""

    title: str
    text: str
    queries: tuple[str, ...]
    kinds: tuple[QueryKind, ...]
    """Of each query."""

    @classmethod
    def of(cls, row: dict[str, Any], held: float = 0.0) -> Asked:
        """That of a row with its columns and docno, less the share `held` of the queries that training never sees."""
        asked = zip(row["queries"], row["kinds"], strict=True)
        seen = [one for one in asked if not is_held_out(held, row["docno"], one[0])][:MOST_QUERIES]
        return cls(row["title"], row["text"], tuple(query for query, _ in seen), tuple(kind for _, kind in seen))


@dataclass(frozen=True)
class ExpectWords:
    """Add to every document of a shard what queries for it are expected to say."""

    cfg: QueryConfig
    instruction: str
    sample: tuple[Asked, ...]
    """Documents over which p̄ is the mean."""
    known: Frequencies | None = None
    """As for WriteQueries."""
    held: float = 0.0
    """Share of the queries that is held back to judge the index by."""
    name: str = "expected"

    def __call__(self, documents: pa.Table, engine: QueryModel) -> pa.Table:
        """Rows of BAG, one per document, empty where nothing is asked. `documents`: docno and the columns of Asked."""
        import pyarrow as pa

        usual = np.maximum(engine.usual(self), RARE)
        bags = []
        for row in documents.to_pylist():
            p_V = engine.words(self, Asked.of(row, self.held))
            rise_V = np.log1p(RISE * p_V / usual)
            bags.append(unit_bag(rise_V, self.cfg.expected_tokens, rise_V * np.sqrt(p_V)))
        return pa.table([[tokens for tokens, _ in bags], [weights for _, weights in bags]], schema=BAG)


def expected_key(queries: str, model: str, cfg: QueryConfig, instruction: str, seed: int, held: Sequence[Any]) -> str:
    """Changes with the queries, the model that wrote them, what is made of them, and what decides which are `held`."""
    fixed = [RISE, RARE, MOST_QUERIES]
    return key_of("expected", 2, queries, model, instruction, cfg.expected_tokens, seed, fixed, held)


class QueryModel:
    """The LM that wrote the queries, asked how likely each token was wherever it wrote one."""

    def __init__(self, model: Any, prompt_format: PromptFormat) -> None:
        self.model, self.format = model, prompt_format
        self.tokens = 0
        """Forwarded so far."""
        self._usual: Floats | None = None
        self._sampled: dict[Asked, Floats] = {}

    def words(self, task: ExpectWords, asked: Asked) -> Floats:
        """p of a document, (vocabulary,); zeros where nothing is asked."""
        if (known := self._sampled.get(asked)) is not None:
            return known
        if not asked.queries:
            return np.zeros(len(self.format.tokenizer), dtype=np.float32)
        known_terms = task.known if task.cfg.pick_lines else None
        shown = show(asked.title, asked.text, self.format, task.cfg.doc_tokens, known_terms)
        kinds = sorted(set(asked.kinds))
        prompts = [query_prompt(self.format, task.cfg, kind, task.instruction, shown) for kind in kinds]
        tokens = self.format.tokens(asked.queries)
        sums, places = np.zeros(len(self.format.tokenizer)), 0
        for kind, prompt in zip(kinds, self.format.tokens(prompts), strict=True):
            mine = [ids for ids, one in zip(tokens, asked.kinds, strict=True) if one == kind and ids]
            if mine:
                sums += self._after(prompt, mine)
                places += sum(map(len, mine))
        return np.asarray(sums / max(places, 1), dtype=np.float32)

    def usual(self, task: ExpectWords) -> Floats:
        """p̄, measured once; what its documents gave is kept, since of a small corpus they are all."""
        if self._usual is None:
            self._sampled = {asked: self.words(task, asked) for asked in task.sample if asked.queries}
            none = [np.zeros(len(self.format.tokenizer), dtype=np.float32)]
            self._usual = np.mean(list(self._sampled.values()) or none, axis=0)
        return self._usual

    def _after(self, prompt: list[int], queries: Sequence[list[int]]) -> Floats:
        """Next-token probabilities, summed over the places of all queries behind the prompt."""
        import torch

        from zerogr_ray.training.batches import pack
        from zerogr_ray.training.examples import Example
        from zerogr_ray.training.losses import pack_logits

        # The prompt and all of its queries fit one pack of any size.
        [one] = pack([Example(prompt, query) for query in queries], pack_tokens=1 << 30)
        self.tokens += len(one.tokens_T)
        with torch.inference_mode():
            p_LV = pack_logits(self.model, one).softmax(-1)
            sums: Floats = p_LV.sum(0)[: len(self.format.tokenizer)].cpu().numpy()
        return sums


class Expecter(ShardWorker):
    """The Ray Data actor around ExpectWords."""

    def __init__(
        self, source: Output, tasks: list[tuple[ExpectWords, Output]], queries: Output, model: str | Path, device: str
    ) -> None:
        super().__init__(source, tasks)
        hush()
        folder = here(model)
        self.queries, self.engine = queries, QueryModel(load_model(folder, "auto", device), load_format(folder))

    def work(self, shard: str, task: ExpectWords, output: Output) -> tuple[int, int]:
        """Expect the words of one shard."""
        before = self.engine.tokens
        documents = self.source.folder.read_table(shard, ["docno", "title", "text"])
        asked = self.queries.folder.read_table(shard, ["queries", "kinds"])
        for name in asked.column_names:
            documents = documents.append_column(name, asked[name])
        expected = task(documents, self.engine)
        output.folder.write_table(shard, expected)
        return expected.num_rows, self.engine.tokens - before


def expect_words(
    source: Output,
    queries: Output,
    output: Output,
    task: ExpectWords,
    model: str | Path,
    resources: dict[str, Any],
    actors: int,
    quiet: bool,
    clock: Clock,
) -> None:
    """Fill `output` with rows of BAG; Ray must be initialised. `model` is as for add_gists."""
    sizes = dict((source.done() or {})["sizes"])
    given = {"queries": queries, "model": model, "device": "cuda" if resources.get("num_gpus") else "cpu"}
    clock.add(map_shards(source, [(task, output)], Expecter, given, resources, actors, sizes.__getitem__, quiet))
    output.finish(sum(sizes.values()))
