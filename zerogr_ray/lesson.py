"""A lesson: what the retriever is to learn, made of docids and queries, and the training on it.

A build has one, or two where the retriever of the first decides which queries the second is made of.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from zerogr_ray.cache import here
from zerogr_ray.config import IndexConfig
from zerogr_ray.keys import LessonKeys
from zerogr_ray.stage import Clock, Output
from zerogr_ray.store import Folder
from zerogr_ray.training.fit import bar_of_steps, fit
from zerogr_ray.training.pairs import write_pairs
from zerogr_ray.training.rerank import write_candidates
from zerogr_ray.training.tasks import Retrieve


def learn(
    keys: LessonKeys,
    kept: Output,
    cfg: IndexConfig,
    source: Output,
    distinct: Output,
    facts: dict[str, Any],
    held: float,
    base: str,
    reserved: int | None,
    folder: Folder,
    clock: Clock,
    quiet: bool,
) -> tuple[Output, Path]:
    """The pairs of the kept queries, and the folder of the LM that was trained on them.

    `held` is the share of the queries that it never sees. With a `reserved` token it learns from wrong docids too,
    which that token scores.
    """
    pairs, training = Output.at(folder, "pairs", keys.pairs), Output.at(folder, "training", keys.training)
    clock.time("pairs", lambda: write_pairs(source, distinct, kept, pairs, cfg.queries, facts["sizes"], quiet, held))
    candidates = None
    if reserved is not None:
        candidates, wrong = Output.at(folder, "candidates", keys.candidates), cfg.training.rerank_candidates - 1
        mining = (source, distinct, pairs, candidates, wrong, cfg.training.seed, quiet)
        clock.time("candidates", lambda: write_candidates(*mining))
    return pairs, clock.time("training", lambda: _train(cfg, base, pairs, candidates, training, quiet))


def _train(
    cfg: IndexConfig,
    model: str,
    pairs: Output,
    candidates: Output | None,
    training: Output,
    quiet: bool,
) -> Path:
    """The folder of the tuned LM; of the base where nothing is to be trained."""
    if not cfg.training.epochs:
        return here(model)
    shards = [pairs.folder.url_of(name) for name in pairs.shards()]
    held = [pairs.folder.url_of(name) for name in pairs.folder.names("held-", ".parquet")]
    beside = [candidates.folder.url_of(name) for name in candidates.shards()] if candidates else []
    task = Retrieve(cfg.instruction, cfg.training.query_tokens)
    with bar_of_steps(quiet) as show:
        return fit(model, shards, task, cfg.training, str(training.folder), show, held, beside)
