"""Claim: zero-shot, from a corpus and one instruction sentence, ours ranks better on the mean than BM25 does.

    python benchmarks/quality.py --out benchmarks/results/quality.json       2 CPU cores: up to three hours
    python benchmarks/quality.py --only adi --only limit-small               the same for some of the collections
    python benchmarks/quality.py --unseen --out benchmarks/results/quality-unseen.json     one hour
    python benchmarks/quality.py --gpu --out benchmarks/results/quality-gpu.json     scifact whole, 16 queries each

For each collection the whole pipeline runs as `zerogr index --config pipelines/laptop.toml` runs it: the build reads
corpus and instruction, never queries or judgements, and chooses its own way of decoding on held-back pseudo-queries.
Then, on the collection's own queries, nDCG@10 (of limit-small also recall@2) of

    bm25        bm25s over title and text
    minilm      all-MiniLM-L6-v2, exact cosine; where its package is installed
    published   ours, decoded by the published algorithm: no calibration, no plan
    ours        as the index chose, in the order of the draws
    reranked    the same ten hits, ordered by the rerank head and the plan

--unseen is the check on what was chosen with those five in sight: 200 documents each, drawn by their ids' hashes, of
four other collections that no adapter was trained on, and all queries that those documents answer.

What is finished is found again: an interrupted run goes on with the next step of the same collection.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import os
import platform
import subprocess
import sys
import time
import tomllib
from dataclasses import replace
from datetime import date
from pathlib import Path
from typing import Any

from zerogr_ray.config import DecodeConfig, dotted
from zerogr_ray.corpus.collections import read_collection
from zerogr_ray.decoding.retriever import Retriever
from zerogr_ray.evaluation.baselines import bm25
from zerogr_ray.evaluation.dense import SentenceEncoder, dense
from zerogr_ray.evaluation.evaluate import as_run, documents_of, search_collection
from zerogr_ray.evaluation.metrics import evaluate, mean, recall_by_depth
from zerogr_ray.models import DEFAULT_ENCODER, PACKAGED
from zerogr_ray.rows import Collection, Qrels, Run
from zerogr_ray.store import hash64

COLLECTIONS = ("api-torchhub", "metatool", "adi", "limit-small", "scifact-60")

UNSEEN = ("medline-200", "cranfield-200", "cisi-200", "spider-tables-200")

LAPTOP = Path(__file__).resolve().parents[1] / "pipelines" / "laptop.toml"

SMALL: dict[str, Any] = dict(dotted(tomllib.loads(LAPTOP.read_text(encoding="utf-8"))))
"""What three hours on two cores allow."""

LARGE = {"queries.per_document": 16, "training.epochs": 3, "training.rerank_every": 8}


def main() -> None:
    """Run what is missing, print the table as JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, default=Path("../shared/data"), help="folder of collections")
    parser.add_argument("--work", type=Path, default=Path("quality.work"), help="indexes and what their builds leave")
    parser.add_argument(
        "--only", action="append", choices=[*COLLECTIONS, *UNSEEN, "scifact"], help="a collection; may repeat"
    )
    parser.add_argument("--unseen", action="store_true", help="four others that no adapter was trained on")
    parser.add_argument("--gpu", action="store_true", help="scifact whole, more queries, more epochs")
    parser.add_argument("--set", action="append", default=[], help="a setting of the build, KEY=VALUE; may repeat")
    parser.add_argument("--out", type=Path, help="also write the JSON here")
    arguments = parser.parse_args()
    usual = UNSEEN if arguments.unseen else (*COLLECTIONS[:4], "scifact" if arguments.gpu else COLLECTIONS[4])
    names = arguments.only or usual
    settings = as_arguments(LARGE if arguments.gpu else SMALL) + arguments.set
    table: dict[str, Any] = {}
    seconds: dict[str, float] = {}
    for name in names:
        table[name], seconds[name] = one(name, arguments.data, arguments.work / name, settings)
        print(name, json.dumps(table[name]), f"{seconds[name]:.0f} s", file=sys.stderr)
    systems = [system for system, value in next(iter(table.values())).items() if isinstance(value, float)]
    result = {
        "collections": table,
        "mean": {system: round(sum(row[system] for row in table.values()) / len(table), 4) for system in systems},
        "seconds": round(sum(seconds.values())),
        "seconds_by_collection": {name: round(spent) for name, spent in seconds.items()},
        "settings": settings,
        "machine": f"{os.cpu_count()} cores, {platform.machine()}",
        "date": date.today().isoformat(),
    }
    text = json.dumps(result, indent=1)
    print(text)
    if arguments.out:
        arguments.out.parent.mkdir(parents=True, exist_ok=True)
        arguments.out.write_text(text + "\n", encoding="utf-8")


def as_arguments(settings: dict[str, Any]) -> list[str]:
    """KEY=VALUE, as --set takes them."""
    return [f"{key}={value if isinstance(value, str) else json.dumps(value)}" for key, value in settings.items()]


def one(
    name: str, data: Path, folder: Path, settings: list[str], work: Path | None = None
) -> tuple[dict[str, Any], float]:
    """The figures of one collection, built in `folder`, and the seconds that building and searching took in all.

    Builds that are given the same `work` share the stages that they have in common.
    """
    folder.mkdir(parents=True, exist_ok=True)
    whole = data / name.removesuffix("-60").removesuffix("-200")
    source = whole
    if name.endswith("-60"):
        source = write_slice(slice_of_queries(read_collection(str(whole)), 60), folder / "collection")
    elif name.endswith("-200"):
        source = write_slice(slice_of_documents(read_collection(str(whole)), 200), folder / "collection")
    index, done = folder / "index", folder / "result.json"
    instruction = (whole / "instruction.txt").read_text(encoding="utf-8").strip()
    spent = folder / "seconds.txt"  # of all attempts: an interrupted build has cost its time too
    started, before = time.monotonic(), float(spent.read_text()) if spent.exists() else 0.0
    try:
        zerogr_index(source, index, work or Path(f"{index}.work"), instruction, settings)
    finally:
        spent.write_text(str(before + time.monotonic() - started))
    key = json.loads((index / "manifest.json").read_text(encoding="utf-8"))["key"]
    if done.exists() and (kept := json.loads(done.read_text()))["key"] == key:
        return kept["figures"], float(spent.read_text())
    figures = measure(index, read_collection(str(source)), name)
    spent.write_text(str(before + time.monotonic() - started))
    done.write_text(json.dumps({"key": key, "figures": figures}))
    return figures, float(spent.read_text())


def zerogr_index(source: Path, index: Path, work: Path, instruction: str, settings: list[str]) -> None:
    """Run `zerogr index` with these settings, KEY=VALUE."""
    chosen = [argument for setting in settings for argument in ("--set", setting)]
    zerogr = Path(sys.executable).with_name("zerogr")
    command = [zerogr, "index", source, index, "--work", work, "--instruction", instruction, *chosen]
    subprocess.run(list(map(str, command)), check=True, stdout=sys.stderr)


def measure(index: Path, collection: Collection, name: str) -> dict[str, Any]:
    """nDCG@10 of every system on the collection's queries."""
    retriever = Retriever.load(index)
    own = retriever.bundle.decode
    ways = {
        "published": DecodeConfig(),
        "ours": own.model_copy(update={"order": "draw"}) if own.mode != "exhaustive" else own,
    }
    if "rerank_token" in retriever.bundle.manifest:
        ways["reranked"] = own.model_copy(update={"order": "rerank"})
    runs: dict[str, Run] = {"bm25": bm25(documents_of(collection), collection.queries, 100)}
    if importlib.util.find_spec(PACKAGED[DEFAULT_ENCODER]):
        encoder = SentenceEncoder(DEFAULT_ENCODER)
        runs["minilm"] = dense(documents_of(collection), collection.queries, 100, encoder)
    for system, cfg in ways.items():
        runs[system] = as_run(search_collection(retriever, collection, cfg, 10, name=f"{name} {system}"))
    figures: dict[str, Any] = {system: ndcg(collection.qrels, run) for system, run in runs.items()}
    if name == "limit-small":
        figures["recall@2"] = {
            system: round(recall_by_depth(collection.qrels, run, [2])[2], 4) for system, run in runs.items()
        }
    published = DecodeConfig().model_dump()
    chosen = {key: value for key, value in own.model_dump().items() if value != published[key]}
    return figures | {"chosen": chosen, "tried": retriever.bundle.manifest.get("decode_tried", [])}


def ndcg(qrels: Qrels, run: Run) -> float:
    """Mean nDCG@10."""
    return round(mean(evaluate(qrels, run))["ndcg@10"], 4)


def sampled(source: Path, most: int, salt: str) -> tuple[Collection, str]:
    """The collection with at most so many of its judged queries, by their ids' hashes alone, and its instruction."""
    collection = read_collection(str(source))
    judged = [query for query in collection.queries if query.qid in collection.qrels]
    queries = sorted(judged, key=lambda query: hash64(salt, query.qid))[:most]
    qrels = {query.qid: collection.qrels[query.qid] for query in queries}
    instruction = (source / "instruction.txt").read_text(encoding="utf-8").strip()
    return replace(collection, queries=queries, qrels=qrels), instruction


def slice_of_queries(collection: Collection, most: int) -> tuple[Collection, set[str]]:
    """The first so many queries, and the documents that they need with as many others."""
    asked = collection.queries[:most]
    needed = {docno for query in asked for docno, grade in collection.qrels[query.qid].items() if grade > 0}
    others = [document.docno for document in documents_of(collection) if document.docno not in needed]
    qrels = {query.qid: collection.qrels[query.qid] for query in asked}
    return replace(collection, queries=asked, qrels=qrels), needed | set(others[: len(needed)])


def slice_of_documents(collection: Collection, most: int) -> tuple[Collection, set[str]]:
    """So many documents, by their ids' hashes, and all queries that they answer."""
    kept = set(sorted((d.docno for d in documents_of(collection)), key=lambda docno: hash64("slice", docno))[:most])
    judged = {qid: {d: g for d, g in grades.items() if d in kept} for qid, grades in collection.qrels.items()}
    qrels = {qid: grades for qid, grades in judged.items() if any(grade > 0 for grade in grades.values())}
    queries = [query for query in collection.queries if query.qid in qrels]
    return replace(collection, queries=queries, qrels=qrels), kept


def write_slice(sliced: tuple[Collection, set[str]], out: Path) -> Path:
    """A BEIR folder of a slice: a collection with those of its documents."""
    collection, kept = sliced
    (out / "qrels").mkdir(parents=True, exist_ok=True)
    documents = [d for d in documents_of(collection) if d.docno in kept]
    rows = [{"_id": d.docno, "title": d.title, "text": d.text} for d in documents]
    write_lines(out / "corpus.jsonl", [json.dumps(row, ensure_ascii=False) for row in rows])
    write_lines(out / "queries.jsonl", [json.dumps({"_id": q.qid, "text": q.text}) for q in collection.queries])
    judged = [(qid, docno, grade) for qid, grades in collection.qrels.items() for docno, grade in grades.items()]
    write_lines(out / "qrels" / "test.tsv", ["query-id\tcorpus-id\tscore", *("\t".join(map(str, r)) for r in judged)])
    return out


def write_lines(path: Path, lines: list[str]) -> None:
    """A text file, left alone where it says the same already: the corpus keeps its time stamp."""
    text = "\n".join(lines) + "\n"
    if not path.exists() or path.read_text(encoding="utf-8") != text:
        path.write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main()
