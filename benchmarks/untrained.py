"""Claim: before any training, what the LM names of query and documents and the words of both together beat BM25.

    python -m benchmarks.untrained --out benchmarks/results/untrained.json     2 CPU cores: half an hour

For each collection nDCG@10 of bm25s, and of planning ahead alone (decoding/plan.py): a forward of each document when
the index is built, one of the query, one sparse product; no docid and no training.

    published    the published algorithm, no plan and no prior: the LM draws docids that a rule made of the documents
    plan         words and gists, as an index is searched by default
    no gists     words alone, expected by what the LM would begin a docid with: an index with calibration.gist_tokens=0
    own words    what query and document hold themselves
    gists        what the LM names of both, no word of theirs

Of a collection with more queries than --queries, a sample that depends on nothing but their ids.
"""

from __future__ import annotations

import argparse
import json
import sys
from dataclasses import replace
from datetime import date
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import pyarrow as pa

from benchmarks.quality import ndcg, sampled, zerogr_index
from zerogr_ray.config import DEFAULT_MODEL, DecodeConfig, IndexConfig
from zerogr_ray.corpus.bags import BUCKETS, Bags, first_tokens, make_bags, query_bag
from zerogr_ray.corpus.draw import draw_documents
from zerogr_ray.corpus.terms import Frequencies
from zerogr_ray.decoding.gists import GistModel, query_prompts
from zerogr_ray.decoding.plan import bag_scores, term_gain
from zerogr_ray.decoding.retriever import Retriever
from zerogr_ray.evaluation.baselines import bm25
from zerogr_ray.evaluation.evaluate import as_run, documents_of, search_collection
from zerogr_ray.index.postings import Postings
from zerogr_ray.models import find_model, load_format, load_model
from zerogr_ray.publish import USUAL_DOCUMENTS, calibration_texts, gist_task
from zerogr_ray.rows import Run
from zerogr_ray.stage import Output
from zerogr_ray.store import Folder

COLLECTIONS = ("adi", "api-torchhub", "metatool", "limit-small", "medline", "conala", "scifact", "toollens")

BARE = [
    "docids.written_by=rule",
    "queries.per_document=0",
    "training.epochs=0",
    "postings=none",
    "calibration.texts=0",
]
"""An index that holds docids and the untrained LM alone."""


def main() -> None:
    """Measure, print JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, default=Path("../shared/data"), help="folder of collections")
    parser.add_argument("--only", action="append", choices=COLLECTIONS, help="a collection; may repeat")
    parser.add_argument("--queries", type=int, default=60, help="queries of a collection, at most")
    parser.add_argument("--out", type=Path, help="also write the JSON here")
    given = parser.parse_args()
    folder = find_model(DEFAULT_MODEL)
    fmt, model = load_format(folder), load_model(folder, "auto", "cpu")
    table = {}
    for name in given.only or COLLECTIONS:
        table[name] = one(given.data / name, given.queries, fmt, model)
        print(name, json.dumps(table[name]), file=sys.stderr)
    systems = [system for system in next(iter(table.values())) if system != "queries"]
    means = {system: round(sum(row[system] for row in table.values()) / len(table), 4) for system in systems}
    result = {"collections": table, "mean": means, "own_terms": DecodeConfig().own_terms, "gist": DecodeConfig().gist}
    result["date"] = date.today().isoformat()
    text = json.dumps(result, indent=1)
    print(text)
    if given.out:
        given.out.write_text(text + "\n", encoding="utf-8")


def one(source: Path, most: int, fmt: Any, model: Any) -> dict[str, float]:
    """The row of one collection."""
    collection, instruction = sampled(source, most, "untrained")
    documents, queries, qrels = list(documents_of(collection)), collection.queries, collection.qrels
    texts = [f"{document.title}\n{document.text}" for document in documents]
    columns = {name: [getattr(document, name) for document in documents] for name in ("docno", "title", "text")}
    with TemporaryDirectory() as folder:
        corpus = Output("corpus", Folder(folder))
        corpus.folder.write_table("part-000000.parquet", pa.table(columns))
        cfg = IndexConfig(instruction=instruction)
        drawn = draw_documents(corpus, USUAL_DOCUMENTS, cfg.seed)
    known = Frequencies.counted(texts)
    passages, task = calibration_texts(drawn, cfg.calibration), gist_task(drawn, fmt, cfg, known)
    engine, asked = GistModel(model, fmt), [query.text for query in queries]
    words = Bags.of([make_bags(texts)], first_tokens(fmt, texts))
    gists = words.with_gists([task(pa.table(columns), engine)], engine.prior(task))
    z_word = engine.logprobs(query_prompts(fmt, instruction, asked, 512))
    z_docid = engine.logprobs(fmt.prompts(instruction, asked, 512))
    prior = engine.logprobs(fmt.prompts(instruction, list(passages), 512)).mean(0)
    like = DecodeConfig()
    silent = np.tile(prior, (len(queries), 1))
    row: dict[str, float] = {"queries": len(queries), "bm25": ndcg(qrels, bm25(documents, queries, 100))}
    with TemporaryDirectory() as folder:
        zerogr_index(source, index := Path(folder) / "index", Path(folder) / "work", instruction, BARE)
        found = search_collection(Retriever.load(index), collection, DecodeConfig(), 100, name=source.name)
    row["published"] = ndcg(qrels, as_run(found))
    for way, bags, z_QV, usual, own, gist in (
        ("plan", gists, z_word, gists.prior, like.own_terms, like.gist),
        ("no gists", words, z_docid, prior, like.own_terms, 0.0),
        ("own words", words, silent, prior, 1.0, 0.0),
        ("gists", _only_gists(gists), z_word, gists.prior, 0.0, 1.0),
    ):
        postings = Postings.of_bags(bags)
        assert postings.begins is not None
        run: Run = {}
        for query, z_V in zip(queries, z_QV, strict=True):
            gain = term_gain(z_V, usual, postings.begins, query_bag(query.text), own, gist)
            scores = bag_scores(postings, gain, np.arange(len(documents)))
            best = np.argsort(-scores, kind="stable")[:100]
            run[query.qid] = {documents[i].docno: float(scores[i]) for i in best}
        row[way] = ndcg(qrels, run)
    return row


def _only_gists(bags: Bags) -> Bags:
    """The same bags, their words without weight."""
    return replace(bags, weights=np.where(bags.words < BUCKETS, 0, bags.weights).astype(np.uint8))


if __name__ == "__main__":
    main()
