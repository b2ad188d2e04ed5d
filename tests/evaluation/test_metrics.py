"""Metrics are what their formulas say, to 1e-9, and what trec_eval says."""

import math

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from zerogr_ray.errors import InputError
from zerogr_ray.evaluation.metrics import METRICS, evaluate, mean

docnos = st.sampled_from([f"d{n}" for n in range(150)] + ["é", "生成", "a b"])
qids = st.sampled_from(["q1", "q2", "q3", "生"])
# Few distinct scores make ties, close ones would be ties in single precision.
scores = st.integers(-3, 3).map(float) | st.floats(0, 1) | st.integers(0, 99).map(lambda n: 1 + n * 1e-12)
all_qrels = st.dictionaries(qids, st.dictionaries(docnos, st.integers(-1, 3), min_size=1, max_size=40))
all_runs = st.dictionaries(qids, st.dictionaries(docnos, scores, max_size=150))


def brute_force(judged, found):
    """The four metrics from their definitions, sharing nothing with the library."""
    order = [docno for _, docno in sorted(((score, docno) for docno, score in found.items()))][::-1]
    gains = [max(judged.get(docno, 0), 0) for docno in order]
    ideal = sorted((max(value, 0) for value in judged.values()), reverse=True)
    dcg, best = (sum(g / math.log2(r + 2) for r, g in enumerate(row[:10])) for row in (gains, ideal))
    relevant = sum(value > 0 for value in judged.values())
    first = next((rank for rank, gain in enumerate(gains[:10], 1) if gain > 0), None)
    return {
        "ndcg@10": dcg / best if best else 0.0,
        "acc@1": 1.0 if first == 1 else 0.0,
        "recall@100": sum(gain > 0 for gain in gains[:100]) / relevant if relevant else 0.0,
        "mrr@10": 1 / first if first else 0.0,
    }


@settings(max_examples=150, deadline=None)
@given(all_qrels, all_runs)
def test_metrics_equal_their_definitions(qrels, run):
    found = evaluate(qrels, run)
    assert list(found) == list(qrels)
    for qid, judged in qrels.items():
        assert found[qid] == pytest.approx(brute_force(judged, run.get(qid, {})), abs=1e-9)


@settings(max_examples=50, deadline=None)
@given(all_qrels.filter(bool), st.dictionaries(qids, st.dictionaries(docnos, st.integers(0, 9).map(float), min_size=1)))
def test_metrics_equal_trec_eval_on_the_raw_scores(qrels, run):
    pytrec_eval = pytest.importorskip("pytrec_eval")
    raw = pytrec_eval.RelevanceEvaluator(qrels, {"ndcg_cut.10", "success.1", "recall.100"}).evaluate(run)
    found = evaluate(qrels, run)
    for qid, values in raw.items():
        for ours, theirs in (("ndcg@10", "ndcg_cut_10"), ("acc@1", "success_1"), ("recall@100", "recall_100")):
            assert found[qid][ours] == pytest.approx(values[theirs], abs=1e-9)


def test_a_query_that_the_run_lacks_scores_zero_and_counts():
    found = evaluate({"q1": {"d": 1}, "q2": {"d": 1}}, {"q1": {"d": 1.0}, "unjudged": {"d": 1.0}})
    assert found["q2"] == dict.fromkeys(METRICS, 0.0)
    assert mean(found) == dict.fromkeys(METRICS, 0.5)


def test_scores_that_differ_beyond_single_precision_are_not_ties():
    assert evaluate({"q": {"a": 1}}, {"q": {"a": 1 + 1e-12, "b": 1.0}})["q"]["acc@1"] == 1


def test_a_score_that_is_nan_is_refused():
    with pytest.raises(InputError, match="NaN"):
        evaluate({"q": {"a": 1}}, {"q": {"a": math.nan}})


def test_the_mean_over_no_queries_is_empty():
    assert mean(evaluate({}, {})) == {}
