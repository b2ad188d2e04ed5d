"""The last stage of a build: documents, docids and the tuned LM become an index that knows how it is best searched."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from heapq import nsmallest
from itertools import accumulate, chain, repeat
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa

from zerogr_ray.cache import here
from zerogr_ray.chat import PromptFormat
from zerogr_ray.cluster import shared
from zerogr_ray.config import CalibrationConfig, DecodeConfig, IndexConfig
from zerogr_ray.corpus.bags import Bags, taken_off
from zerogr_ray.corpus.terms import Frequencies
from zerogr_ray.corpus.text import passages
from zerogr_ray.decoding.choose import PLAN_WEIGHTS, WEIGHTS, Floats, choose, gains, usual, ways, weighed
from zerogr_ray.decoding.gists import GistModel, WriteGists, add_gists, query_prompts
from zerogr_ray.decoding.priors import MeasurePriors, measure_priors
from zerogr_ray.decoding.retriever import Retriever
from zerogr_ray.decoding.weights import fit_weights, plan_scores
from zerogr_ray.docids.generate import show
from zerogr_ray.errors import BuildError
from zerogr_ray.generation.writer import engine_resources
from zerogr_ray.index.bundle import Bundle, opened, write_index, writing_index
from zerogr_ray.index.dataset import Tokenise, index_documents
from zerogr_ray.index.manifest import read_manifest
from zerogr_ray.index.postings import Postings
from zerogr_ray.index.trie import Trie
from zerogr_ray.models import fingerprint, hush, load_format
from zerogr_ray.s3 import is_url
from zerogr_ray.stage import Clock, Output, last_line, progress, sample_shards
from zerogr_ray.store import Folder, hash64
from zerogr_ray.training.record import training_record
from zerogr_ray.training.validation import FEWEST, is_held_out

RESTARTS = 3
"""Deaths of the process that compares ways of decoding that one build survives."""

USUAL_QUERIES, USUAL_DOCUMENTS = 32, 64
"""Passages and documents over which the mean is taken that gists leave out."""


NO_WORDS: dict[str, list[int]] = {"words": [], "weights": []}
"""A row of BAG."""

Drawn = tuple[int, dict[str, str]]
"""(hash, document) of one that stands for the corpus."""


@dataclass(frozen=True)
class Left:
    """What the stages before have left."""

    source: Output
    docids: Output
    pairs: Output
    bags: Bags | None
    """What the documents are about, in the order of the source; None where the index shall not hold it."""
    tuned: Path
    """Folder of the fine-tuned LM."""
    format: PromptFormat
    """Of the model before it was tuned."""
    expected: Output | None = None
    """What queries for the documents are expected to say; None where nobody asked."""
    queries: Output | None = None
    """The pseudo-queries that were kept, and by which it is learned what the parts of a plan count."""
    held: float = 0.0
    """Share of them that is held back to judge the index by."""
    known: Frequencies | None = None
    """In how many documents terms occur."""


def publish(
    target: str | Path,
    left: Left,
    cfg: IndexConfig,
    about: dict[str, Any],
    work: Folder,
    quiet: bool = False,
    clock: Clock | None = None,
) -> dict[str, Any]:
    """Write the index to `target`; returns its manifest. `about` goes into the manifest, its key is the build's.

    On the clock, what the LM does for it are the stages "priors" and "decoding". Ray must be initialised.
    """
    clock = clock or Clock()
    if load_format(left.tuned).fingerprint != left.format.fingerprint:
        raise BuildError(f"the tokenizer saved in {left.tuned} gives other prompts than the one it was trained with")
    key, sizes = left.docids.folder.path.rpartition("-")[2], dict((left.source.done() or {})["sizes"])
    documents, build = index_documents(Tokenise(left.source, left.docids, left.format), work, key, sizes, quiet)
    model = fingerprint(left.tuned)
    drawn = draw_documents(left.source, max(cfg.calibration.texts, USUAL_DOCUMENTS if cfg.gists else 0), cfg.seed)
    task = MeasurePriors(cfg.instruction, calibration_texts(drawn, cfg.calibration))
    queries = held_queries(left.pairs, cfg.calibration.queries)
    resources, bags = engine_resources(cfg.llm), left.bags
    written: Output | None = None
    if bags is not None and cfg.gists:
        gists = gist_task(drawn, left.format, cfg, left.known)
        beside = left.expected.folder.path.rpartition("-")[2] if left.expected is not None else ""
        written = Output.at(work, gists.name, gists.key(key, model, beside))
        place = shared("the tuned model", left.tuned, work)
        asking = (bags, left.source, written, left.expected, gists, place, resources)
        bags = clock.time("gists", lambda: add_gists(*asking, cfg.llm.engines, quiet, clock))
    about = {
        **about,
        "instruction": cfg.instruction,
        "model": {"trained_from": cfg.model, "fingerprint": model},
        "prompt_format": left.format.fingerprint,
        "calibration": task.texts,
    }

    def priors(trie: Trie, ordered: pa.Table) -> dict[str, Any]:
        place = shared("the tuned model", left.tuned, work)
        given = (trie, ordered, place, task, work, task.key(key, model), resources, cfg.llm.engines, quiet, clock)
        return clock.time("priors", lambda: measure_priors(*given))

    def way(bundle: Bundle) -> dict[str, Any]:
        from ray.exceptions import RayError

        trial = draw_trial(left, bags, written, cfg, sizes) if bags is not None and written is not None else None
        if not queries and trial is None:
            return {"decode": usual(bundle).model_dump()}
        place = shared("the index", bundle.path, work)
        try:
            return clock.time("decoding", lambda: _chosen(bundle, place, queries, trial, resources, quiet))
        except RayError as error:
            raise BuildError(
                f"comparing ways of decoding failed: {last_line(error)}; run the same command again to go on"
            ) from error
        finally:
            if is_url(place):
                Folder(place).delete()
                Folder(work.url_of("shared")).remove(place.rpartition("/")[2] + ".json")

    with writing_index(target) as folder:
        write_index(
            folder,
            documents,
            left.format.end,
            left.tuned,
            about,
            vocab=None if cfg.postings == "none" else len(left.format.tokenizer),
            bags=bags,
            priors=priors if task.texts else None,
            choose=way if cfg.calibration.queries else None,
            training=training_record(left.tuned.parent),
            build=build,
        )
    return read_manifest(target)


def calibration_texts(drawn: Sequence[Drawn], cfg: CalibrationConfig) -> tuple[str, ...]:
    """A passage each of the first `cfg.texts` of the documents drawn."""
    return tuple(_passage(*one, cfg) for one in drawn[: cfg.texts])


def gist_task(
    drawn: Sequence[Drawn], fmt: PromptFormat, cfg: IndexConfig, known: Frequencies | None = None
) -> WriteGists:
    """What is asked of each document, and of which passages and documents to learn what the LM says anyway.

    `known` are the corpus's frequencies: without them no lines are picked.
    """
    like, drawn = cfg.calibration, drawn[:USUAL_DOCUMENTS]
    known = known if like.pick_lines else None
    return WriteGists(
        cfg.instruction,
        tuple(_passage(*one, like) for one in drawn[:USUAL_QUERIES]),
        tuple(show(document["title"], document["text"], fmt, like.gist_doc_tokens, known) for _, document in drawn),
        like.gist_tokens,
        like.gist_doc_tokens,
        DecodeConfig().query_tokens,
        known,
    )


def draw_documents(source: Output, most: int, seed: int) -> list[Drawn]:
    """The `most` documents whose (seed, docno) have the lowest hashes, lowest first."""
    drawn = draw_places(source, most, seed)
    rows = source.rows_at([place for _, place in drawn], ["docno", "title", "text"])
    return [(number, row) for (number, _), row in zip(drawn, rows, strict=True)]


def draw_places(
    source: Output, most: int, seed: int, shards: Sequence[str] | None = None
) -> list[tuple[int, tuple[str, int]]]:
    """(hash, (shard, row)) of the same documents; of those in `shards` alone, where they are given."""
    lowest: list[tuple[int, tuple[str, int]]] = []
    for shard in (shards or source.shards()) if most else ():
        docnos = source.folder.read_table(shard, ["docno"])["docno"].to_pylist()
        numbers = ((hash64(str(seed), docno), (shard, row)) for row, docno in enumerate(docnos))
        lowest = nsmallest(most, chain(lowest, numbers))
    return lowest


def _passage(number: int, document: dict[str, str], cfg: CalibrationConfig) -> str:
    some = passages(document["text"], cfg.text_words, 64) or [document["title"] or document["docno"]]
    return some[number % len(some)]


def held_queries(pairs: Output, most: int) -> list[tuple[str, str]]:
    """At most `most` (query, docid) that training was not shown: those with the lowest hashes.

    None where there are fewer than FEWEST: what so few say is chance.
    """
    rows: list[tuple[str, str]] = []
    for name in pairs.folder.names("held-", ".parquet"):
        table = pairs.folder.read_table(name).to_pydict()
        rows += zip(table["query"], table["docid"], strict=True)
        rows = nsmallest(most, rows, key=lambda row: (hash64(*row), row))
    return rows if len(rows) >= min(most, FEWEST) else []


class Trial(NamedTuple):
    """Some documents with their gists, and queries that were written for them."""

    postings: Postings
    """Of the documents' words and gists; what queries are expected to say is not in them."""
    queries: list[str]
    right: list[int]
    """Number of the document that each query is for."""


def draw_trial(
    left: Left, bags: Bags, gists: Output, cfg: IndexConfig, sizes: dict[str, int], most: int = 1000
) -> Trial | None:
    """At most `most` documents and cfg.calibration.weighed_by of their queries, by their hashes; none held back.

    `bags` are the index's, `gists` what add_gists has written. None where there are fewer than FEWEST queries.
    """
    if left.queries is None or left.bags is None or not cfg.calibration.weighed_by:
        return None
    # Of a large corpus a few shards: what a document has is spread over four outputs, and a shard is read whole.
    some = sample_shards(sizes, 50 * most)
    found = [place for _, place in draw_places(left.source, most, cfg.seed, some)]
    rows = zip(left.source.rows_at(found, ["docno"]), left.queries.rows_at(found, ["queries"]), strict=True)
    asked = [
        (hash64(query, row["docno"]), query, number)
        for number, (row, written) in enumerate(rows)
        for query in written["queries"]
        if not is_held_out(left.held, row["docno"], query)
    ]
    if len(asked) < FEWEST:
        return None
    asked = nsmallest(cfg.calibration.weighed_by, asked)
    words = gists.rows_at(found)
    alone = taken_off(
        words, left.expected.rows_at(found) if left.expected is not None else repeat(NO_WORDS, len(words))
    )
    starts = dict(zip(sorted(sizes), accumulate((sizes[shard] for shard in sorted(sizes)), initial=0), strict=False))
    own = left.bags.take(np.array([starts[shard] + row for shard, row in found]))
    assert bags.prior is not None
    postings = Postings.of_bags(own.with_gists([alone], bags.prior))
    return Trial(postings, [query for _, query, _ in asked], [number for *_, number in asked])


class _Judge:
    """Ray actor: the index that is being built, searched as each way of decoding would."""

    def __init__(self, place: str, manifest: dict[str, Any], queries: list[tuple[str, str]], device: str) -> None:
        hush()
        self.retriever = Retriever.open(opened(here(place), manifest), device)
        self.queries = queries

    def measure(self, cfg: DecodeConfig) -> Floats:
        """Its nDCG@10 on each of the held-back queries."""
        return gains(self.retriever, self.queries, cfg)

    def weigh(self, trial: Trial) -> dict[str, float]:
        """What the parts of its plans count, by the queries of the trial."""
        asked = GistModel(self.retriever.model, self.retriever.format)
        manifest = self.retriever.bundle.manifest
        tokens = query_prompts(asked.format, manifest["instruction"], trial.queries, DecodeConfig().query_tokens)
        return fit_weights(plan_scores(asked.logprobs(tokens), trial.queries, trial.postings), trial.right)


def _chosen(
    bundle: Bundle,
    place: str,
    queries: list[tuple[str, str]],
    trial: Trial | None,
    resources: dict[str, Any],
    quiet: bool,
) -> dict[str, Any]:
    """What the manifest says of the choice: `decode`, and `decode_tried` with the figure of every way.

    `place` is where any node finds the index's files.
    """
    import ray

    device = "cuda" if resources["num_gpus"] else "cpu"
    # Measured anew on another process or node where this one dies: what it says depends on nothing else. Ray counts
    # every refused connection to a lost node as a try, and it takes a while to hear of the loss: so the restarts count.
    lasting = {"max_restarts": RESTARTS, "max_task_retries": -1}
    judge: Any = ray.remote(**resources, **lasting)(_Judge).remote(place, bundle.manifest, queries, device)
    try:
        learned = {PLAN_WEIGHTS: ray.get(judge.weigh.remote(trial))} if trial is not None else {}
        bundle = replace(bundle, manifest={**bundle.manifest, **learned})
        plain = usual(bundle)
        if not queries:
            return learned | {"decode": plain.model_dump()}
        among = list(ways(bundle))
        most = len(among) + (len(WEIGHTS) - 1 if bundle.priors is not None else 0)
        with progress("decoding", most, unit="ways", quiet=quiet) as bar:

            def measure(cfg: DecodeConfig) -> Floats:
                found: Floats = ray.get(judge.measure.remote(cfg))
                bar.update()
                return found

            choice = choose(among, plain, measure, lambda best: weighed(best, bundle))
    finally:
        ray.kill(judge)
    return learned | {"decode": choice.best.model_dump(), "decode_tried": asdict(choice)["tried"]}
