"""Claim: each ingredient of the pipeline earns its place. One removed at a time, on two small collections.

    python benchmarks/ablations.py --out benchmarks/results/ablations.json     2 CPU cores: hours; resumable
    python benchmarks/ablations.py --only adi --variant full --variant untrained

Every variant is built by `zerogr index` with other settings, from the stages of the others that it shares, and measured
as in quality.py, nDCG@10. The index of the full variant is then searched in every mode, with and without a plan:
reverse annealing (reference) against sampling, beam, top_k and the order by whole docids. `per_document` says how
quality grows with the number of pseudo-queries of a document.
"""

from __future__ import annotations

import argparse
import json
import sys
from datetime import date
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from benchmarks.quality import SMALL, as_arguments, ndcg, one
from benchmarks.trie import machine
from zerogr_ray.config import DecodeConfig
from zerogr_ray.corpus.collections import read_collection
from zerogr_ray.decoding.choose import usual
from zerogr_ray.decoding.retriever import Retriever
from zerogr_ray.evaluation.evaluate import as_run, search_collection

FULL = {key: value for key, value in SMALL.items() if key != "training.rerank_every"}
"""As in quality.py, without the rerank head, which no variant is about."""

VARIANTS: dict[str, dict[str, Any]] = {
    "full": {},
    "no LM queries": {"queries.per_document": 0},
    "no passages": {"queries.passages": 0},
    "no filter": {"queries.filter.repeats": 0, "queries.filter.shared": False, "queries.filter.round_trip": 0},
    "repeats kept": {"queries.filter.repeats": 0},
    "shared kept": {"queries.filter.shared": False},
    "not found kept": {"queries.filter.round_trip": 0},
    "second pass": {"queries.filter.retriever": 10},
    "questions alone": {"queries.mix.question": 1},
    "cooler queries": {"queries.temperature": 0.7},
    "few-shot queries": {"queries.adapter": ""},
    "zero-shot queries": {"queries.adapter": "", "queries.examples": 0},
    "no adapters": {"adapter": "", "docids.adapter": "", "queries.adapter": ""},
    "untrained": {"training.epochs": 0},
    "half of the training": {"training.average": 0.5},
    "all of the training": {"training.average": 1},
    "three epochs, all of them": {"training.epochs": 3, "training.average": 1},
    "no gists": {"calibration.gist_tokens": 0},
    "no expected words": {"queries.expected_tokens": 0},
    "usual weights": {"calibration.weighed_by": 0},
    "keyword docids": {"docids.written_by": "rule"},
    "random docids": {"docids.written_by": "random"},
    "docids may be shared": {"docids.distinct": False},
}

PER_DOCUMENT = (0, 1, 2, 4, 8)

PARTS = (*VARIANTS, "per document", "modes")

MODES = {mode: {"mode": mode} for mode in ("reference", "sampling", "beam", "top_k")} | {
    "reference, whole docids": {"order": "docid"}
}


def main() -> None:
    """Build and measure what is missing, print everything as JSON; what is done is in the file after each variant."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, default=Path("../shared/data"), help="folder of collections")
    parser.add_argument("--work", type=Path, default=Path("ablations.work"), help="indexes and what their builds leave")
    parser.add_argument("--only", action="append", help="a collection; may repeat (api-torchhub and adi)")
    parser.add_argument("--variant", action="append", choices=PARTS, help="a variant or a series; may repeat (all)")
    parser.add_argument("--out", type=Path, help="also write the JSON here, beside what is there of other variants")
    arguments = parser.parse_args()
    names = arguments.only or ["api-torchhub", "adi"]
    result = measured(arguments.out) | {"settings": FULL}
    for name in names:
        root = arguments.work / name

        def built(folder: str, changed: dict[str, Any], name: str = name, root: Path = root) -> dict[str, Any]:
            figures = one(
                name, arguments.data, root / folder.replace(" ", "-"), as_arguments(FULL | changed), root / "work"
            )[0]
            print(name, folder, figures, file=sys.stderr)
            return stamped(figures)

        table: dict[str, Any] = result["collections"].setdefault(name, {"variants": {}})
        for part in arguments.variant or PARTS:
            if part in VARIANTS:
                table["variants"][part] = built(part, VARIANTS[part])
            elif part == "modes":
                built("full", {})
                table["modes"] = stamped(modes(root / "full" / "index", arguments.data / name))
            else:
                table["per_document"] = {n: built(f"{n} queries", {"queries.per_document": n}) for n in PER_DOCUMENT}
            save(result, arguments.out)
    print(json.dumps(result, indent=1))


def stamped(figures: dict[str, Any]) -> dict[str, Any]:
    """With what they were measured on, and when: a file may hold rows of several runs."""
    return figures | {"machine": machine(), "date": date.today().isoformat()}


def measured(out: Path | None) -> dict[str, Any]:
    """What `save` has written before."""
    return dict(json.loads(out.read_text())) if out and out.exists() else {"collections": {}}


def save(result: dict[str, Any], out: Path | None) -> None:
    """Write what there is."""
    if out:
        out.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")


def modes(index: Path, source: Path) -> dict[str, Any]:
    """nDCG@10 of each mode, published (no prior, no plan) and as an index is usually searched."""
    retriever, collection = Retriever.load(index), read_collection(str(source))
    figures = {}
    for base, cfg in (("published", DecodeConfig()), ("planned", usual(retriever.bundle))):
        for name, changed in MODES.items():
            found = search_collection(retriever, collection, cfg.model_copy(update=changed), 10, name=name)
            figures[f"{base} {name}"] = ndcg(collection.qrels, as_run(found))
    return figures


if __name__ == "__main__":
    main()
