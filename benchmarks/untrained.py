"""Claim: before any training, what the LM expects behind the prompt and the query's own words together beat BM25.

    python -m benchmarks.untrained --out benchmarks/results/untrained.json     2 CPU cores: some ten minutes

For each collection nDCG@10 of bm25s, and of planning ahead alone (decoding/plan.py): one forward of the prompt, one
sparse product, no docid and no training. `own words` and `expected words` are the plan's two halves. Of a collection
with more queries than --queries, a sample that depends on nothing but their ids.
"""

from __future__ import annotations

import argparse
import json
import sys
from datetime import date
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from benchmarks.plan import logprobs
from benchmarks.quality import ndcg
from zerogr_ray.config import DEFAULT_MODEL, CalibrationConfig, DecodeConfig
from zerogr_ray.corpus.bags import Bags, first_tokens, make_bags, query_bag
from zerogr_ray.corpus.collections import read_collection
from zerogr_ray.corpus.text import passages
from zerogr_ray.decoding.plan import bag_scores, term_gain
from zerogr_ray.evaluation.baselines import bm25
from zerogr_ray.evaluation.evaluate import documents_of
from zerogr_ray.index.postings import Postings
from zerogr_ray.models import find_model, load_format, load_model
from zerogr_ray.rows import Run
from zerogr_ray.store import hash64

COLLECTIONS = ("adi", "api-torchhub", "metatool", "limit-small", "medline", "conala", "scifact", "toollens")


def main() -> None:
    """Measure, print JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, default=Path("../shared/data"), help="folder of collections")
    parser.add_argument("--only", action="append", choices=COLLECTIONS, help="a collection; may repeat")
    parser.add_argument("--queries", type=int, default=60, help="queries of a collection, at most")
    parser.add_argument("--out", type=Path, help="also write the JSON here")
    given = parser.parse_args()
    folder = find_model(DEFAULT_MODEL)
    fmt, model = load_format(folder), load_model(folder, "float32", "cpu")
    table = {}
    for name in given.only or COLLECTIONS:
        table[name] = one(given.data / name, given.queries, fmt, model)
        print(name, json.dumps(table[name]), file=sys.stderr)
    systems = [system for system in next(iter(table.values())) if system != "queries"]
    means = {system: round(sum(row[system] for row in table.values()) / len(table), 4) for system in systems}
    result = {"collections": table, "mean": means, "own_terms": DecodeConfig().own_terms}
    result["date"] = date.today().isoformat()
    text = json.dumps(result, indent=1)
    print(text)
    if given.out:
        given.out.write_text(text + "\n", encoding="utf-8")


def one(source: Path, most: int, fmt: Any, model: Any) -> dict[str, float]:
    """The row of one collection."""
    collection = read_collection(str(source))
    instruction = (source / "instruction.txt").read_text(encoding="utf-8").strip()
    documents = list(documents_of(collection))
    judged = [query for query in collection.queries if query.qid in collection.qrels]
    queries = sorted(judged, key=lambda query: hash64("untrained", query.qid))[:most]
    qrels = {query.qid: collection.qrels[query.qid] for query in queries}
    texts = [f"{document.title}\n{document.text}" for document in documents]
    postings = Postings.of_bags(Bags.of([make_bags(texts)], first_tokens(fmt, texts)))
    chosen = sorted(documents, key=lambda document: hash64("calibration", document.docno))
    like = CalibrationConfig()
    cut = [(passages(document.text, like.text_words, 1) or [document.title])[0] for document in chosen[: like.texts]]
    prior = expected(fmt, model, instruction, cut).mean(0)
    z = expected(fmt, model, instruction, [query.text for query in queries])
    assert postings.begins is not None
    weight = DecodeConfig().own_terms
    ways = {"plan": (z, weight), "own words": (np.tile(prior, (len(z), 1)), 1.0), "expected words": (z, 0.0)}
    row: dict[str, float] = {"queries": len(queries)}
    row["bm25"] = ndcg(qrels, bm25(documents, queries, 100))
    for way, (z_QV, own) in ways.items():
        run: Run = {}
        for query, z_V in zip(queries, z_QV, strict=True):
            gain = term_gain(z_V, prior, postings.begins, query_bag(query.text), own)
            scores = bag_scores(postings, gain, np.arange(len(documents)))
            best = np.argsort(-scores, kind="stable")[:100]
            run[query.qid] = {documents[i].docno: float(scores[i]) for i in best}
        row[way] = ndcg(qrels, run)
    return row


def expected(fmt: Any, model: Any, instruction: str, texts: list[str]) -> NDArray[np.float32]:
    """Log-probabilities of the token that follows each prompt, (texts, vocabulary)."""
    found: NDArray[np.float32] = logprobs(model, [list(tokens) for tokens in fmt.prompts(instruction, texts, 512)])
    return found


if __name__ == "__main__":
    main()
