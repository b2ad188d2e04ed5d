"""From the work and the speeds: what every stage of a build costs, in the order in which they run."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from zerogr_ray.config import CacheConfig, DecodeConfig, IndexConfig
from zerogr_ray.corpus.terms import SAMPLE as COUNTED
from zerogr_ray.decoding.calibrate import AT_ONCE
from zerogr_ray.decoding.gists import AT_ONCE as GISTS_AT_ONCE
from zerogr_ray.planning.speeds import LM_STAGES, Calibration, Gpus
from zerogr_ray.planning.work import ModelShape, Work
from zerogr_ray.publish import USUAL_DOCUMENTS, USUAL_QUERIES
from zerogr_ray.training.validation import held_out_share

COLLIDING = 0.1
"""Share of the documents that the LM is asked for one more word: assumed, no sample tells."""

LOST = 60.0
"""Seconds that a lost actor may cost."""

TRIE_BYTES = 6.9
"""Of the trie, a document (benchmarks/results/trie.json)."""

TRIE_PEAK = 95.0
"""Bytes a document while it is built (3.8 GB for 40 million, trie.json)."""

POSTING_BYTES = 10
"""See config.py, postings."""

ADAM_BYTES = 28
"""An optimizer step reads weight, gradient and two moments and writes all but the gradient, 4 bytes each."""

DRIVER = 0.3e9
"""Bytes of a Python process with Ray, Arrow and numpy."""

BAG_BYTES = 5
"""Of a weighted token as Bags keeps it."""

LOGIT_BYTES = 12
"""Of a token of a packed row and of the vocabulary: its logit, its probability and its gradient."""

FINDER_BYTES = 2000
"""Of BM25 in each worker, a document (config.py, filter.documents)."""

VLLM_SHARE = 0.9
"""Of a GPU's memory, what vLLM takes for weights and key-value cache."""


@dataclass(frozen=True)
class Machines:
    """What the run has."""

    nodes: int
    cores: int
    """Of one node."""
    gpus: Gpus | None
    """Of one node."""
    network: float
    """Bytes a second between two nodes, and to the store."""
    tensor_parallel: int = 1

    @property
    def devices(self) -> int:
        """GPUs, or CPU cores where there are none."""
        return self.nodes * (self.gpus.count if self.gpus else self.cores)

    @property
    def unit(self) -> Literal["GPU", "core"]:
        return "GPU" if self.gpus else "core"


@dataclass(frozen=True)
class Cost:
    """One stage. Bytes and seconds, rounded for people only where they are printed."""

    stage: str
    amount: float
    unit: str
    on: Literal["GPU", "core"]
    hours: float
    """Of that device, while it works for the stage."""
    seconds: float
    memory: float
    """Of the largest process, or of one GPU."""
    storage: float
    """What it leaves behind until the work folder is deleted."""
    network: float
    """What its workers read and write where the work folder is on another machine."""


@dataclass(frozen=True)
class Plan:
    """All of it."""

    documents: int
    costs: list[Cost]
    queries_per_second: float
    """That one replica answers, on one GPU or one node's cores."""
    replica_memory: float
    index_bytes: float
    shard_rows: int
    """Documents per shard with which a lost engine costs LOST seconds at most."""
    shard_seconds: float
    """What it costs with the shards as configured."""
    assumptions: list[str]

    @property
    def seconds(self) -> float:
        """Wall time of the whole build."""
        return sum(cost.seconds for cost in self.costs)

    def hours(self, on: str) -> float:
        """Hours of all devices of a kind, while they work."""
        return sum(cost.hours for cost in self.costs if cost.on == on)


def make_plan(
    N: int, work: Work, shape: ModelShape, cfg: IndexConfig, speeds: Calibration, have: Machines, engine_runs: int
) -> Plan:
    """The plan for N documents. `engine_runs` is how many models write: each is loaded on its own."""
    bill = _Bill(N, work, shape, cfg, speeds, have)
    bill.reading()
    bill.writing(engine_runs)
    bill.preparing()
    if cfg.training.epochs:
        bill.training()
    bill.publishing()
    return Plan(
        documents=N,
        costs=bill.costs,
        queries_per_second=speeds.stages["serving"].per_second * bill.per_node,
        replica_memory=bill.replica_memory,
        index_bytes=bill.index_bytes,
        shard_rows=_shard_rows(bill.doc_seconds),
        shard_seconds=cfg.corpus.shard_rows * bill.doc_seconds,
        assumptions=_assumptions(cfg, speeds, have),
    )


class _Bill:
    """The costs while they are added up."""

    def __init__(
        self, N: int, work: Work, shape: ModelShape, cfg: IndexConfig, speeds: Calibration, have: Machines
    ) -> None:
        self.N, self.work, self.shape, self.cfg, self.speeds, self.have = N, work, shape, cfg, speeds, have
        self.stages, self.weights, gpus = speeds.stages, shape.parameters, have.gpus
        # On CPUs an LM has all cores of a node, and its speed was measured on those of one machine.
        self.per_node = 1.0 if gpus else have.cores / speeds.cores
        self.units = float(have.devices) if gpus else have.nodes * self.per_node
        """How many times as fast as in the calibration all the LM's devices are together."""
        self.engines = have.devices // have.tensor_parallel if gpus else have.nodes
        self.trainers = have.devices if gpus else have.nodes
        self.cores = have.nodes * have.cores
        self.text, self.docids, self.queries = (
            N * size for size in (work.source_bytes, work.docid_bytes, work.query_bytes)
        )
        self.written = N * work.queries.count
        self.examples = N * (work.examples - (1 - speeds.kept) * min(work.queries.count, work.examples))
        self.pairs = self.examples * work.pair_bytes / max(1.0, work.examples)
        learned = self.written * speeds.kept
        self.held = held_out_share(learned, cfg.training) * learned
        per_second = (work.docids.tokens / self.stages["docids"].per_second,
                      work.queries.tokens / self.stages["queries"].per_second)  # fmt: skip
        self.doc_seconds = max(per_second) * self.engines / self.units
        """Of one engine for a document, at the slower of its two tasks."""
        self.engine_memory = (
            VLLM_SHARE * gpus.memory if gpus else speeds.memory["engine"] + 2.0 * (self.weights - speeds.parameters)
        )
        self.replica_memory = 2.0 * self.weights + CacheConfig().tokens_per_batch * shape.cached_bytes
        per_document = TRIE_BYTES + work.entry_bytes + 4
        per_document += POSTING_BYTES * {"terms": work.terms, "docids": work.docid_tokens, "none": 0.0}[cfg.postings]
        self.index_bytes = N * per_document + 2 * self.weights
        self.costs: list[Cost] = []

    def add(
        self,
        stage: str,
        amount: float,
        workers: float = 1.0,
        memory: float = 0.0,
        storage: float = 0.0,
        network: float = 0.0,
        extra: float = 0.0,
        starts: bool = True,
        called: str = "",
    ) -> None:
        """One more row: `extra` seconds beside those of the amount; with `starts` also what is fixed."""
        speed, lm = self.stages[stage], stage in LM_STAGES
        fixed = (self.stages["engine"] if stage in ("docids", "queries") else speed).fixed if starts else 0.0
        busy = amount / (speed.per_second * workers) + extra
        devices = self.have.devices if lm else workers
        hours = (busy + fixed if lm else busy) * devices / 3600
        on = self.have.unit if lm else "core"
        row = (called or stage, amount, speed.unit, on, hours, fixed + busy, DRIVER + memory, storage, network)
        self.costs.append(Cost(*row))

    def reading(self) -> None:
        """What is done before anything is written."""
        few = min(self.N, COUNTED)
        self.add("start", 0, network=2.0 * self.weights * self.have.nodes)
        self.add("corpus", self.N, memory=100 * self.N, storage=self.text, network=2 * self.text)
        self.add("terms", few, network=few * self.work.source_bytes)

    def writing(self, runs: int) -> None:
        """Docids and queries, and the docids that are asked for again."""
        N, cfg, work, memory = self.N, self.cfg, self.work, self.engine_memory - DRIVER
        asked = {"docids": N * work.docids.tokens, "queries": N * work.queries.tokens}
        # While the last shards are written, engines that have none left wait.
        tail = cfg.corpus.shard_rows * self.doc_seconds * (1 - 1 / self.engines)
        sizes = {"docids": self.docids, "queries": self.queries}
        loads = {
            "docids": bool(asked["docids"]),
            "queries": bool(asked["queries"]) and (runs > 1 or not asked["docids"]),
        }
        for name, size in sizes.items():
            extra = tail if name == "queries" else 0.0
            self.add(name, asked[name], self.units, memory, size, self.text + size, extra, loads[name])
        if cfg.docids.distinct:
            again = COLLIDING * N if asked["docids"] and cfg.docids.distinct_rounds else 0.0
            self.add("distinct", N, 1, 40 * N + 300 * again, self.docids, 3 * self.docids)
            if again >= 2:
                amount = again * work.docids.tokens
                self.add("docids", amount, self.units, memory, 0, COLLIDING * self.text, called="one more")

    def preparing(self) -> None:
        """What lies between writing and training, none of it with an LM."""
        N, cfg, work, cores = self.N, self.cfg, self.work, self.cores
        if cfg.queries.filter.active and cfg.queries.per_document:
            among = min(N, cfg.queries.filter.documents) if cfg.queries.filter.round_trip else 0
            ranking = self.written * among / self.stages["ranking"].per_second / cores
            extra = ranking + among / self.stages["finder"].per_second
            network = self.text + 3 * self.queries
            self.add("filter", self.written, cores, FINDER_BYTES * among, self.queries, network, extra)
        if cfg.expected:
            memory = 2.0 * self.weights + work.queries.answer * self.shape.vocabulary * LOGIT_BYTES
            size = BAG_BYTES * cfg.queries.expected_tokens * N
            amount = (N + min(N, USUAL_DOCUMENTS) * (self.engines - 1)) * work.expected_tokens
            network = self.text + self.queries + 2 * size
            self.add("expected", amount, self.units, memory - DRIVER, size, network)
        joined = self.text + self.docids + self.queries + self.pairs
        self.add("pairs", N, storage=self.pairs, network=joined)
        if cfg.postings == "terms":
            bags = BAG_BYTES * work.terms * N
            counting = min(N, COUNTED) / self.stages["bags"].per_second
            self.add("bags", N, cores, 2 * bags, 2 * bags, self.text + 3 * bags, counting)

    def training(self) -> None:
        """All epochs, with the measurements of the held-out loss, a third of a step's work for each example."""
        cfg, have, n = self.cfg.training, self.have, self.weights
        trained = self.examples * cfg.epochs
        tokens = (trained + cfg.validations * self.held / 3) * self.work.example_tokens
        steps = trained / cfg.batch_examples
        full = cfg.method == "full"
        sent = 8.0 * n * (self.trainers - 1) / self.trainers if full else 0.0  # a ring: twice all gradients
        link = have.gpus.facts["link_gb_s"] * 1e9 if have.gpus and have.nodes == 1 else have.network
        each = sent / link
        if have.gpus and full:
            each += ADAM_BYTES * n / (have.gpus.facts["memory_gb_s"] * 1e9)
        copy = 4 if full and cfg.average < 1 else 0  # what it was before, to lie between
        memory = (copy + (16 if full else 4.4)) * n + cfg.pack_tokens * self.shape.vocabulary * LOGIT_BYTES
        network = self.pairs * self.trainers + 40 * n + (steps * sent if have.nodes > 1 else 0)
        lesson = ("training", tokens, self.units, memory - DRIVER, 34 * n, network, steps * each)
        self.add(*lesson)
        if self.cfg.taught_twice:
            asked, replica = self.written * self.speeds.kept, self.replica_memory - DRIVER
            self.add("serving", asked, self.units, replica, self.index_bytes, self.text, called="second pass")
            self.add(*lesson, called="again")

    def publishing(self) -> None:
        """The index, with what the LM measures for it."""
        N, work, cfg = self.N, self.work, self.cfg.calibration
        if self.cfg.gists:
            usual = (USUAL_QUERIES + USUAL_DOCUMENTS) * self.engines  # each worker asks for them first
            memory = 2.0 * self.weights + GISTS_AT_ONCE * self.shape.vocabulary * 4
            beside = self.cfg.queries.expected_tokens if self.cfg.expected else 0
            size = BAG_BYTES * (cfg.gist_tokens + beside) * N
            amount = (N + usual) * work.gist_tokens
            self.add("gists", amount, self.units, memory - DRIVER, size, self.text + 2 * size)
        if cfg.texts:
            memory = 2.0 * self.weights + 2 * AT_ONCE * self.shape.vocabulary * 4
            tokens = N * work.docid_tokens
            network = 2 * self.weights * self.engines
            self.add("priors", tokens * cfg.texts, self.units, memory - DRIVER, 2 * tokens, network)
        memory = N * (TRIE_PEAK + 2 * work.entry_bytes + 2 * POSTING_BYTES * work.terms)
        self.add("index", N, 1, memory, self.index_bytes, self.docids + 2 * self.index_bytes)
        if cfg.queries and self.held:
            asked = min(self.held, cfg.queries)
            self.add("decoding", asked, self.per_node, self.replica_memory - DRIVER, 0, self.index_bytes)


def _shard_rows(doc_seconds: float) -> int:
    """The largest power of 2 of which one task takes LOST seconds at most."""
    rows = 1
    while 2 * rows * doc_seconds <= LOST and rows < 1 << 16:
        rows *= 2
    return rows


def _assumptions(cfg: IndexConfig, speeds: Calibration, have: Machines) -> list[str]:
    """What the plan takes for granted, for the reader to judge."""
    said = [
        "docids are as long as the rule's and queries as the documents' own passages, within max_new_tokens"
        if not speeds.docid_answer + speeds.query_answer
        else f"the LM writes {speeds.docid_answer:.1f} tokens for a docid and {speeds.query_answer:.1f} for a query, "
        "as when it was calibrated, unless max_new_tokens allows fewer",
        f"the filter keeps {speeds.kept:.0%} of the queries; no training stops early",
        "stages follow each other; those on one core (corpus, distinct, pairs, index) do not get faster with nodes",
    ]
    if cfg.docids.distinct and cfg.docids.distinct_rounds and cfg.docids.written_by == "lm":
        said.append(f"{COLLIDING:.0%} of the documents share a docid and are asked about again")
    if cfg.taught_twice:
        said.append("the second training learns from as many queries as the first, each of which was searched for once")
    if cfg.training.rerank_every:
        said.append("mining wrong docids for rerank steps, and those steps' longer rows, are not counted")
    if cfg.training.method == "lora":
        said.append("a LoRA step takes as long as a full one, without the exchange of gradients")
    if have.devices > 1:
        said.append("engines write side by side and wait for the last shards alone; gradients are summed after a step")
    said.append(
        f"a search makes at most {DecodeConfig().draws} draws; its forwards of few tokens run as fast as long prompts"
        if have.gpus
        else "a search costs what it does on the calibration's small index"
    )
    return said
