"""Every setting, frozen, explained in the line under it, read from TOML. Unknown keys are refused."""

from __future__ import annotations

import tomllib
from collections.abc import Iterator
from difflib import get_close_matches
from pathlib import Path
from typing import Any, Literal, TypeVar, get_args

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from zerogr_ray.errors import InputError

DEFAULT_MODEL = "smollm2-135m-instruct"
DEFAULT_INSTRUCTION = "Given a query, retrieve documents that answer it."

C = TypeVar("C", bound="Strict")

QueryKind = Literal["question", "keywords", "claim", "request"]


class Strict(BaseModel):
    """A frozen settings model that refuses keys it does not know."""

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True, allow_inf_nan=False)


class CorpusConfig(Strict):
    """How documents are read."""

    text_chars: int = Field(20_000, ge=1)
    """Characters of a document's text that are kept. Generation reads far less; this bounds memory and disk."""
    shard_rows: int = Field(64, ge=1)
    """Documents per shard. A shard is what a lost worker has to do again, and what a worker commits at once. Every
    stage writes a file for each: for millions of documents take thousands."""


class PoolConfig(Strict):
    """Which nodes of a cluster actors run on, where not on any that has the CPUs and GPUs."""

    resources: dict[str, float] = {}
    """Resources of Ray that each actor reserves besides, as nodes were started with: {"a100": 1}."""
    labels: dict[str, str] = {}
    """Labels of Ray that its node must have: {"ray.io/accelerator-type": "A100"}."""


class LLMConfig(PoolConfig):
    """The language model that writes docids and pseudo-queries, and the engine that runs it."""

    model: str = DEFAULT_MODEL
    """Hugging Face name, local folder, or the name of a packaged model."""
    engine: Literal["auto", "vllm", "transformers"] = "auto"
    """auto takes vLLM where it is installed, plain transformers elsewhere."""
    dtype: Literal["auto", "float32", "bfloat16"] = "auto"
    """auto is bfloat16 where the hardware multiplies it natively, float32 elsewhere."""
    max_model_len: int = Field(1024, ge=128)
    """Longest prompt plus answer, in tokens. Longer documents are cut before they get here."""
    max_num_seqs: int = Field(64, ge=1)
    """Sequences that one engine decodes side by side."""
    engines: int = Field(1, ge=1)
    """Engine actors at most. Each holds one copy of the model."""
    tensor_parallel: int = Field(1, ge=1)
    """GPUs of one node that share the matrices of one engine, for a writer too large for one; with vLLM alone."""
    cpus: float = Field(1, gt=0)
    """Ray CPUs that one engine reserves."""
    gpus: float | None = Field(None, ge=0)
    """GPUs that one engine reserves; unset, tensor_parallel where the cluster has any; 0 runs it on the CPU."""


class DocIdConfig(Strict):
    """How a document gets its docid (ZeroGR, section 3.2: short, general to specific, greedy)."""

    written_by: Literal["lm", "rule", "random"] = "lm"
    """lm: the language model. rule: title and heaviest terms (docids/rule.py), no model. random: words of the corpus
    that have nothing to do with the document, to see what docids are worth."""
    doc_tokens: int = Field(128, ge=8)
    """Tokens of the document that the prompt shows; an adapter brings the number that it was trained with."""
    pick_lines: bool = True
    """Of a longer document that does not begin with prose, show the telling lines (see corpus/lines.py)."""
    max_words: int = Field(8, ge=1, le=32)
    """Words of a docid at most."""
    max_new_tokens: int = Field(24, ge=4)
    """Tokens that the LM may write."""
    prompt: str = (
        "Write keywords that identify the document: 6 to 8 words in one line, the 3 to 5 core terms of the document, "
        "from general to specific, lower case, no verbs, no articles, no punctuation."
    )
    """What the LM is asked, before the document."""
    examples: int = Field(2, ge=0, le=8)
    """Worked examples before the document; 0 for a model that was fine-tuned to write docids."""
    adapter: str = "auto"
    """Folder of an adapter of llm.model that writes docids (zerogr train docids); its prompt settings are taken. auto:
    the one that comes with this package, for the model that has one. Empty: the model as it is."""
    distinct: bool = True
    """Documents that share a docid get one more word each (see docids/distinct.py); only identical ones share then."""
    distinct_rounds: int = Field(1, ge=0, le=8)
    """Times that the docid generator is asked for that word, which the docid gets beyond max_words, before a rule takes
    one."""


class QueryMix(Strict):
    """How many of the pseudo-queries are of each kind, in proportion."""

    question: float = Field(0, ge=0)
    """ "how do plants make sugar" """
    keywords: float = Field(0, ge=0)
    """ "chlorophyll light absorption" """
    claim: float = Field(0, ge=0)
    """ "Plants need light to make sugar." """
    request: float = Field(0, ge=0)
    """ "Explain to my class why leaves need the sun." """

    @model_validator(mode="after")
    def _some(self) -> QueryMix:
        if not self.question + self.keywords + self.claim + self.request:
            raise ValueError("all four kinds are 0; give at least one a share, or leave the mix to the instruction")
        return self


class FilterConfig(Strict):
    """Which pseudo-queries are kept (see queries/filter.py); all zero or false keeps every one, else those go too that
    are their document."""

    repeats: float = Field(0.8, ge=0, le=1)
    """A query goes whose stems overlap this much (Jaccard) with an earlier one of its document; 0: none goes."""
    shared: bool = True
    """Of queries of several documents that have the same stems, only one is kept: where BM25 finds it best."""
    round_trip: int = Field(10, ge=0)
    """A query goes if BM25 finds this many documents or more that fit it better than its own; 0: none goes."""
    retriever: int = Field(0, ge=0)
    """After a training a query goes that the retriever itself does not answer with its document among this many, and
    training begins anew with the rest (decoding/second_pass.py): a second training, and a search for every query. 0:
    one training."""
    documents: int = Field(20_000, ge=1)
    """Documents that BM25 searches at most; of a larger corpus, a query's own shard and others spread evenly over
    it. About 2 kB for each of 200 words, in every worker."""

    @property
    def active(self) -> bool:
        """Whether anything can go before a training."""
        return bool(self.repeats or self.shared or self.round_trip)


class QueryConfig(Strict):
    """How pseudo-queries are made (ZeroGR, section 3.3)."""

    per_document: int = Field(16, ge=0)
    """n, queries that the LM writes for each document."""
    temperature: float = Field(1.0, ge=0)
    """Sampling temperature of those queries."""
    doc_tokens: int = Field(128, ge=8)
    """Tokens of the document that the prompt shows; an adapter brings the number that it was trained with."""
    pick_lines: bool = True
    """Of a longer document that does not begin with prose, show the telling lines (see corpus/lines.py)."""
    max_new_tokens: int = Field(32, ge=4)
    """Tokens that the LM may write."""
    max_words: int = Field(40, ge=1)
    """Words of a query at most."""
    passages: int = Field(8, ge=0)
    """Passages of the document itself that also serve as queries, at most."""
    passage_words: int = Field(16, ge=1)
    """Words of one passage."""
    expected_tokens: int = Field(64, ge=0)
    """Tokens kept of what queries for a document are expected to say (decoding/expected.py), for plans: one more
    forward of the LM a document, some 0.6 kB. 0: none. Where an index has no gists, with llm.tensor_parallel, and
    where model and llm.model have other tokens, there are none anyway."""
    mix: QueryMix | None = None
    """Kinds of queries; unset, the words of the instruction decide (see queries/kinds.py)."""
    examples: int = Field(4, ge=0, le=8)
    """Worked examples of the kind before the document; 0 for a model that was fine-tuned to write queries."""
    prompt: str = ""
    """What the LM is asked for queries of every kind, before the retrieval task; empty, each kind has its own line."""
    adapter: str = "auto"
    """The same for queries (zerogr train queries)."""
    filter: FilterConfig = FilterConfig()


class TrainingConfig(PoolConfig):
    """Fine-tuning: cross-entropy on the answer given the prompt, for the retriever the docid given the query."""

    method: Literal["full", "lora"] = "full"
    """full trains every weight; lora trains two thin matrices beside each linear layer, and nothing else."""
    lora_rank: int = Field(16, ge=1)
    """Width of those matrices."""
    lora_alpha: int = Field(32, ge=1)
    """Their product counts alpha / rank."""
    epochs: float = Field(1, ge=0)
    """Passes over all examples; a fraction stops within a pass. 0: the retriever is the model that it would begin
    from, untrained."""
    learning_rate: float = Field(3e-4, gt=0)
    """Peak of the schedule: linear warm-up, cosine decay to a tenth. Suits 135M parameters; 1B wants some 3e-5, and
    LoRA ten times as much."""
    warmup: float = Field(0.05, ge=0, lt=1)
    """Share of the steps that warm up."""
    weight_decay: float = Field(0.0, ge=0)
    """AdamW's decoupled weight decay."""
    clip: float = Field(1.0, gt=0)
    """Gradient norm above which gradients are scaled down."""
    rerank_every: int = Field(0, ge=0)
    """Every n-th step also ranks the right docid above those of BM25's best wrong documents, which gives the index its
    rerank head (8 in the paper); 0: never."""
    rerank_candidates: int = Field(8, ge=2)
    """Docids that such a step compares for a query: the right one and the rest wrong."""
    rerank_weight: float = Field(1.0, gt=0)
    """Weight of that loss beside the cross-entropy."""
    average: float = Field(0.25, gt=0, le=1)
    """What is published lies this share of the way from the weights before training to the trained ones
    (training/averaging.py). 1: the trained ones, as in the paper."""
    pack_tokens: int = Field(768, ge=64)
    """Tokens of one packed forward pass: the shared prefix and as many examples behind it as fit."""
    batch_examples: int = Field(16, ge=1)
    """Examples per optimizer step, over all workers; packs are accumulated until it is reached."""
    query_tokens: int = Field(96, ge=4)
    """Tokens of a query that are kept."""
    held_out: float = Field(0.05, ge=0, le=0.5)
    """Share of the pseudo-queries that training never sees, to tell when it stops helping and how to search: of a small
    corpus more, to come to 24, if that is a quarter at most. 0: none."""
    held_out_most: int = Field(256, ge=1)
    """Examples held out at most; with fewer than 16 none are: so few say nothing."""
    validations: int = Field(10, ge=1)
    """Times that the loss on what is held out is measured, evenly over the training; the best state is published."""
    patience: int = Field(3, ge=0)
    """Measurements in a row without a new best after which training stops; 0 never stops early."""
    checkpoint_seconds: float = Field(60, gt=0)
    """A checkpoint is written when this much time has passed since the last."""
    workers: int = Field(1, ge=1)
    """Ray Train workers."""
    cpus: float = Field(1, gt=0)
    """Ray CPUs that one worker reserves."""
    gpus: float | None = Field(None, ge=0)
    """GPUs that one worker reserves; unset, one where the cluster has any; 0 trains on the CPU."""
    seed: int = Field(0, ge=0)
    """Order of the examples."""


class DecodeConfig(Strict):
    """One search: K draws at rising temperature (ZeroGR, Eq. 5-6), or one of the modes it is compared with."""

    mode: Literal["reference", "exact", "sampling", "beam", "top_k", "best_first", "exhaustive"] = "reference"
    """reference: draws at rising temperature, removal renormalises at each node (the published algorithm). exact: the
    same from the tempered distribution over all docids that are left. sampling: reference at one temperature. beam:
    K prefixes side by side. top_k: the most probable docids, exactly. best_first: by the probability over the whole
    vocabulary. exhaustive: every docid scored in full, for small indexes."""
    draws: int = Field(100, ge=1)
    """K, docids drawn per query; the trie loses one leaf after each draw. A search for k > K documents draws k."""
    t_max: float = Field(1.5, ge=0)
    """Temperature that the last draws approach. The first draw is greedy."""
    slope: float = Field(10.0, gt=0)
    """k in the schedule: how sharply the temperature rises."""
    midpoint: float = Field(0.1, ge=0, le=1)
    """m in the schedule: the share of the draws after which it has risen half way."""
    temperature: float = Field(1.0, ge=0)
    """Temperature of mode sampling."""
    prior_weight: float = Field(0.0, ge=0)
    """λ: every mode decides by logit − λ · prior, the prior being how likely an edge is for any query."""
    plan_ahead: int = Field(0, ge=0)
    """Search only the n documents (k, where more are wanted) that the plan favours (decoding/plan.py), by what the LM
    says to the query before it writes a docid; 0: all."""
    lm_terms: float = Field(1.0, ge=0)
    """Weight, in that plan, of the words that the LM expects; for postings of terms."""
    own_terms: float = Field(0.5, ge=0)
    """Weight, in that plan, of the query's own words; for postings of terms."""
    gist: float = Field(0.2, ge=0)
    """Weight, in that plan, of what the LM would name of a document itself, beside the document's own words; for an
    index with gists (calibration.gist_tokens)."""
    asked: float = Field(0.2, ge=0)
    """Weight, in that plan, of the query's own tokens against what queries for a document are expected to say."""
    lookahead: float = Field(0.0, ge=0)
    """Every mode decides by logit + lookahead · (best plan score below the child − best below the node), so that a
    docid is as likely as LM and plan together make it. Needs plan_ahead."""
    order: Literal["draw", "docid", "rerank"] = "draw"
    """Order of the hits: as drawn (published); by the calibrated log-probability of the whole docid; by the rerank
    head. The latter two take the best of all K draws. With lookahead the plan counts in either, and rerank orders the
    hits that a search in the order of the draws would give, by head and whole docid together."""
    seed: int = 0
    """Key of the noise. Same index, query and seed: same hits."""
    query_tokens: int = Field(512, ge=1)
    """Tokens of a query that are kept."""


class CalibrationConfig(Strict):
    """What a new index finds out about itself before it is published, from its corpus alone."""

    texts: int = Field(8, ge=0)
    """Passages put in the place of a query to measure what the LM would write anyway: the prior of every trie edge,
    which prior_weight subtracts. 0: no priors."""
    text_words: int = Field(14, ge=1)
    """Words of such a passage."""
    gist_tokens: int = Field(64, ge=0)
    """Tokens that the tuned LM would name of each document when asked for one word, kept for plans beside the
    document's words: one forward a document, some 0.6 kB. 0: none, and a plan takes what begins the docid. Needs
    texts and postings=terms."""
    gist_doc_tokens: int = Field(256, ge=8)
    """Tokens of the document that it is shown for that."""
    pick_lines: bool = True
    """Of a longer document that does not begin with prose, show it the telling lines (see corpus/lines.py)."""
    queries: int = Field(48, ge=0)
    """Pseudo-queries, held back from the training, on which ways of decoding compete to become the index's own.
    0: the published algorithm."""
    weighed_by: int = Field(256, ge=0)
    """Pseudo-queries from which it is learned what the parts of a plan count (decoding/weights.py). 0: the usual
    weights. Needs gists."""


class CacheConfig(Strict):
    """How much a retriever holds at once. A search that would need more still ends, only later."""

    batch: int = Field(16, ge=1)
    """Queries that are decoded side by side."""
    tokens_per_query: int = Field(4096, ge=1)
    """Cached tokens of one query: its prompt and the trie nodes visited behind it."""
    tokens_per_batch: int = Field(65536, ge=1)
    """Cached tokens of a batch, padding included. One token costs 2 · layers · key-value width numbers: 46 kB for
    SmolLM2-135M and 64 kB for Llama-3.2-1B, in float32."""


class IndexConfig(Strict):
    """Everything `zerogr index` needs. A run file in pipelines/ is one of these as TOML."""

    instruction: str = Field(DEFAULT_INSTRUCTION, min_length=1)
    """The retrieval task in natural language."""
    model: str = DEFAULT_MODEL
    """The LM that is fine-tuned into the retriever: Hugging Face name, local folder, or packaged model."""
    adapter: str = "auto"
    """Folder of an adapter of model from which that training begins (zerogr train retriever). auto: the one that comes
    with this package, for the model that has one. Empty: the model as it is."""
    corpus: CorpusConfig = CorpusConfig()
    llm: LLMConfig = LLMConfig()
    docids: DocIdConfig = DocIdConfig()
    queries: QueryConfig = QueryConfig()
    training: TrainingConfig = TrainingConfig()
    calibration: CalibrationConfig = CalibrationConfig()
    workers: PoolConfig = PoolConfig()
    """Where the actors run that need no LM: those of the filter and of the bags of terms."""
    postings: Literal["none", "docids", "terms"] = "terms"
    """The inverted index that searches with plan_ahead need. docids: of the docids' tokens, about 60 bytes per docid.
    terms: of the weighted words of the documents' texts, 10 bytes for each of at most 256, some 800 bytes for an
    abstract, and 12 MB."""
    seed: int = 0
    """Seed of query sampling."""

    @property
    def gists(self) -> bool:
        """Whether the index holds what the LM says that its documents are about (decoding/gists.py)."""
        return self.postings == "terms" and bool(self.calibration.texts and self.calibration.gist_tokens)

    @property
    def expected(self) -> bool:
        """Whether beside them lies what queries are expected to say (decoding/expected.py), in one process's memory."""
        asked = self.queries.per_document and self.queries.expected_tokens
        return self.gists and bool(asked) and self.llm.tensor_parallel == 1

    @property
    def taught_twice(self) -> bool:
        """Whether a second training learns from the queries that the first one's retriever answers."""
        return bool(self.queries.filter.retriever and self.queries.per_document and self.training.epochs)


def read_config(path: Path, kind: type[C], overrides: dict[str, Any] | None = None) -> C:
    """Read a TOML file into `kind`; `overrides` (dotted keys) win over the file.

    Raises InputError naming the file, the key and the nearest known key.
    """
    try:
        values = tomllib.loads(path.read_text(encoding="utf-8"))
    except (FileNotFoundError, IsADirectoryError):
        raise InputError(f"there is no run file {path}; see pipelines/ for examples") from None
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise InputError(f"{path} is not valid TOML: {error}") from None
    return make_config(kind, values, overrides, where=str(path))


def make_config(
    kind: type[C], values: dict[str, Any], overrides: dict[str, Any] | None = None, where: str = "settings"
) -> C:
    """Validate `values` as `kind`. Dotted keys in `overrides` reach into tables. Raises InputError."""
    for dotted, value in (overrides or {}).items():
        *tables, key = dotted.split(".")
        target = values
        for table in tables:
            target = target.setdefault(table, {})
            if not isinstance(target, dict):
                raise InputError(f"{where}: {dotted!r} reaches into {table!r}, which is a value and not a table")
        target[key] = value
    try:
        return kind.model_validate(values)
    except ValidationError as error:
        errors = error.errors()  # a misspelt key that is needed is missing as well; the misspelling says more
        first = next((one for one in errors if one["type"] == "extra_forbidden"), errors[0])
        key = ".".join(str(part) for part in first["loc"])
        message = f"{where}: {key}: {first['msg']}"
        if first["type"] == "extra_forbidden":
            near = get_close_matches(str(first["loc"][-1]), _known_keys(kind), n=1)
            message = f"{where}: unknown key {key!r}" + (f"; did you mean {near[0]!r}?" if near else "")
        raise InputError(message) from None


def dotted(settings: dict[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """(dotted key, value) of every setting, those in tables included: what `make_config` takes as overrides."""
    for name, value in settings.items():
        if isinstance(value, dict):
            yield from dotted(value, f"{prefix}{name}.")
        else:
            yield f"{prefix}{name}", value


def _known_keys(kind: type[BaseModel]) -> list[str]:
    keys = []
    for name, info in kind.model_fields.items():
        keys.append(name)
        for inner in (info.annotation, *get_args(info.annotation)):  # a table, or a list of them
            if isinstance(inner, type) and issubclass(inner, BaseModel):
                keys += _known_keys(inner)
    return keys
