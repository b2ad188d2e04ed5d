"""Claim: nothing that the adapters of this package were trained on resembles what they are judged by.

    python benchmarks/overlap.py --out benchmarks/results/overlap.json       2 CPU cores: seconds

For each adapter and each collection of quality.py what `zerogr overlap` says: the training instructions nearest to the
collection's, its test queries that are among the training rows, and the verdict. Which tasks of the pools an adapter
was trained on is read from the adapter.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections import Counter
from dataclasses import asdict
from datetime import date
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from benchmarks.quality import COLLECTIONS, UNSEEN
from zerogr_ray.adapters import ABOUT, SHIPPED
from zerogr_ray.corpus.collections import read_collection
from zerogr_ray.evaluation.overlap import NEAR_QUERY, NEAR_TFIDF, overlap, read_pool


def main() -> None:
    """Compare, print the verdicts as JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, default=Path("../shared/data"), help="collections and train_pools")
    parser.add_argument("--out", type=Path, help="also write the JSON here")
    given = parser.parse_args()
    names = dict.fromkeys(name.removesuffix("-60").removesuffix("-200") for name in (*COLLECTIONS, *UNSEEN))
    collections = [read_collection(str(given.data / name)) for name in names]
    pooled = {task for tasks in read_pool(str(given.data / "train_pools")).queries.values() for task in tasks}
    result: dict[str, Any] = {"near": {"instruction": NEAR_TFIDF, "query": NEAR_QUERY}, "adapters": {}}
    for about in sorted(SHIPPED.glob(f"*/{ABOUT}")):
        trained = json.loads(about.read_text(encoding="utf-8"))["rows"]
        without = sorted(pooled - set(trained))
        found = overlap(read_pool(str(given.data / "train_pools"), without), collections)
        rows = {row.collection: {k: v for k, v in asdict(row).items() if k != "collection"} for row in found}
        result["adapters"][about.parent.name] = {"trained on": trained, "left out": without, "collections": rows}
    every = [row for one in result["adapters"].values() for row in one["collections"].values()]
    result["verdicts"] = Counter(row["verdict"] for row in every)
    result["date"] = date.today().isoformat()
    text = json.dumps(result, indent=1)
    print(text)
    if given.out:
        given.out.write_text(text + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
