"""The last stage of a build: documents, docids and the tuned LM become an index that knows how it is best searched."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa

from zerogr_ray.chat import PromptFormat
from zerogr_ray.cluster import shared
from zerogr_ray.config import CalibrationConfig, DecodeConfig, IndexConfig
from zerogr_ray.corpus.bags import Bags
from zerogr_ray.corpus.draw import Drawn, draw_documents
from zerogr_ray.corpus.terms import Frequencies
from zerogr_ray.corpus.text import passages
from zerogr_ray.decoding.choose import usual
from zerogr_ray.decoding.gists import WriteGists, add_gists
from zerogr_ray.decoding.priors import MeasurePriors, measure_priors
from zerogr_ray.docids.generate import show
from zerogr_ray.errors import BuildError
from zerogr_ray.generation.writer import engine_resources
from zerogr_ray.index.bundle import Bundle, write_index, writing_index
from zerogr_ray.index.dataset import Tokenise, index_documents
from zerogr_ray.index.manifest import read_manifest
from zerogr_ray.index.trie import Trie
from zerogr_ray.judge import choose_decoding, draw_trial, held_queries
from zerogr_ray.models import fingerprint, load_format
from zerogr_ray.s3 import is_url
from zerogr_ray.stage import Clock, Output, last_line
from zerogr_ray.store import Folder
from zerogr_ray.training.record import training_record

USUAL_QUERIES, USUAL_DOCUMENTS = 32, 64
"""Passages and documents over which the mean is taken that gists leave out."""


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
            return clock.time("decoding", lambda: choose_decoding(bundle, place, queries, trial, resources, quiet))
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


def _passage(number: int, document: dict[str, str], cfg: CalibrationConfig) -> str:
    some = passages(document["text"], cfg.text_words, 64) or [document["title"] or document["docno"]]
    return some[number % len(some)]
