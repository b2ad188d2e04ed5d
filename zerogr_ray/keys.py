"""The key of every stage of a build: what names its folder, and changes with whatever the stage depends on."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from zerogr_ray.config import IndexConfig
from zerogr_ray.decoding.expected import expected_key
from zerogr_ray.decoding.second_pass import second_pass_key
from zerogr_ray.docids.distinct import distinct_key
from zerogr_ray.docids.generate import WriteDocIds
from zerogr_ray.index.manifest import FORMAT
from zerogr_ray.queries.filter import filter_key
from zerogr_ray.queries.generate import WriteQueries
from zerogr_ray.store import key_of
from zerogr_ray.training.fit import NOT_RESULTS


@dataclass(frozen=True)
class LessonKeys:
    """The keys of a training and of what it learns from."""

    kept: str
    """The filtered queries; the queries themselves where the filter is off."""
    pairs: str
    candidates: str
    training: str

    @classmethod
    def of(cls, cfg: IndexConfig, distinct: str, kept: str, model: str) -> LessonKeys:
        held = [cfg.training.held_out, cfg.training.held_out_most]
        pairs = key_of("pairs", 5, distinct, kept, cfg.queries.passages, cfg.queries.passage_words, held)
        candidates = key_of("candidates", 1, pairs, cfg.training.rerank_candidates, cfg.training.seed)
        recipe = cfg.training.model_dump(exclude=NOT_RESULTS)
        training = key_of("training", 4, pairs, model, cfg.instruction, recipe)
        return cls(kept, pairs, candidates, training)


@dataclass(frozen=True)
class Keys:
    """The key of every stage."""

    docids: str
    distinct: str
    """The docids without collisions; the docids themselves where collisions are left."""
    queries: str
    expected: str
    """What queries are expected to say; "" where the index shall not hold it."""
    bags: str
    """What the documents are about; "" where the index shall not hold it."""
    lesson: LessonKeys
    again: LessonKeys | None
    """The second training; None where one is all."""
    index: str

    @classmethod
    def of(cls, cfg: IndexConfig, corpus: str, model: str, prompts: str, writers: Sequence[str]) -> Keys:
        docids = WriteDocIds(cfg.docids).key(corpus, writers[0])
        distinct = distinct_key(docids, cfg.docids) if cfg.docids.distinct else docids
        queries = WriteQueries(cfg.queries, cfg.instruction, cfg.seed).key(corpus, writers[1])
        kept = filter_key(queries, cfg.queries) if cfg.queries.filter.active and cfg.queries.per_document else queries
        held = [kept, cfg.training.held_out, cfg.training.held_out_most]
        asked = (queries, writers[1], cfg.queries, cfg.instruction, cfg.seed, held)
        expected = expected_key(*asked) if cfg.expected else ""
        bags = key_of("bags", 3, corpus, prompts) if cfg.postings == "terms" else ""
        lesson, again = LessonKeys.of(cfg, distinct, kept, model), None
        if cfg.taught_twice:
            again = LessonKeys.of(cfg, distinct, second_pass_key(lesson.training, kept, cfg), model)
        training = (again or lesson).training
        index = key_of("index", FORMAT, training, cfg.postings, bags, expected, cfg.calibration.model_dump())
        return cls(docids, distinct, queries, expected, bags, lesson, again, index)
