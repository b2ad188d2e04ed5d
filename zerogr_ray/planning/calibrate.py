"""Measure this machine: two small builds with nothing replaced, and some searches.

1. A build of a few documents with the settings as they are: what starting costs, and how fast the LM writes and learns
   once it is warm. Its first shard and first step count as starting.
2. A build of many documents without LM (docids by the rule, no training): what the other stages take per document. What
   they take at all is the first build's.
3. On the second index: BM25 as the filter asks it, priors of some docids, and searches in every way that a build tries.
"""

from __future__ import annotations

import json
import platform
import re
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from zerogr_ray.build import BuildReport, build_index, writers_of
from zerogr_ray.cluster import cores
from zerogr_ray.config import IndexConfig
from zerogr_ray.corpus.terms import stems
from zerogr_ray.corpus.text import passages
from zerogr_ray.errors import InputError
from zerogr_ray.generation.engine import choose_engine
from zerogr_ray.models import find_model, load_format, pick_device
from zerogr_ray.planning.sample import read_sample
from zerogr_ray.planning.speeds import Calibration, Speed
from zerogr_ray.planning.work import ModelShape, count_work
from zerogr_ray.queries.round_trip import Finder
from zerogr_ray.rows import Document
from zerogr_ray.training.checkpoints import read_log

if TYPE_CHECKING:
    from zerogr_ray.decoding.retriever import Retriever

BULK, BULK_SHARDS = 2000, 50
"""Documents and shards of the build without LM, at most."""

SHARDS = 3
"""Shards that the LM writes, of fewer documents than configured where it shall write for few: the first warms it up."""

STEPS = 6
"""Optimizer steps at least, or somewhat fewer where documents have few passages."""

SEARCHES = 2
"""Queries that are searched in every way."""

PRIORS = 4, 24
"""Docids of which priors are measured: the difference is what they cost, the rest is what it costs to begin."""


def measure(corpus: str, cfg: IndexConfig, documents: int | None = None, quiet: bool = True) -> Calibration:
    """Measure on documents of `corpus`, `documents` of them with the LM. Takes minutes."""
    wanted = documents or SHARDS * cfg.corpus.shard_rows
    bulk = max(wanted, min(BULK, BULK_SHARDS * cfg.corpus.shard_rows))
    found = read_sample(corpus, cfg.corpus.text_chars, BULK, 1).documents
    found = found if len(found) <= bulk else [found[i * len(found) // bulk] for i in range(bulk)]
    if not SHARDS <= wanted <= len(found):
        raise InputError(
            f"a calibration takes {SHARDS} documents or more, here {wanted}, and {corpus} gives {len(found)}; "
            "give other --documents or a larger corpus"
        )
    spread = [found[i * len(found) // wanted] for i in range(wanted)]
    with tempfile.TemporaryDirectory(prefix="zerogr-calibrate-") as scratch:
        folder = Path(scratch)
        few = _build(spread, folder / "few", _learning(cfg, wanted), quiet)
        many = _build(found, folder / "many", _without_lm(cfg), quiet)
        log = next((folder / "few" / "index.work").glob("training-*/log.jsonl")).parent
        return _calibration(cfg, spread, found, few, many, read_log(log), folder / "many" / "index")


def _build(documents: Sequence[Document], folder: Path, cfg: IndexConfig, quiet: bool) -> BuildReport:
    folder.mkdir()
    rows = ({"_id": d.docno, **{k: v for k, v in asdict(d).items() if k != "docno"}} for d in documents)
    (folder / "docs.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return build_index(str(folder / "docs.jsonl"), folder / "index", cfg, quiet=quiet)


def _learning(cfg: IndexConfig, documents: int) -> IndexConfig:
    """With at least STEPS steps, of which none writes a checkpoint."""
    examples = cfg.queries.per_document + (cfg.queries.passages and 1 + cfg.queries.passages)
    least = STEPS * cfg.training.batch_examples / (documents * max(1, examples))
    shard_rows = min(cfg.corpus.shard_rows, documents // SHARDS)  # so that there are warm ones
    how = {"epochs": max(cfg.training.epochs, least), "checkpoint_seconds": 1e9, "held_out": 0.0}
    return cfg.model_copy(
        update={
            "corpus": cfg.corpus.model_copy(update={"shard_rows": shard_rows}),
            "training": cfg.training.model_copy(update=how),
            "calibration": cfg.calibration.model_copy(update={"texts": max(1, cfg.calibration.texts)}),
            "docids": cfg.docids.model_copy(update={"distinct_rounds": 0}),
        }
    )


def _without_lm(cfg: IndexConfig) -> IndexConfig:
    return cfg.model_copy(
        update={
            "docids": cfg.docids.model_copy(update={"written_by": "rule", "distinct_rounds": 0}),
            "queries": cfg.queries.model_copy(update={"per_document": 0}),
            "training": cfg.training.model_copy(update={"epochs": 0.0}),
            "calibration": cfg.calibration.model_copy(update={"texts": 0, "queries": 0}),
        }
    )


def _calibration(
    cfg: IndexConfig,
    spread: Sequence[Document],
    found: Sequence[Document],
    few: BuildReport,
    many: BuildReport,
    log: list[dict[str, Any]],
    index: Path,
) -> Calibration:
    base = find_model(cfg.model)
    cfg, writers = writers_of(cfg)
    fmt = load_format(base)
    formats = (load_format(writers[0]), load_format(writers[-1]))
    work = count_work(spread, fmt, formats, cfg, cached=choose_engine(cfg.llm) == "vllm")
    stages = {"start": Speed(unit="", per_second=1, fixed=few.seconds["start"])}
    for name, least in (("corpus", 1), ("terms", 1), ("distinct", 1), ("pairs", 1), ("index", 1), ("bags", cores())):
        stages[name] = _by_two_sizes(few.seconds.get(name, 0.0), many.seconds.get(name, 0.0), few, many, least)

    texts = {"docids": work.docids, "queries": work.queries}
    answers, late = {}, 0.0
    for name, some in texts.items():
        spent = few.spent[name]
        count = max(1.0, some.count * spent.rows)
        answers[name] = spent.tokens / count
        warm, begun = _warm(spent.seconds)
        late += begun
        done = some.prompt + some.count * answers[name]
        stages[name] = Speed(unit="tokens", per_second=max(1.0, done) * spent.rows / len(spent.seconds) / warm)
    took = sum(sum(few.spent[name].seconds) for name in texts)
    starting = max(0.0, few.seconds["docids + queries"] - took + late) / len(set(writers))
    stages["engine"] = Speed(unit="", per_second=1, fixed=starting)
    warm, late = _warm([row["seconds"] for row in log])
    stages["training"] = Speed(
        unit="tokens",
        per_second=sum(row["tokens"] for row in log[1:]) / len(log[1:]) / warm,
        fixed=max(0.0, few.seconds["training"] - sum(row["seconds"] for row in log) + late),
    )
    stages |= {name: _forwards(name, few) for name in ("expected", "gists") if name in few.spent}
    stages |= _filtering(found, few.seconds.get("filter", 0.0), cfg)
    stages |= _searching(index, cfg, found, few)
    written = few.queries.get("written", 0)
    return Calibration(
        hardware=_hardware(),
        device="cuda" if pick_device() == "cuda" else "cpu",
        cores=cores(),
        model=cfg.model,
        parameters=ModelShape.of(base).parameters,
        documents=len(spread),
        bulk=len(found),
        docid_answer=answers["docids"],
        query_answer=answers["queries"],
        kept=few.queries["kept"] / written if written else 1.0,
        memory={"engine": max(few.spent[name].memory for name in texts), "priors": few.spent["priors"].memory},
        stages=stages,
    )


def _forwards(name: str, few: BuildReport) -> Speed:
    """Of the LM's forwards; what it is asked before the first document is counted with the plan's tokens."""
    spent = few.spent[name]
    rate = spent.tokens / max(1e-9, sum(spent.seconds))
    return Speed(unit="tokens", per_second=rate, fixed=max(0.0, few.seconds[name] - sum(spent.seconds)))


def _warm(seconds: Sequence[float]) -> tuple[float, float]:
    """Mean of all but the first, and by how much the first took longer than that."""
    rest = list(seconds[1:]) or list(seconds)
    mean = max(1e-9, sum(rest) / len(rest))
    return mean, max(0.0, seconds[0] - mean)


def _by_two_sizes(small: float, large: float, few: BuildReport, many: BuildReport, workers: int) -> Speed:
    """Seconds per document from the difference between two builds; where noise hides it, from the larger alone."""
    each = (large - small) / (many.documents - few.documents) if many.documents > 2 * few.documents else 0.0
    each = each if each > 0 else max(large, 1e-6) / many.documents
    return Speed(unit="documents", per_second=1 / (each * workers), fixed=max(0.0, small - few.documents * each))


def _timed(work: Callable[[], Any]) -> tuple[float, Any]:
    began = time.perf_counter()
    result = work()
    return time.perf_counter() - began, result


def _filtering(found: Sequence[Document], wall: float, cfg: IndexConfig) -> dict[str, Speed]:
    """What BM25 takes: per query, per query and document that competes, and to index a document."""
    texts = [f"{d.title}\n{d.text}" for d in found]
    queries = [" ".join(passages(text, cfg.queries.passage_words, 1)) for text in texts[:64]]
    took: dict[int, tuple[float, float]] = {}
    for size in {max(1, len(texts) // 8), len(texts)}:
        began = time.perf_counter()
        finder = Finder({str(number): stems(text) for number, text in enumerate(texts[:size])})
        built = time.perf_counter()
        for query in queries:
            finder.rank(query, "0")
        took[size] = (built - began) / size, (time.perf_counter() - built) / len(queries)
    (small, least), (large, most) = ((size, took[size]) for size in (min(took), max(took)))
    each = max(1e-10, (most[1] - least[1]) / max(1, large - small))
    alone = max(1e-7, least[1] - small * each)
    return {
        "filter": Speed(unit="queries", per_second=1 / alone, fixed=wall),
        "ranking": Speed(unit="queries x documents", per_second=1 / each),
        "finder": Speed(unit="documents", per_second=1 / most[0]),
    }


def _searching(index: Path, cfg: IndexConfig, found: Sequence[Document], few: BuildReport) -> dict[str, Speed]:
    """Priors and searches, with the untrained model on the index of the rule's docids."""
    from zerogr_ray.decoding.choose import WEIGHTS, ways
    from zerogr_ray.decoding.priors import MeasurePriors
    from zerogr_ray.decoding.retriever import Retriever

    loading, retriever = _timed(lambda: Retriever.load(index))
    texts = [some[0] for d in found if (some := passages(d.text, cfg.calibration.text_words, 1))]
    task = MeasurePriors(cfg.instruction, tuple(texts[: max(1, cfg.calibration.texts)]))
    small, large = (_priors(retriever, task, min(size, len(found))) for size in PRIORS)
    rate = (large[1] - small[1]) / max(1e-9, large[0] - small[0]) if large[0] > small[0] else large[1] / large[0]
    actor = few.seconds["priors"] - sum(few.spent["priors"].seconds) + max(0.0, small[0] - small[1] / rate)
    asked = texts[:SEARCHES]
    retriever.search_many(asked[:1])  # the instruction's prefix is kept from here on
    # Without priors: what they add to a search is a subtraction.
    tried = [way.model_copy(update={"prior_weight": 0.0}) for way in ways(retriever.bundle)]
    each = [_timed(partial(retriever.search_many, asked, config=way))[0] / len(asked) for way in tried]
    weighing = sum(each) / len(each) * (len(WEIGHTS) - 1)  # the best of them once more with other weights
    return {
        "priors": Speed(unit="tokens", per_second=rate, fixed=max(0.0, actor)),
        "decoding": Speed(unit="queries", per_second=1 / (sum(each) + weighing), fixed=max(0.0, actor)),
        "serving": Speed(unit="queries", per_second=1 / each[0], fixed=loading),
    }


def _priors(retriever: Retriever, task: Any, size: int) -> tuple[float, int]:
    """Seconds and tokens for the priors of `size` docids."""
    from zerogr_ray.decoding.priors import CalibrationModel

    rows = retriever.bundle.documents.slice(0, size)
    seconds, table = _timed(lambda: task(rows, CalibrationModel(retriever.model, retriever.format)))
    return seconds, len(table["priors"].combine_chunks().flatten()) * len(task.texts)


def _hardware() -> str:
    """Processor or GPU, cores and system."""
    name = platform.processor() or platform.machine()
    try:
        found = re.search(r"model name\s*: (.*)", Path("/proc/cpuinfo").read_text())
        flags = re.search(r"flags\s*: (.*)", Path("/proc/cpuinfo").read_text())
        widest = [f for f in ("avx2", "avx512f", "avx512_bf16") if flags and f in flags[1].split()]
        name = f"{found[1] if found else name} ({', '.join(widest[-1:]) or 'no AVX2'})"
    except OSError:
        pass
    if pick_device() == "cuda":
        import torch

        name = torch.cuda.get_device_name()
    return f"{cores()} cores of {name}, {platform.system()}"
