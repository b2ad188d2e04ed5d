"""What there is to do for a corpus, counted on a sample with the model's own tokenizer and the stages' code."""

from __future__ import annotations

import io
import json
import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from zerogr_ray.chat import PromptFormat
from zerogr_ray.config import IndexConfig
from zerogr_ray.corpus.bags import make_bags
from zerogr_ray.corpus.terms import Frequencies
from zerogr_ray.decoding.expected import MOST_QUERIES
from zerogr_ray.decoding.gists import document_prompts
from zerogr_ray.docids.generate import WriteDocIds, show
from zerogr_ray.generation.engine import Sampling
from zerogr_ray.queries.generate import WriteQueries, query_prompt, stand_ins
from zerogr_ray.rows import Document, document_schema
from zerogr_ray.training.batches import pack
from zerogr_ray.training.examples import ExampleStream
from zerogr_ray.training.pairs import queries_of
from zerogr_ray.training.tasks import Retrieve


@dataclass(frozen=True)
class ModelShape:
    """What of a model decides how much memory and time it takes."""

    parameters: int
    vocabulary: int
    cached_bytes: int
    """Bytes of keys and values of one token, at 2 bytes a number."""

    @classmethod
    def of(cls, folder: Path, parameters: float | None = None) -> ModelShape:
        """From config.json and the headers of the weights, which are not read; `parameters` says otherwise."""
        from transformers import AutoConfig

        config: Any = AutoConfig.from_pretrained(str(folder), trust_remote_code=False).get_text_config()
        heads = config.num_attention_heads
        width = getattr(config, "head_dim", None) or config.hidden_size // heads
        cached = 2 * 2 * config.num_hidden_layers * (getattr(config, "num_key_value_heads", None) or heads) * width
        return cls(int(parameters or count_parameters(folder)), config.vocab_size, cached)


def count_parameters(folder: Path) -> int:
    """Numbers in the safetensors files of a model, from their headers."""
    total = 0
    for file in folder.glob("*.safetensors"):
        with file.open("rb") as stream:
            header = json.loads(stream.read(int.from_bytes(stream.read(8), "little")))
        total += sum(math.prod(about["shape"]) for name, about in header.items() if name != "__metadata__")
    return total


@dataclass(frozen=True)
class Texts:
    """What an LM is asked and writes for one document, in tokens."""

    count: float
    """Texts."""
    prompt: float
    """Tokens of their prompts that are computed: those that a prefix cache does not hold."""
    answer: float
    """Tokens that it writes at most."""

    @property
    def tokens(self) -> float:
        """Computed and written."""
        return self.prompt + self.answer


@dataclass(frozen=True)
class Work:
    """What one document of the corpus brings along, on the mean over the sample."""

    docids: Texts
    queries: Texts
    examples: float
    """Training examples of one epoch."""
    example_tokens: float
    """Tokens forwarded for one of them: its share of a packed row, the shared prefix included."""
    docid_tokens: float
    """Of a docid, with the end of the turn."""
    query_tokens: float
    """Of a retriever's prompt."""
    expected_tokens: float
    """Of the prompt behind which its queries' words are expected, and of these queries."""
    gist_tokens: float
    """Of the prompt that asks for its gist."""
    terms: float
    """Weighted words in its bag, those of its gist and of what is asked included."""
    source_bytes: float
    docid_bytes: float
    query_bytes: float
    pair_bytes: float
    entry_bytes: float
    """Of its row in the index, of docno, docid, title and tokens."""


def count_work(
    documents: Sequence[Document],
    fmt: PromptFormat,
    writers: tuple[PromptFormat, PromptFormat],
    cfg: IndexConfig,
    workers: int = 1,
    cached: bool = True,
) -> Work:
    """Count on a sample. `writers` are the formats of the LMs that write docids and queries, `workers` those that train
    together; `cached` says whether the engine keeps the prompts' common prefixes.

    Docids are those of the rule, queries the documents' own passages: the LM has not written anything yet.
    """
    known = Frequencies.counted(f"{d.title}\n{d.text}" for d in documents)
    columns = [[d.docno for d in documents], [d.title for d in documents], [d.text for d in documents]]
    table = pa.table(columns, schema=document_schema())
    N = len(documents)

    recorder = _Recorder(writers[0])
    WriteDocIds(cfg.docids, known)(table, recorder)
    docids = WriteDocIds(cfg.docids.model_copy(update={"written_by": "rule"}), known)(table, recorder)
    names = docids["docid"].to_pylist()
    tokens = fmt.docids(names)
    docid_tokens = sum(map(len, tokens)) / N + 1
    docid_texts = recorder.texts(N, cached, min(cfg.docids.max_new_tokens, docid_tokens))

    recorder = _Recorder(writers[1])
    queries = WriteQueries(cfg.queries, cfg.instruction, cfg.seed, known)(table, recorder)
    own = [stand_ins(d.docno, d.title, d.text, cfg.queries) for d in documents]
    mean_query = np.mean([len(ids) for ids in fmt.tokens([text for some in own for text in some])]) + 1
    query_texts = recorder.texts(N, cached, min(cfg.queries.max_new_tokens, float(mean_query)))

    rows = []
    for document, docid, written in zip(documents, names, own, strict=True):
        # The LM's queries are none of the passages, which come as well: a number makes them others of like length.
        new = [f"{written[i % len(written)]} {i}" for i in range(cfg.queries.per_document)]
        rows += [(text, docid) for text in queries_of(document.title, document.text, new, cfg.queries)]
    task = Retrieve(cfg.instruction, cfg.training.query_tokens)
    examples = ExampleStream([], task, fmt, cfg.training).encode(rows)
    order = np.random.default_rng(0).permutation(len(examples)).tolist()
    forwarded, batch = 0, cfg.training.batch_examples
    for start in range(0, len(order), batch):
        step = [examples[i] for i in order[start : start + batch]]
        shares = (pack(step[rank::workers], cfg.training.pack_tokens) for rank in range(workers))
        forwarded += sum(len(one.tokens_T) for packs in shares for one in packs)
    like = cfg.calibration
    seen = known if like.pick_lines else None
    asked = document_prompts(fmt, [show(d.title, d.text, fmt, like.gist_doc_tokens, seen) for d in documents])
    bags = make_bags([f"{d.title}\n{d.text}" for d in documents])
    entries = pa.table([columns[0], names, columns[1], pa.array(tokens, pa.list_(pa.uint32()))], list("abcd"))
    return Work(
        docids=docid_texts if cfg.docids.written_by == "lm" else Texts(0, 0, 0),
        queries=query_texts,
        examples=len(examples) / N,
        example_tokens=forwarded / max(1, len(examples)),
        docid_tokens=docid_tokens,
        query_tokens=sum(len(e.prompt) for e in examples) / max(1, len(examples)),
        expected_tokens=_expected_tokens(documents, writers[1], cfg, known, float(mean_query)),
        gist_tokens=sum(map(len, asked)) / N,
        terms=sum(map(len, bags["words"].to_pylist())) / N
        + (like.gist_tokens if cfg.gists else 0)
        + (cfg.queries.expected_tokens if cfg.expected else 0),
        source_bytes=_parquet_bytes(table) / N,
        docid_bytes=_parquet_bytes(docids) / N,
        query_bytes=_parquet_bytes(queries) / N,
        pair_bytes=_parquet_bytes(pa.table({"query": [q for q, _ in rows], "docid": [d for _, d in rows]})) / N,
        entry_bytes=entries.nbytes / N,
    )


def _expected_tokens(
    documents: Sequence[Document], fmt: PromptFormat, cfg: IndexConfig, known: Frequencies, query: float
) -> float:
    """Tokens of a document's prompt for queries and of the queries that are looked at."""
    seen = known if cfg.queries.pick_lines else None
    shown = [show(d.title, d.text, fmt, cfg.queries.doc_tokens, seen) for d in documents]
    prompts = fmt.tokens([query_prompt(fmt, cfg.queries, "question", cfg.instruction, one) for one in shown])
    queries = min(cfg.queries.per_document, MOST_QUERIES) * min(cfg.queries.max_new_tokens, query)
    return sum(map(len, prompts)) / len(prompts) + queries


class _Recorder:
    """An engine that writes nothing and remembers what it was asked."""

    def __init__(self, fmt: PromptFormat) -> None:
        self.format = fmt
        self.prompts: list[list[int]] = []

    def generate(self, prompts: list[list[int]], sampling: Sampling, seed: int) -> list[list[str]]:
        self.prompts += prompts
        return [[""] * sampling.n for _ in prompts]

    def close(self) -> None: ...

    def texts(self, documents: int, cached: bool, answer: float) -> Texts:
        """Per document. What is computed with a cache: the nodes of the prompts' prefix tree."""
        distinct = sorted(self.prompts) if cached else self.prompts
        computed = sum(map(len, distinct[:1]))
        for before, prompt in pairwise(distinct):
            computed += len(prompt) - (_common(before, prompt) if cached else 0)
        count = len(self.prompts) / documents
        return Texts(count, computed / documents, count * answer)


def _common(a: list[int], b: list[int]) -> int:
    return next((at for at, (x, y) in enumerate(zip(a, b, strict=False)) if x != y), min(len(a), len(b)))


def _parquet_bytes(table: pa.Table) -> int:
    import pyarrow.parquet as pq

    sink = io.BytesIO()
    pq.write_table(table, sink, compression="zstd")  # as store.py writes it
    return len(sink.getvalue())
