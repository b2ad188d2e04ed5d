"""Many collections in one table: a suite file lists them, every run is kept, what has not changed is not done again."""

from __future__ import annotations

import math
import os
import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace
from functools import cache, cached_property, partial
from hashlib import sha256
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pydantic import Field

from zerogr_ray.config import DecodeConfig, Strict, read_config
from zerogr_ray.corpus.collections import QUERY_FILES, read_collection
from zerogr_ray.corpus.documents import source_stamp
from zerogr_ray.corpus.files import first_file, locate
from zerogr_ray.corpus.trec import read_run, write_run
from zerogr_ray.errors import IndexRefused, InputError
from zerogr_ray.evaluation.baselines import bm25, stemmer
from zerogr_ray.evaluation.evaluate import as_published, as_run, documents_of, search_collection
from zerogr_ray.evaluation.metrics import evaluate, mean
from zerogr_ray.evaluation.report import table
from zerogr_ray.index.manifest import read_manifest
from zerogr_ray.rows import Collection, Run
from zerogr_ray.s3 import open_url, reaching
from zerogr_ray.store import Folder, key_of

if TYPE_CHECKING:
    from zerogr_ray.decoding.retriever import Retriever
    from zerogr_ray.evaluation.dense import SentenceEncoder
    from zerogr_ray.index.bundle import Bundle

SPACE = r"[ \t\n\r\v\f]"

Figures = dict[str, dict[str, float]]
"""System -> metric -> mean over queries, or over collections."""


class CollectionConfig(Strict):
    """One collection of a suite, or several that are laid out alike."""

    dataset: str | tuple[str, ...] = Field(min_length=1)
    """BEIR or MAIR folder, a pattern of such folders (data/mair/*), or a list of both."""
    index: str = Field(min_length=1)
    """Folder of the index; {name} in it stands for the collection's name."""
    name: str = ""
    """What the table calls it; without one, the last part of the folder's path. For a single folder."""
    domain: str = ""
    """Collections of one domain get a mean of their own. Without one they count in the mean of all."""
    instruction: str = ""
    """The retrieval task, instead of the one of the queries or of the index."""
    split: str = "test"
    """Which judgements: qrels/SPLIT.tsv."""


class SuiteConfig(Strict):
    """A suite file. Its paths start where the command is run."""

    out: str = ""
    """Folder of the runs, one folder in it per collection; without one, the suite's path without .toml, plus .runs."""
    k: int = Field(100, ge=1)
    """Documents per query."""
    published: bool = True
    """The published algorithm beside it, where any of the indexes is searched in another way."""
    bm25: bool = True
    """BM25 on the same queries beside ours."""
    encoder: str = ""
    """A sentence encoder beside it: all-minilm-l6-v2, a folder or org/name."""
    decode: DecodeConfig | None = None
    """How ours searches; without it, as each index chose."""
    collections: tuple[CollectionConfig, ...] = Field(min_length=1)
    """[[collections]] tables."""


@dataclass(frozen=True)
class Planned:
    """A collection that has been read, and its index's manifest: both are there."""

    collection: Collection
    domain: str
    instruction: str
    index: str
    index_sha256: str
    decode: DecodeConfig
    """How it is searched."""


@dataclass(frozen=True)
class Plan:
    """What a suite will do."""

    planned: list[Planned]
    skipped: list[str]
    """Folders that match a pattern but have no queries."""
    out: str


@dataclass(frozen=True)
class CollectionResult:
    """The figures of one collection."""

    name: str
    domain: str
    queries: int
    figures: Figures
    kept: bool
    """Every run was there from an earlier time."""


@dataclass(frozen=True)
class SuiteResult:
    """The figures of a suite. Every collection counts the same in a mean, however many queries it has."""

    collections: list[CollectionResult]
    domains: dict[str, Figures]
    mean: Figures
    skipped: list[str]
    runs: str
    """Where the run files are."""


def read_suite(file: Path) -> SuiteConfig:
    """Read a suite file. Raises InputError naming the file, the key and the nearest known key."""
    return read_config(file, SuiteConfig)


def plan_suite(config: SuiteConfig, file: Path) -> Plan:
    """Find and read every collection and every index's manifest, before anything is searched.

    Raises InputError or IndexRefused, naming the collection, for what is not there or does not fit.
    """
    planned: dict[str, Planned] = {}
    skipped: list[str] = []
    for entry in config.collections:
        folders, without = _folders(entry, file)
        skipped += without
        if entry.name and len(folders) > 1:
            raise InputError(f"{file}: name {entry.name!r} stands for {len(folders)} folders; leave it out")
        if len(folders) > 1 and "{name}" not in entry.index:
            raise InputError(f"{file}: index {entry.index!r} is one for {len(folders)} folders; put {{name}} into it")
        for folder in folders:
            name = entry.name or folder.rstrip("/").rsplit("/", 1)[-1]
            if name in planned or not name or "/" in name or name.startswith("."):
                wrong = "comes twice" if name in planned else "cannot name a folder of runs"
                raise InputError(f"{file}: the collection name {name!r} ({folder}) {wrong}; give it another: name = …")
            index = entry.index.replace("{name}", name)
            try:
                collection = read_collection(folder, entry.split)
                source_stamp(folder)
                manifest = read_manifest(index)
            except (InputError, IndexRefused) as error:
                raise type(error)(f"{file}: collection {name!r}: {error}") from None
            decode = config.decode or DecodeConfig(**manifest.get("decode", {}))
            named = replace(collection, name=name)
            planned[name] = Planned(named, entry.domain, entry.instruction, index, manifest["sha256"], decode)
    if not planned:
        raise InputError(f"{file} lists no collection: {', '.join(skipped)} have no {QUERY_FILES[0]}")
    out = config.out or str(file.with_suffix("")) + ".runs"
    return Plan(list(planned.values()), skipped, out)


def run_suite(plan: Plan, config: SuiteConfig, quiet: bool = False) -> SuiteResult:
    """Search what has changed since the last time, measure everything.

    A run is written whole before the note that says what it was made from: one that was cut short is made again.
    Raises InputError, before a collection is searched, for an id of it that a run file cannot carry.
    """
    encoder = _Encoder(config.encoder) if config.encoder else None
    paper = config.published and any(row.decode != as_published(row.decode) for row in plan.planned)
    results = []
    for row in plan.planned:
        folder = Folder(plan.out) / row.collection.name
        runs: dict[str, Run] = {}
        made: dict[str, Run] = {}
        kept = True
        for name, (key, search) in _systems(row, config, paper, encoder, quiet).items():
            # An index that is searched as published anyway has one run under both names.
            runs[name], there = _run(folder, name, key, partial(made.__getitem__, key) if key in made else search)
            made[key] = runs[name]
            kept = kept and there
        qrels = row.collection.qrels
        figures = {name: mean(evaluate(qrels, run)) for name, run in runs.items()}
        results.append(CollectionResult(row.collection.name, row.domain, len(qrels), figures, kept))
    domains = dict.fromkeys(row.domain for row in results if row.domain)
    return SuiteResult(
        results,
        {domain: mean_figures(row.figures for row in results if row.domain == domain) for domain in domains},
        mean_figures(row.figures for row in results),
        plan.skipped,
        plan.out,
    )


def _folders(entry: CollectionConfig, file: Path) -> tuple[list[str], list[str]]:
    """The folders that an entry names, and those that match a pattern of it without being collections."""
    folders, skipped = [], []
    for pattern in (entry.dataset,) if isinstance(entry.dataset, str) else entry.dataset:
        if not set(pattern) & set("*?["):
            folders.append(pattern)
            continue
        try:
            with reaching(pattern):
                fs, inside = open_url(pattern)
                matches = sorted(str(match) for match in fs.glob(inside) if fs.isdir(match))
        except Exception as error:  # every filesystem brings its own
            raise InputError(f"{file}: {pattern} cannot be listed: {error}; check the address") from None
        shown = [fs.unstrip_protocol(match) if "://" in pattern else _as_written(match, pattern) for match in matches]
        found = [folder for folder in shown if first_file(locate(folder), QUERY_FILES)]
        if not found:
            raise InputError(f"{file}: no folder that matches {pattern!r} has a {QUERY_FILES[0]}; check the pattern")
        folders += found
        skipped += [folder for folder in shown if folder not in found]
    return folders, skipped


def _as_written(match: str, pattern: str) -> str:
    """A local match, relative where the pattern is."""
    return match if Path(pattern).is_absolute() else os.path.relpath(match)


class _Encoder:
    """A sentence encoder that is loaded when it is first needed."""

    def __init__(self, name: str) -> None:
        from zerogr_ray.evaluation.dense import encoder_name
        from zerogr_ray.models import find_model, fingerprint

        self.given, self.name = name, encoder_name(name)
        self.fingerprint = fingerprint(find_model(name))

    @cached_property
    def loaded(self) -> SentenceEncoder:
        from zerogr_ray.evaluation.dense import SentenceEncoder

        return SentenceEncoder(self.given)


def _systems(
    row: Planned, config: SuiteConfig, paper: bool, encoder: _Encoder | None, quiet: bool
) -> dict[str, tuple[str, Callable[[], Run]]]:
    """Of each system the key of what its run depends on, and how to make it."""
    collection, k = row.collection, config.k
    asked = [(query.qid, query.text) for query in collection.queries]
    tasks = row.instruction or [query.instruction for query in collection.queries]

    @cache
    def opened() -> Retriever:
        from zerogr_ray.options import load

        retriever: Retriever = load(row.index)
        _check_ids(retriever.bundle, collection)
        return retriever

    def ours(decode: DecodeConfig) -> Run:
        return as_run(search_collection(opened(), collection, decode, k, quiet, row.instruction, collection.name))

    systems: dict[str, tuple[str, Callable[[], Run]]] = {}
    for name, decode in {"zerogr": row.decode, **({"published": as_published(row.decode)} if paper else {})}.items():
        key = key_of("zerogr", 2, row.index_sha256, asked, tasks, decode.model_dump(), k)
        systems[name] = key, partial(ours, decode)
    corpus = source_stamp(collection.path) if config.bm25 or encoder else ""
    if config.bm25:
        key = key_of("bm25", 1, corpus, asked, k, stemmer() is not None)
        systems["bm25"] = (key, lambda: bm25(documents_of(collection), collection.queries, k))
    if encoder:
        from zerogr_ray.evaluation.dense import dense

        key = key_of("dense", 1, corpus, asked, k, encoder.fingerprint)
        systems[encoder.name] = (
            key,
            lambda: dense(documents_of(collection), collection.queries, k, encoder.loaded, quiet),
        )
    return systems


def _check_ids(bundle: Bundle, collection: Collection) -> None:
    """Raises InputError for an id that a run file cannot carry: better before the search than after it."""
    import pyarrow.compute as pc

    docnos = bundle.documents["docno"]
    bad = docnos.filter(pc.match_substring_regex(docnos, SPACE))[:1].to_pylist()
    bad += [query.qid for query in collection.queries if re.search(SPACE, query.qid)]
    if bad:
        raise InputError(
            f"collection {collection.name!r}: the id {bad[0]!r} has a space in it, which a TREC run file cannot carry; "
            "write it without one in corpus, queries and qrels, and build the index again"
        )


def _run(folder: Folder, system: str, key: str, search: Callable[[], Run]) -> tuple[Run, bool]:
    """The kept run of a system if it was made from what `key` says, else a new one; and whether it was kept."""
    note, file = f"{system}.json", f"{system}.trec"
    try:
        made: Any = folder.read_json(note)
        same = isinstance(made, dict) and made.get("key") == key
        if same and sha256(folder.read(file)).hexdigest() == made.get("sha256"):
            return read_run(folder.url_of(file)), True
    except (ValueError, FileNotFoundError):  # a damaged note or a lost run is made again
        pass
    run = search()
    folder.write_json(note, {})  # from here on the old run counts no more
    write_run(folder.url_of(file), run, system)
    folder.write_json(note, {"key": key, "sha256": sha256(folder.read(file)).hexdigest()})
    return run, False


def mean_figures(rows: Iterable[Figures]) -> Figures:
    """Mean over collections that all have the same systems and metrics; at least one."""
    every = list(rows)
    return {
        system: {metric: math.fsum(row[system][metric] for row in every) / len(every) for metric in values}
        for system, values in every[0].items()
    }


def suite_table(result: SuiteResult, metric: str) -> str:
    """Collections by systems, then the means; three decimals."""

    def cells(figures: Figures) -> dict[str, float]:
        return {system: values[metric] for system, values in figures.items()}

    rows: dict[str, Mapping[str, float | str]] = {
        row.name: {"domain": row.domain or "-", "queries": str(row.queries), **cells(row.figures)}
        for row in result.collections
    }
    for domain, figures in result.domains.items():
        here = [row for row in result.collections if row.domain == domain]
        rows[f"mean of {domain}"] = _mean_row(here) | cells(figures)
    rows["mean of all"] = _mean_row(result.collections) | cells(result.mean)
    return table(rows, first=f"collection ({metric})")


def _mean_row(rows: list[CollectionResult]) -> dict[str, float | str]:
    return {"domain": f"{len(rows)} of them", "queries": str(sum(row.queries for row in rows))}
