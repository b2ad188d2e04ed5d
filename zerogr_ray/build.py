"""From a corpus to an index folder: the list of stages, each of which finds what it has already done.

    corpus ─┬─ docids ── distinct ─┬─ pairs ─┬──────────────┬─ training ─┬─ index
            ├─ queries ─┬ filter ──┘         └─ candidates ─┘            │
            │           └ expected ──────────────────────────────────────┤
            └─ bags ─────────────────────────────────────────────────────┘

With `queries.filter.retriever` what lies between `filter` and `index` comes twice: the retriever of the first training
is a second filter.

A stage's key is made of what it depends on, so a changed setting rebuilds what follows from it and no more.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from zerogr_ray.adapters import adapter_for, chosen_adapter, find_adapted_model, find_writer
from zerogr_ray.cache import locked
from zerogr_ray.cluster import (
    Node,
    asked_of,
    cluster_nodes,
    cores,
    pool_options,
    ray_cluster,
    refuse_lacking,
    shared,
    spare_cpus,
)
from zerogr_ray.config import IndexConfig
from zerogr_ray.corpus.bags import Bags, write_bags
from zerogr_ray.corpus.documents import source_stamp
from zerogr_ray.corpus.draw import draw_places
from zerogr_ray.corpus.normalise import normalise, normalised
from zerogr_ray.corpus.terms import Frequencies, corpus_frequencies
from zerogr_ray.decoding.expected import Asked, ExpectWords, expect_words
from zerogr_ray.decoding.second_pass import find_again
from zerogr_ray.docids.coverage import coverage
from zerogr_ray.docids.distinct import make_distinct
from zerogr_ray.docids.generate import WriteDocIds
from zerogr_ray.errors import BuildError, IndexRefused
from zerogr_ray.generation.writer import Writer, engine_resources
from zerogr_ray.index.bundle import check_target, open_index
from zerogr_ray.index.manifest import MANIFEST, read_manifest
from zerogr_ray.keys import Keys
from zerogr_ray.lesson import learn
from zerogr_ray.models import find_model, fingerprint, load_format
from zerogr_ray.publish import USUAL_DOCUMENTS, Left, publish
from zerogr_ray.published import find_published
from zerogr_ray.queries.filter import filter_queries
from zerogr_ray.queries.generate import WriteQueries
from zerogr_ray.s3 import is_url, place_of
from zerogr_ray.stage import Clock, Output, ShardTask, Spent, map_shards
from zerogr_ray.store import Folder, key_of
from zerogr_ray.training.rerank import rerank_token
from zerogr_ray.training.tasks import Retrieve
from zerogr_ray.training.validation import held_out_share


@dataclass(frozen=True)
class BuildReport:
    """What a build did."""

    index: str
    documents: int
    docids: int
    rejected: int
    rejects: str
    """Where the rejected rows are; "" if there are none."""
    unchanged: bool
    """The index was there already and nothing it depends on has changed."""
    queries: dict[str, int] = field(default_factory=dict)
    """Pseudo-queries written and kept, and how many went for which reason; empty where none can go."""
    collisions: dict[str, int] = field(default_factory=dict)
    """Distinct docids before and after collisions were resolved, and how; empty where they are left."""
    seconds: dict[str, float] = field(default_factory=dict)
    """Wall time of each stage that ran; "start" is all else: Ray's start, the models' fingerprints."""
    spent: dict[str, Spent] = field(default_factory=dict)
    """For each output that workers made: how long they took for each shard."""


def build_index(
    corpus: str, out: str | Path, config: IndexConfig | None = None, work: str | Path | None = None, quiet: bool = False
) -> BuildReport:
    """Build the index of `corpus` in the folder `out`; intermediate results stay in `work` (default: OUT.work).

    All three may be under s3://. There two runs of one OUT may race, and one index is published, whole; on a disk the
    second is refused. Interrupted at any moment and called again, it goes on with what is missing. Called again with
    nothing changed it does nothing. Raises InputError for a corpus that cannot be read and a store that refuses,
    ModelError for a model that cannot be used, BuildError where a stage fails.
    """
    cfg, clock = config or IndexConfig(), Clock()
    target = place_of(out)
    folder = Folder(work or f"{target}.work")
    source_stamp(corpus)  # a corpus that is not there is said before a model is fetched
    if is_url(target):
        check_target(target)  # and so is a bucket
    model, llm = find_model(cfg.model), find_model(cfg.llm.model)
    if adapter := chosen_adapter(cfg.adapter, cfg.model, Retrieve.name):
        adapter_for(Retrieve.name, adapter)
        model = find_adapted_model(cfg.model, adapter)
    prompt_format = load_format(model)
    load_format(llm)
    cfg, writers = writers_of(cfg)
    reserved = rerank_token(prompt_format) if cfg.training.rerank_every else None
    with ExitStack() as running:
        running.enter_context(_only_builder(_lock_beside(target)))
        running.enter_context(_only_builder(Path(folder.path) / ".lock" if folder.local else None))
        check_target(target)
        if not normalised(corpus, folder, cfg.corpus):  # what the machines lack is said before hours of reading
            running.enter_context(_suitable_machines(cfg))
        source, facts = clock.time("corpus", lambda: normalise(corpus, folder, cfg.corpus, quiet))
        # Shards of all stages line up, so a stage depends on how the corpus is cut as well as on what is in it.
        layout = f"{facts['fingerprint']}/{cfg.corpus.shard_rows}"
        writing = [fingerprint(writer) for writer in writers]
        keys = Keys.of(cfg, layout, fingerprint(model), prompt_format.fingerprint, writing)
        report = {"rejected": facts["rejected"], "rejects": facts["rejects"]}
        if (manifest := _current(target, keys.index)) is not None:
            return BuildReport(target, manifest["documents"], manifest["docids"], unchanged=True, **report)
        docids, queries = Output.at(folder, "docids", keys.docids), Output.at(folder, "queries", keys.queries)
        distinct = Output.at(folder, "distinct", keys.distinct) if keys.distinct != keys.docids else docids
        kept = Output.at(folder, "filtered", keys.lesson.kept) if keys.lesson.kept != keys.queries else queries
        with ray_cluster():
            if folder.local:
                shared("the work folder", Path(folder.path), folder)
            base = shared("model", model, folder)
            cfg = _with_devices(cfg, shared("llm.model", llm, folder))
            ready = [shared("llm.model", writer, folder) for writer in writers]
            pool = pool_options(cfg.workers)
            terms = Output.at(folder, "terms", key_of("terms", 1, layout))
            known = clock.time("terms", lambda: corpus_frequencies(source, facts["sizes"], terms))
            writing_all = (cfg, ready, source, facts, known, docids, queries, clock, quiet)
            clock.time("docids + queries", lambda: _generate(*writing_all))
            if keys.distinct != keys.docids:
                clock.time("distinct", lambda: _distinguish(cfg, ready[0], source, docids, known, distinct, quiet))
            if kept is not queries:
                wanted = (source, queries, kept, cfg.queries, facts["sizes"], spare_cpus(), quiet, clock, pool)
                clock.time("filter", lambda: filter_queries(*wanted))
            # The second pass keeps this share: what was held back once is not learned from later.
            counted = _counts(kept, "queries").get("kept", facts["rows"] * cfg.queries.per_document)
            held = held_out_share(counted, cfg.training)
            expected = Output.at(folder, "expected", keys.expected) if keys.expected else None
            if expected is not None:
                expecting = (cfg, ready[-1], source, known, queries, held, expected, quiet, clock)
                clock.time("expected", lambda: _expect(*expecting))
            weighed = Output.at(folder, "bags", keys.bags) if keys.bags else None
            if weighed is not None:
                weighing = (source, weighed, prompt_format, facts["sizes"], spare_cpus(), quiet, pool)
                clock.time("bags", lambda: clock.add(write_bags(*weighing)))
            training = (cfg, source, distinct, facts, held, base, reserved, folder, clock, quiet)
            pairs, tuned = learn(keys.lesson, kept, *training)
            if keys.again is not None:
                first = Left(source, distinct, pairs, None, tuned, prompt_format)
                kept = _find_again(cfg, first, keys.again.kept, kept, folder, clock, quiet)
                pairs, tuned = learn(keys.again, kept, *training)
            about = {
                "key": keys.index,
                "corpus": facts["fingerprint"],
                "coverage": coverage(source, distinct, facts["sizes"], known),
                "collisions": _counts(distinct, "collisions"),
                "queries": _counts(kept, "queries"),
                **({} if reserved is None else {"rerank_token": reserved}),
            }
            bags = Bags.open(str(weighed.folder)) if weighed is not None else None
            left = Left(source, distinct, pairs, bags, tuned, prompt_format, expected, kept, held, known)
            manifest = clock.time("index", lambda: publish(target, left, cfg, about, folder, quiet, clock))
    clock.seconds["start"] = time.monotonic() - clock.began - sum(clock.seconds.values())
    seconds = {name: round(spent, 3) for name, spent in clock.seconds.items()}
    return BuildReport(
        target,
        manifest["documents"],
        manifest["docids"],
        unchanged=False,
        queries=about["queries"],
        collisions=about["collisions"],
        seconds=seconds,
        spent=clock.spent,
        **report,
    )


def _current(target: str, key: str) -> dict[str, Any] | None:
    """The manifest of the index at `target` if it is whole and has this key."""
    try:
        if is_url(target):
            found = find_published(target)
            if found is None or not found.whole():
                return None
            manifest = read_manifest(found.url)
        elif (Path(target) / MANIFEST).exists():
            manifest = open_index(target).manifest
        else:
            return None
    except IndexRefused:
        return None  # damaged: it is published again from what the stages left
    return manifest if manifest.get("key") == key else None


def _with_devices(cfg: IndexConfig, llm: str) -> IndexConfig:
    """Settings as the workers need them: the model by its folder, GPUs as the cluster has them.

    Raises BuildError where the cluster lacks what is asked for: Ray would wait for it for ever.
    """
    import ray

    have = ray.cluster_resources()
    gpu = 1.0 if have.get("GPU", 0) >= 1 else 0.0
    each = gpu * cfg.llm.tensor_parallel if cfg.llm.gpus is None else cfg.llm.gpus
    generation = cfg.llm.model_copy(update={"model": llm, "gpus": each})
    training = cfg.training.model_copy(update={"gpus": gpu if cfg.training.gpus is None else cfg.training.gpus})
    refuse_lacking(asked_of(training, generation, cfg.workers), cluster_nodes())
    return cfg.model_copy(update={"llm": generation, "training": training})


@contextmanager
def _suitable_machines(cfg: IndexConfig) -> Iterator[None]:
    """Raises BuildError where the cluster, or this machine where there is none, lacks what is asked for.

    A cluster stays joined for the block.
    """
    import ray

    if ray.is_initialized() or os.environ.get("RAY_ADDRESS"):
        with ray_cluster():
            _with_devices(cfg, cfg.llm.model)
            yield
        return
    import torch

    here_is = Node({"CPU": max(4, cores()), "GPU": torch.cuda.device_count()})  # as ray_cluster will count
    refuse_lacking(asked_of(cfg.training, cfg.llm, cfg.workers), [here_is])
    yield


def writers_of(cfg: IndexConfig) -> tuple[IndexConfig, list[Path]]:
    """The models that write docids and queries, and the settings with which they are asked. Raises ModelError.

    What one LM expects means nothing in the tokens of another: then no words are expected.
    """
    docid_writer, docids = find_writer(cfg.docids, cfg.llm.model, "docids")
    query_writer, queries = find_writer(cfg.queries, cfg.llm.model, "queries")
    if cfg.expected:
        written, read = (load_format(folder).tokenizer.get_vocab() for folder in (query_writer, find_model(cfg.model)))
        queries = queries if written == read else queries.model_copy(update={"expected_tokens": 0})
    return cfg.model_copy(update={"docids": docids, "queries": queries}), [docid_writer, query_writer]


def _generate(
    cfg: IndexConfig,
    writers: Sequence[str],
    source: Output,
    facts: dict[str, Any],
    known: Frequencies,
    docids: Output,
    queries: Output,
    clock: Clock,
    quiet: bool,
) -> None:
    """Docids and pseudo-queries: by the same engines in one pass over the shards, where one model writes both."""
    tasks: list[tuple[ShardTask, Output]] = [
        (WriteDocIds(cfg.docids, known), docids),
        (WriteQueries(cfg.queries, cfg.instruction, cfg.seed, known), queries),
    ]
    sizes: dict[str, int] = facts["sizes"]
    for writer in dict.fromkeys(writers):
        own = [task for task, model in zip(tasks, writers, strict=True) if model == writer]
        llm = cfg.llm.model_copy(update={"model": writer})
        given = (source, own, Writer, {"llm": llm}, engine_resources(llm), llm.engines, sizes.__getitem__, quiet)
        clock.add(map_shards(*given))
    for _, output in tasks:
        if missing := sorted(set(sizes) - set(output.shards())):
            raise BuildError(f"{output.folder} lacks {missing[0]}; run the same command again")
        output.finish(facts["rows"])


def _expect(
    cfg: IndexConfig,
    writer: str,
    source: Output,
    known: Frequencies,
    queries: Output,
    held: float,
    expected: Output,
    quiet: bool,
    clock: Clock,
) -> None:
    """What queries for the documents are expected to say, by the LM that wrote them.

    Of the share `held` of the queries nothing is told: an index is judged by them.
    """
    if expected.done() is not None:
        return
    drawn = [place for _, place in draw_places(source, USUAL_DOCUMENTS, cfg.seed)]
    rows = zip(source.rows_at(drawn), queries.rows_at(drawn), strict=True)
    sample = [Asked.of({**document, **asked}, held) for document, asked in rows]
    task = ExpectWords(cfg.queries, cfg.instruction, tuple(sample), known, held)
    expect_words(source, queries, expected, task, writer, engine_resources(cfg.llm), cfg.llm.engines, quiet, clock)


def _distinguish(
    cfg: IndexConfig, writer: str, source: Output, docids: Output, known: Frequencies, distinct: Output, quiet: bool
) -> None:
    """Docids without collisions; the LM that wrote them is loaded again only where there are some."""
    llm = cfg.llm.model_copy(update={"model": writer})

    def ask(asked: Output, tasks: list[tuple[ShardTask, Output]], rows_of: Callable[[str], int]) -> None:
        map_shards(asked, tasks, Writer, {"llm": llm}, engine_resources(llm), llm.engines, rows_of, quiet)

    make_distinct(source, docids, distinct, cfg.docids, known, ask, quiet)


def _find_again(
    cfg: IndexConfig, first: Left, key: str, kept: Output, folder: Folder, clock: Clock, quiet: bool
) -> Output:
    """Those of the kept queries that the retriever of the first training leads to their documents, as the output `key`.

    Its index has no words of the documents and chooses no way of decoding: it shows what was learned, and no more.
    """
    again, index = Output.at(folder, "filtered", key), folder.url_of(f"first-{key}")
    if again.done() is not None:
        return again
    if _current(index, key) is None:
        calibration = cfg.calibration.model_copy(update={"queries": 0, "gist_tokens": 0})
        bare = cfg.model_copy(update={"postings": "docids", "calibration": calibration})
        clock.time("second pass", lambda: publish(index, first, bare, {"key": key}, folder, quiet, clock))
    asking = (first.source, first.docids, kept, again, index, cfg.queries, engine_resources(cfg.llm))
    clock.time("second pass", lambda: find_again(*asking, cfg.llm.engines, quiet, clock))
    return again


def _counts(output: Output, name: str) -> dict[str, int]:
    """What the stage that made `output` has counted under `name`; nothing where it is switched off."""
    return dict((output.done() or {}).get(name, {}))


def _lock_beside(target: str) -> Path | None:
    """The lock of a local index; a lock object on a store would outlive a build that was killed."""
    return None if is_url(target) else Path(target).with_name(f".{Path(target).name}.lock")


@contextmanager
def _only_builder(lock: Path | None) -> Iterator[None]:
    """Hold the lock of a build, where there is one. Raises BuildError where another build holds it."""
    with ExitStack() as held:
        if lock is not None:
            try:
                held.enter_context(locked(lock, wait=False))
            except BlockingIOError:
                raise BuildError(
                    f"another build holds {lock}; wait for it, or give other OUT and --work folders"
                ) from None
        yield
