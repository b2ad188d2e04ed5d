"""Gists: what the LM would say that a text is about, were it asked for one word.

    gist(text) = g / |g|,    g = ln(1 + max(0, z − z̄ − FLOOR))        z: log-probabilities of the word's first token

Of a query the prompt asks for a word that documents which answer it contain; of a document, for a word that says what
it is about (a sparse representation as in PromptReps; Zhuang et al., 2024). z̄ is what the LM says whatever the text:
its mean over passages of the corpus for queries, over documents for documents. A plan compares the two beside the
words that query and document hold themselves (see plan.py): a query finds documents that are about what it is about
and share no word with it.

Beside a document's gist lies what queries for it are expected to say (decoding/expected.py), if it has queries: the two
are added up.

A document's gist is computed once, when the index is built and by the tuned LM, on Ray Data shard by shard.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from zerogr_ray.chat import PromptFormat
from zerogr_ray.config import CacheConfig
from zerogr_ray.corpus.bags import BAG, Bags, added, unit_bag
from zerogr_ray.corpus.terms import Frequencies
from zerogr_ray.decoding.plan import expected_tokens
from zerogr_ray.decoding.priors import Calibrator
from zerogr_ray.docids.generate import show
from zerogr_ray.stage import Clock, Output, map_shards
from zerogr_ray.store import key_of

if TYPE_CHECKING:
    import pyarrow as pa

ASKED_OF_QUERY = "Query: {}\n\nWrite one word that a document which answers this query contains."
ASKED_OF_DOCUMENT = (
    'Document: "{}"\n\nWrite one word that says what this document is about. Make sure the word is in lower case.'
)

AT_ONCE = 16
"""Documents that are forwarded side by side."""

PRIOR = "prior.parquet"
"""Beside the shards: z̄ of queries."""

Floats = NDArray[np.float32]


def query_prompts(fmt: PromptFormat, instruction: str, queries: Sequence[str], query_tokens: int) -> list[list[int]]:
    """Tokens of the prompts behind which a query's gist is read; queries are cut to `query_tokens` tokens."""
    cut = [fmt.shorten(query, query_tokens) for query in queries]
    return fmt.tokens([fmt.ask_for_word(ASKED_OF_QUERY.format(query), instruction) for query in cut])


def document_prompts(fmt: PromptFormat, shown: Sequence[str]) -> list[list[int]]:
    """Tokens of the prompts behind which the gists of documents are read; `shown` as by docids.generate.show."""
    return fmt.tokens([fmt.ask_for_word(ASKED_OF_DOCUMENT.format(text)) for text in shown])


@dataclass(frozen=True)
class WriteGists:
    """Add to every document of a shard its gist: the `most` heaviest tokens."""

    instruction: str
    texts: tuple[str, ...]
    """Passages in the place of a query: z̄ of queries is the mean over them."""
    sample: tuple[str, ...]
    """Documents as they are shown: z̄ of documents is the mean over them."""
    most: int
    doc_tokens: int
    query_tokens: int
    known: Frequencies | None = field(default=None, compare=False)
    """Of the corpus, to pick lines by; without them the beginnings of documents are shown."""
    name: str = "gists"

    def key(self, corpus: str, model: str, expected: str) -> str:
        """Changes with the documents, the model that is asked, what it is asked, and what lies beside ("" for none)."""
        about = (self.instruction, self.texts, self.sample, self.most, self.doc_tokens, self.query_tokens)
        picked, prompts = self.known is not None, (ASKED_OF_QUERY, ASKED_OF_DOCUMENT)
        return key_of("gists", 3, corpus, model, expected, *about, picked, *prompts)

    def __call__(self, documents: pa.Table, engine: GistModel) -> pa.Table:
        """Rows of BAG, one per document, in order; a document's words are tokens of the vocabulary, from BUCKETS on."""
        import pyarrow as pa

        rows = documents.to_pylist()
        shown = [show(row["title"], row["text"], engine.format, self.doc_tokens, self.known) for row in rows]
        usual = engine.usual(self)
        z_DV = engine.logprobs(document_prompts(engine.format, shown))
        gists = [expected_tokens(z_V, usual) for z_V in z_DV]
        bags = [unit_bag(gist_V, self.most, gist_V) for gist_V in gists]
        return pa.table([[tokens for tokens, _ in bags], [weights for _, weights in bags]], schema=BAG)


class GistModel:
    """The retriever's LM, asked for one word."""

    def __init__(self, model: Any, prompt_format: PromptFormat) -> None:
        self.model, self.format = model, prompt_format
        self.tokens = 0
        """Of all prompts so far."""
        self._usual: dict[WriteGists, Floats] = {}

    def logprobs(self, prompts: Sequence[list[int]]) -> Floats:
        """Log-probabilities of what follows each prompt, (prompts, vocabulary)."""
        from zerogr_ray.decoding.forward import TreeForward

        order = sorted(range(len(prompts)), key=lambda place: len(prompts[place]))  # of like length: little padding
        found: list[Any] = [None] * len(prompts)
        self.tokens += sum(map(len, prompts))
        for start in range(0, len(order), AT_ONCE):
            some = order[start : start + AT_ONCE]
            logits = TreeForward(self.model, CacheConfig()).prompt([prompts[place] for place in some])
            for place, row in zip(some, logits.log_softmax(-1).cpu().numpy(), strict=True):
                found[place] = row[: len(self.format.tokenizer)]  # an LM head may be padded
        return np.stack(found)

    def usual(self, task: WriteGists) -> Floats:
        """z̄ of documents, measured once."""
        if task not in self._usual:
            self._usual[task] = self.logprobs(document_prompts(self.format, task.sample)).mean(0)
        return self._usual[task]

    def prior(self, task: WriteGists) -> Floats:
        """z̄ of queries."""
        asked = query_prompts(self.format, task.instruction, task.texts, task.query_tokens)
        return np.asarray(self.logprobs(asked).mean(0))


class GistWriter(Calibrator):
    """Ray Data actor: the gists of one shard after another."""

    def __init__(
        self,
        source: Output,
        tasks: list[tuple[Any, Output]],
        model: str | Path,
        device: str,
        expected: Output | None = None,
    ) -> None:
        super().__init__(source, tasks, model, device)
        self.gists, self.expected = GistModel(self.model.model, self.model.format), expected

    def work(self, shard: str, task: Any, output: Output) -> tuple[int, int]:
        """Write those of one shard."""
        import pyarrow as pa

        before = self.gists.tokens
        gists = task(self.source.folder.read_table(shard, ["title", "text"]), self.gists)
        if not output.folder.exists(PRIOR):
            output.folder.write_table(PRIOR, pa.table({"prior": self.gists.prior(task)}))
        if self.expected is not None:
            gists = added(gists, self.expected.folder.read_table(shard))
        output.folder.write_table(shard, gists)
        return gists.num_rows, self.gists.tokens - before


def add_gists(
    bags: Bags,
    source: Output,
    gists: Output,
    expected: Output | None,
    task: WriteGists,
    model: str | Path,
    resources: dict[str, Any],
    actors: int,
    quiet: bool,
    clock: Clock,
) -> Bags:
    """`bags`, of the documents of `source`, with their gists; Ray must be initialised.

    `model` is a folder that all actors see, or its URL. What an interrupted run has written to `gists` stays written.
    """
    sizes = dict((source.done() or {})["sizes"])
    given = {"model": model, "device": "cuda" if resources.get("num_gpus") else "cpu", "expected": expected}
    clock.add(map_shards(source, [(task, gists)], GistWriter, given, resources, actors, sizes.__getitem__, quiet))
    prior = gists.folder.read_table(PRIOR)["prior"].to_numpy()
    return bags.with_gists((gists.folder.read_table(shard) for shard in source.shards()), prior)
