"""Claim: what a prior takes and what an early decision costs, before the training, after an epoch and at the end.

    python -m benchmarks.learning --out benchmarks/results/learning.json     2 CPU cores: an hour; resumable

For each collection and each kind of docid (terms: as the shipped adapter writes them, general to specific; rule: title
and heaviest terms, general to specific; topic: the words of these in the order of the document, the title's first, so
that a docid begins with the topic; phrase: the first eight words of the title as they stand, of the text where there
is none, which read like language; two: terms and rule, both for each document) nDCG@10 of each way of decoding, with
the LM alone: no words of the documents, no gists.

    untrained, 1 epoch, 3 epochs    the retriever, with all of its training (training.average=1)
    1 epoch, prior in the loss      trained on logits from which the untrained model's prior was taken, so that decoding
                                    with that prior subtracted is what was trained ("its prior"), of docids of terms
    raw, calibrated                 prior_weight 0 and 1
    exhaustive                      the yardstick: every docid scored in full
    planned                         100 draws among the 20 documents whose docid tokens the LM expects, whole docids
    texts                           the prior measured over 8 passages, 8 pseudo-queries of other documents, no query

Queries beyond --queries are left out by their ids' hashes.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any
from unittest.mock import patch

import pyarrow as pa
import pyarrow.parquet as pq
import torch

from benchmarks.ablations import FULL, measured, save, stamped
from benchmarks.quality import as_arguments, ndcg, sampled, zerogr_index
from zerogr_ray.chat import PromptFormat
from zerogr_ray.config import DecodeConfig, QueryConfig, TrainingConfig
from zerogr_ray.corpus.collections import read_collection
from zerogr_ray.decoding.priors import MeasurePriors, measure_here
from zerogr_ray.decoding.retriever import Retriever
from zerogr_ray.docids.clean import words_of
from zerogr_ray.evaluation.baselines import bm25
from zerogr_ray.evaluation.evaluate import as_run, documents_of, search_collection
from zerogr_ray.index.bundle import DOCUMENTS, Bundle, open_index, write_index
from zerogr_ray.models import load_format, load_model
from zerogr_ray.rows import Collection, Document
from zerogr_ray.store import hash64
from zerogr_ray.training import loop
from zerogr_ray.training.batches import Pack, pack
from zerogr_ray.training.checkpoints import finished
from zerogr_ray.training.examples import Example, ExampleStream
from zerogr_ray.training.losses import Losses, pack_logits, pack_losses
from zerogr_ray.training.pairs import queries_of
from zerogr_ray.training.tasks import Retrieve

KINDS: dict[str, dict[str, Any]] = {
    "terms": {},
    "rule": {"docids.written_by": "rule"},
    "topic": {},
    "phrase": {},
    "two": {},
}

BARE = {"training.epochs": 0, "postings": "docids", "calibration.gist_tokens": 0, "calibration.queries": 0}
"""Nothing of an index but its trie, and the prior of the model as it is."""

WAYS: dict[str, DecodeConfig] = {
    "reference": DecodeConfig(),
    "reference, whole docids": DecodeConfig(order="docid"),
    "exact": DecodeConfig(mode="exact"),
    "sampling": DecodeConfig(mode="sampling"),
    "beam": DecodeConfig(mode="beam"),
    "top_k": DecodeConfig(mode="top_k"),
    "best_first": DecodeConfig(mode="best_first"),
    "planned": DecodeConfig(plan_ahead=20, order="docid"),
    "exhaustive": DecodeConfig(mode="exhaustive", order="docid"),
}

FEW = ("reference", "reference, whole docids", "planned", "exhaustive")
"""Ways that are measured of other docids than terms."""

RAW = ("reference", "reference, whole docids", "top_k", "exhaustive")
"""Ways that are measured without a prior too."""


def main() -> None:
    """Measure what is missing, print everything as JSON; what is done is in the file after each retriever."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, default=Path("../shared/data"), help="folder of collections")
    parser.add_argument("--work", type=Path, default=Path("learning.work"), help="indexes, models and what is finished")
    parser.add_argument("--only", action="append", help="a collection; may repeat (adi and api-torchhub)")
    parser.add_argument("--kind", action="append", choices=KINDS, help="a kind of docid; may repeat (all)")
    parser.add_argument("--queries", type=int, default=60, help="queries of a collection, at most")
    parser.add_argument("--out", type=Path, help="also write the JSON here, beside what is there of other kinds")
    given = parser.parse_args()
    result = measured(given.out) | {"settings": FULL | BARE}
    for name in given.only or ("adi", "api-torchhub"):
        collection, instruction = sampled(given.data / name, given.queries, "learning")
        reference = ndcg(collection.qrels, bm25(documents_of(collection), collection.queries, 100))
        table: dict[str, Any] = result["collections"].setdefault(name, {"docids": {}})
        table |= {"queries": len(collection.queries), "bm25": reference}
        for kind in given.kind or KINDS:
            bundle = build(given.data / name, given.work / name, kind, instruction)
            lab = Lab(collection, instruction, bundle, given.work / name, kind)
            example = bundle.documents["docid"][0].as_py()
            table["docids"][kind] = stamped({"example": example, "retrievers": {}})
            for retriever, row in lab.rows():
                table["docids"][kind]["retrievers"][retriever] = row
                print(name, kind, retriever, json.dumps(row), file=sys.stderr)
                save(result, given.out)
    print(json.dumps(result, indent=1))


def build(source: Path, work: Path, kind: str, instruction: str) -> Bundle:
    """An untrained index with docids of this kind."""
    index = work / kind
    if kind == "two":
        return two_docids([build(source, work, one, instruction) for one in ("terms", "rule")], index)
    of_others = {"topic": ("rule", topic), "phrase": ("terms", phrase)}
    if kind in of_others:
        other, name = of_others[kind]
        base = build(source, work, other, instruction)
        return renamed(base, documents_of(read_collection(str(source))), name, index)
    settings = as_arguments({**FULL, **BARE, **KINDS[kind]})
    zerogr_index(source, index, work / "work", instruction, settings)
    return open_index(index)


def two_docids(bundles: Sequence[Bundle], index: Path) -> Bundle:
    """An index in which every document has the docids that it has in each of these, once where they are the same."""
    rows = {(row["docno"], row["docid"]): row for bundle in bundles for row in bundle.documents.to_pylist()}
    return with_docids(bundles[0], list(rows.values()), index)


def renamed(bundle: Bundle, documents: Sequence[Document], name: Callable[[Document, str], str], index: Path) -> Bundle:
    """An index with the docids that `name` makes of each document and its docid; equal ones are shared."""
    rows = bundle.documents.to_pylist()
    by_docno = {document.docno: document for document in documents}
    docids = [name(by_docno[row["docno"]], row["docid"]) for row in rows]
    tokens = load_format(bundle.model).docids(docids)
    made = [row | {"docid": docid, "tokens": ids} for row, docid, ids in zip(rows, docids, tokens, strict=True)]
    return with_docids(bundle, made, index)


def phrase(document: Document, _: str, words: int = 8) -> str:
    """How the document begins."""
    return " ".join(words_of(document.title or document.text)[:words])


def topic(document: Document, docid: str) -> str:
    """The words of its docid in the order of the document, the title's first."""
    order = {word: at for at, word in reversed(list(enumerate(words_of(f"{document.title}\n{document.text}"))))}
    return " ".join(sorted(docid.split(), key=lambda word: order.get(word, len(order))))


def with_docids(bundle: Bundle, rows: Sequence[dict[str, Any]], index: Path) -> Bundle:
    """The index with other docids: `rows` of DOCUMENTS, one for each docid of a document."""
    fmt = load_format(bundle.model)
    facts = {name: bundle.manifest[name] for name in ("instruction", "model", "prompt_format", "calibration")}
    table = pa.Table.from_pylist(list(rows), schema=DOCUMENTS)
    write_index(index, table, fmt.end, bundle.model, facts, vocab=len(fmt.tokenizer))
    return open_index(index)


class Lab:
    """One collection with one kind of docid: its retrievers and what they reach."""

    def __init__(self, collection: Collection, instruction: str, bundle: Bundle, work: Path, kind: str) -> None:
        self.collection, self.instruction, self.bundle = collection, instruction, bundle
        self.work, self.kind = work, kind
        self.format = load_format(bundle.model)
        self.passages = tuple(bundle.manifest["calibration"])

    def rows(self) -> Iterator[tuple[str, dict[str, Any]]]:
        """(retriever, nDCG@10 of each way) one after the other."""
        yield "untrained", self.kept("untrained", lambda: self.measure(self.bundle.model))
        for epochs in (1,) if self.kind == "two" else (1, 3):  # it has twice the examples
            called = f"{epochs} epoch{'s' * (epochs > 1)}"
            yield called, self.kept(called, lambda n=epochs: self.measure(self.trained(n)))  # type: ignore[misc]
        if self.kind == "terms":
            called = "1 epoch, prior in the loss"
            yield called, self.kept(called, lambda: self.measure(self.trained(1, True), own_prior=True))

    def kept(self, called: str, measure: Callable[[], dict[str, Any]]) -> dict[str, Any]:
        """What was measured before, or is now."""
        done = self.work / f"{self.kind}-{called.replace(' ', '-').replace(',', '')}.json"
        if not done.exists():
            done.write_text(json.dumps(measure()))
        return dict(json.loads(done.read_text()))

    def trained(self, epochs: int, prior_in_loss: bool = False) -> Path:
        """Folder of the LM after so many epochs over the pseudo-queries and passages."""
        cfg = TrainingConfig(epochs=epochs, average=1)
        folder = self.work / f"{self.kind}-{epochs}{'-prior' * prior_in_loss}"
        if done := finished(folder, "learning", "model"):
            return done
        torch.set_num_threads(os.cpu_count() or 1)
        stream = ExampleStream([self.pairs()], Retrieve(self.instruction, cfg.query_tokens), self.format, cfg)
        model = load_model(self.bundle.model, "float32", "cpu")

        def report(row: dict[str, Any]) -> None:
            if row["step"] % 20 == 0:
                print(f"step {row['step']} of {row['steps']}, loss {row['loss']:.2f}", file=sys.stderr)

        losses = losses_less(self.prior_of_labels(model)) if prior_in_loss else pack_losses
        with patch.object(loop, "pack_losses", losses):
            return loop.train(model, stream, cfg, folder, report, fingerprint="learning").product

    def pairs(self) -> Path:
        """What it learns from: as a build writes them, none held out."""
        path = self.work / f"{self.kind}-pairs.parquet"
        [filtered] = (self.work / "work").glob("filtered-*")
        rows = [row for part in sorted(filtered.glob("part-*.parquet")) for row in pq.read_table(part).to_pylist()]
        written = {row["docno"]: row["queries"] for row in rows}
        docids: dict[str, list[str]] = {}
        for row in self.bundle.documents.select(["docno", "docid"]).to_pylist():
            docids.setdefault(row["docno"], []).append(row["docid"])
        cfg = QueryConfig(passages=FULL["queries.passages"])
        pairs = [
            {"query": query, "docid": docid}
            for document in documents_of(self.collection)
            for docid in docids[document.docno]
            for query in queries_of(document.title, document.text, written[document.docno], cfg)
        ]
        pq.write_table(pa.Table.from_pylist(pairs), path)
        return path

    def prior_of_labels(self, model: Any) -> Prior:
        """What the untrained model would write at every place of every docid, behind the calibration texts."""
        prompts = self.format.tokens([self.format.render(self.instruction, text) for text in self.passages])
        answers = [[*tokens, self.format.end] for tokens in self.bundle.documents["tokens"].to_pylist()]
        return Prior.of(model, prompts, answers, self.format)

    def measure(self, folder: Path, own_prior: bool = False) -> dict[str, Any]:
        """nDCG@10 of each way with the LM in `folder`; with `own_prior` also by the prior of the untrained one."""
        model = load_model(folder, "auto", "cpu")
        row: dict[str, Any] = {"raw": {way: self.ndcg(model, self.bundle, WAYS[way]) for way in RAW}}
        calibrated = self.calibrated(model, self.passages)
        ways = WAYS if self.kind == "terms" else FEW
        row["calibrated"] = {way: self.ndcg(model, calibrated, WAYS[way], 1.0) for way in ways}
        if own_prior:
            row["its prior"] = {way: self.ndcg(model, self.bundle, WAYS[way], 1.0) for way in ways}
        if self.kind == "terms":
            row["texts"] = {"passages": row["calibrated"]["exhaustive"]}
            for name, texts in self.other_texts().items():
                row["texts"][name] = self.ndcg(model, self.calibrated(model, texts), WAYS["exhaustive"], 1.0)
        return row

    def other_texts(self) -> dict[str, tuple[str, ...]]:
        """What else may stand in the place of a query while the prior is measured."""
        queries = pq.read_table(self.pairs())["query"].to_pylist()
        drawn = sorted(queries, key=lambda query: hash64("prior", query))[: len(self.passages)]
        return {"pseudo-queries": tuple(drawn), "no query": ("",)}

    def calibrated(self, model: Any, texts: tuple[str, ...]) -> Bundle:
        """The index with the prior of this model over these texts."""
        task = MeasurePriors(self.instruction, texts)
        changed: Any = measure_here(self.bundle.trie, self.bundle.documents, model, self.format, task)
        return replace(self.bundle, **changed)

    def ndcg(self, model: Any, bundle: Bundle, cfg: DecodeConfig, prior_weight: float = 0.0) -> float:
        """nDCG@10 on the collection's queries."""
        retriever = Retriever.open(bundle, model=model)
        weighed = cfg.model_copy(update={"prior_weight": prior_weight})
        return ndcg(self.collection.qrels, as_run(search_collection(retriever, self.collection, weighed, 10, True)))


class Prior:
    """Mean log-probability of every token of the vocabulary, at every beginning of a docid."""

    def __init__(self, rows: dict[tuple[int, ...], int], mean_RV: torch.Tensor, end: int) -> None:
        self.rows, self.mean_RV, self.end = rows, mean_RV, end

    @classmethod
    def of(cls, model: Any, prompts: Sequence[list[int]], answers: Sequence[list[int]], fmt: PromptFormat) -> Prior:
        """Measured behind `prompts`; `answers` end with the end-of-turn token."""
        sums: Any = 0
        for prompt in prompts:
            [one] = pack([Example(prompt, answer) for answer in answers], pack_tokens=1 << 30)
            with torch.inference_mode(), torch.autocast("cpu", torch.bfloat16):
                sums = sums + pack_logits(model, one).log_softmax(-1)
        rows: dict[tuple[int, ...], int] = {}
        for row, beginning in enumerate(beginnings(one, fmt.end)):
            rows.setdefault(beginning, row)
        return cls(rows, sums / len(prompts), fmt.end)

    def at(self, one: Pack) -> torch.Tensor:
        """(L, vocabulary) at the places of the pack's labels."""
        return self.mean_RV[[self.rows[beginning] for beginning in beginnings(one, self.end)]]


def beginnings(one: Pack, end: int) -> Iterator[tuple[int, ...]]:
    """For each label of the pack the labels before it in its own answer."""
    before: tuple[int, ...] = ()
    for label in one.labels_L.tolist():
        yield before
        before = () if label == end else (*before, label)


def losses_less(prior: Prior) -> Callable[..., Losses]:
    """What training minimises otherwise, of the logits less the prior."""

    def losses(model: Any, one: Pack, rerank_token: int | None = None) -> Losses:
        taken = prior.at(one)

        def subtract(_: Any, __: Any, output: Any) -> Any:
            output.logits = output.logits - taken[None]
            return output

        hook = model.register_forward_hook(subtract)
        try:
            return pack_losses(model, one, rerank_token)
        finally:
            hook.remove()

    return losses


if __name__ == "__main__":
    main()
