"""How good a run is: nDCG@10, Acc@1, Recall@100 and MRR@10, computed by trec_eval."""

from __future__ import annotations

import math
from collections.abc import Sequence

from zerogr_ray.corpus.trec import ranked
from zerogr_ray.errors import InputError
from zerogr_ray.rows import Qrels, Run

METRICS = ("ndcg@10", "acc@1", "recall@100", "mrr@10")
DEPTH = 100


def evaluate(qrels: Qrels, run: Run) -> dict[str, dict[str, float]]:
    """qid -> metric -> value, for every query of `qrels`; one that the run lacks scores 0.

        nDCG@10 = sum_r max(rel_r, 0) / log2(r + 1) over ranks r <= 10, divided by the same sum of the ideal ranking

    Acc@1 is 1 if the first document is relevant (grade >= 1), Recall@100 the share of relevant documents in the first
    100, MRR@10 one over the rank of the first relevant document if that is at most 10.

    Documents are ranked by score. Equal scores rank by docno, last in the alphabet first, as trec_eval does: a run
    whose ties mean something must break them in its scores. trec_eval keeps scores in single precision, so it gets
    ranks from here and sees no other ties than those in the run.

    Raises InputError for a score that is NaN.
    """
    import pytrec_eval

    top = {qid: _ranks(qid, run[qid], DEPTH) for qid in qrels if run.get(qid)}
    top10 = {qid: dict(list(scores.items())[:10]) for qid, scores in top.items()}
    deep = pytrec_eval.RelevanceEvaluator(qrels, {"ndcg_cut.10", "success.1", "recall.100"}).evaluate(top)
    reciprocal = pytrec_eval.RelevanceEvaluator(qrels, {"recip_rank"}).evaluate(top10)
    per_query = {}
    for qid in qrels:
        values = deep.get(qid, {}) | reciprocal.get(qid, {})
        names = ("ndcg_cut_10", "success_1", "recall_100", "recip_rank")
        per_query[qid] = {metric: float(values.get(name, 0.0)) for metric, name in zip(METRICS, names, strict=True)}
    return per_query


def mean(per_query: dict[str, dict[str, float]]) -> dict[str, float]:
    """Mean of each metric over the queries; {} if there are none."""
    names = next(iter(per_query.values()), {})
    return {name: math.fsum(values[name] for values in per_query.values()) / len(per_query) for name in names}


def recall_by_depth(qrels: Qrels, run: Run, depths: Sequence[int]) -> dict[int, float]:
    """For each depth k, the share of a query's relevant documents among the first k, mean over the queries of `qrels`.

    Ranks and missing queries are as in `evaluate`. Raises InputError for a score that is NaN.
    """
    import pytrec_eval

    top = {qid: _ranks(qid, run[qid], max(depths)) for qid in qrels if run.get(qid)}
    wanted = {f"recall.{','.join(map(str, depths))}"}
    found = pytrec_eval.RelevanceEvaluator(qrels, wanted).evaluate(top)
    return {k: math.fsum(found.get(qid, {}).get(f"recall_{k}", 0.0) for qid in qrels) / len(qrels) for k in depths}


def _ranks(qid: str, scores: dict[str, float], depth: int) -> dict[str, float]:
    """The best `depth` documents in order, with the scores depth, depth - 1, ..."""
    if any(math.isnan(score) for score in scores.values()):
        raise InputError(f"query {qid!r} has a document with the score NaN, which cannot be ranked")
    return {docno: float(depth - rank) for rank, docno in enumerate(ranked(scores)[:depth])}
