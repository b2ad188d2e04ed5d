"""The figures behind a report's pictures, without a model."""

import json
import math

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from zerogr_ray.config import DecodeConfig
from zerogr_ray.errors import InputError
from zerogr_ray.evaluation.curves import loss_curves, ndcg_by_draw, spread
from zerogr_ray.evaluation.metrics import evaluate, mean, recall_by_depth
from zerogr_ray.evaluation.modes import parse_mode
from zerogr_ray.evaluation.page import p_value
from zerogr_ray.evaluation.report import standings
from zerogr_ray.evaluation.samples import SNIPPET, choose, snippet
from zerogr_ray.rows import Hit, Query

DOCNOS = [f"d{i}" for i in range(12)]
found = st.lists(st.tuples(st.sampled_from(DOCNOS), st.integers(0, 9)), max_size=12, unique_by=lambda pair: pair[0])
judged = st.dictionaries(st.sampled_from(DOCNOS), st.integers(0, 3), min_size=1)


def as_hits(pairs):
    return [Hit(docno, docno, i + 1, 1 / (i + 1), draw, 0.0, 0.0) for i, (docno, draw) in enumerate(pairs)]


@settings(max_examples=25)
@given(found, found, judged, judged)
def test_ndcg_by_draw_counts_what_those_draws_found_in_the_order_of_the_hits(a, b, grades_a, grades_b):
    qrels, hits = {"a": grades_a, "b": grades_b}, {"a": as_hits(a), "b": as_hits(b)}
    curve = ndcg_by_draw(qrels, hits, [1, 2, 5, 10])
    for draws, value in curve.items():
        total = 0.0
        for pairs, grades in ((a, grades_a), (b, grades_b)):
            kept = [docno for docno, draw in pairs if draw < draws][:10]
            gain = sum(grades.get(docno, 0) / math.log2(i + 2) for i, docno in enumerate(kept))
            best = sum(g / math.log2(i + 2) for i, g in enumerate(sorted(grades.values(), reverse=True)[:10]))
            total += gain / best if best else 0.0
        assert value == pytest.approx(total / 2)
    whole = {qid: {hit.docno: hit.score for hit in listed} for qid, listed in hits.items()}
    assert curve[10] == pytest.approx(mean(evaluate(qrels, whole))["ndcg@10"])


@settings(max_examples=25)
@given(found, judged)
def test_recall_by_depth_is_the_share_of_the_relevant_ones_among_the_first_k(pairs, grades):
    qrels = {"q": grades, "unanswered": {"d0": 1}}
    run = {"q": {docno: 1 / (i + 1) for i, (docno, _) in enumerate(pairs)}}
    right = {docno for docno, grade in grades.items() if grade > 0}
    for k, value in recall_by_depth(qrels, run, [1, 3, 12]).items():
        reached = len(right & {docno for docno, _ in pairs[:k]}) / len(right) if right else 0.0
        assert value == pytest.approx(reached / 2)


def test_points_are_whole_ascending_and_reach_both_ends():
    assert spread(1) == [1]
    assert spread(3) == [1, 2, 3]
    points = spread(100)
    assert points[:4] == [1, 2, 3, 4]
    assert points[-1] == 100
    assert len(points) <= 24


def test_a_long_loss_curve_is_thinned_to_means_that_lose_no_step():
    losses = [10 / step for step in range(1, 1001)]
    rows = [json.dumps({"step": step, "loss": loss, "epoch": 1}) for step, loss in enumerate(losses, 1)]
    (curve,) = loss_curves("\n".join(rows).encode(), points=7).values()
    assert len(curve) == 7
    assert max(curve) == 1000
    before, total = 0, 0.0
    for step, value in curve.items():
        assert value == pytest.approx(sum(losses[before:step]) / (step - before))
        total, before = total + value * (step - before), step
    assert total == pytest.approx(sum(losses))


def test_losses_that_are_not_numbers_are_left_out():
    rows = [{"step": 1, "loss": float("nan")}, {"step": 2, "loss": 3.0}, {"step": 2, "rank_loss": 0.5, "loss_of": "x"}]
    record = "".join(json.dumps(row) + "\n" for row in rows).encode()
    assert loss_curves(record) == {"loss": {2: 3.0}, "rank_loss": {2: 0.5}}
    assert loss_curves(b"") == {}


def test_a_mode_is_settings_over_those_of_the_search():
    base = DecodeConfig(seed=3, draws=20)
    assert parse_mode("top_k", base) == base.model_copy(update={"mode": "top_k"})
    mixed = parse_mode("exact + order=docid+t_max=2", base)
    assert (mixed.mode, mixed.order, mixed.t_max, mixed.seed) == ("exact", "docid", 2.0, 3)
    assert parse_mode("order=docid", DecodeConfig(mode="beam")).mode == "beam"
    own = {"mode": "top_k", "order": "docid"}
    assert parse_mode("index+draws=7", base, own) == base.model_copy(update={**own, "draws": 7})
    assert parse_mode("exact+index", base, own).mode == "exact"
    for text, complaint in (
        ("index", "no mode 'index'"),  # of an index that chose nothing
        ("beem", "did you mean 'beam'"),
        ("", "no mode ''"),
        ("exact+", "no mode ''"),
        ("exact+beam", "mode is set twice"),
        ("exact+draws=0", "draws"),
        ("exact+temprature=1", "did you mean 'temperature'"),
    ):
        with pytest.raises(InputError, match=complaint):
            parse_mode(text, base)


def test_p_stands_beside_every_system_but_bm25_itself():
    qrels = {f"q{i}": {"right": 1} for i in range(6)}
    good, bad = ({qid: {docno: 1.0} for qid in qrels} for docno in ("right", "wrong"))
    rows = standings(qrels, {"ours": good, "bm25": bad, "copy": bad})
    assert rows["ours"].p["acc@1"] == 2 / 2**6
    assert rows["copy"].p["acc@1"] == 1.0
    assert rows["bm25"].p == {}
    assert standings(qrels, {"ours": good})["ours"].p == {}
    assert (rows["ours"].figures["mrr@10"].low, rows["bm25"].figures["mrr@10"].high) == (1.0, 0.0)
    assert [p_value(p) for p in (1.0, 0.001, 0.00001)] == ["1.000", "0.001", "<0.001"]


def test_queries_are_chosen_by_their_ids_alone():
    queries = [Query(f"q{i}", "text") for i in range(50)]
    chosen = [query.qid for query in choose(queries)]
    assert chosen == [query.qid for query in choose(reversed(queries))]
    assert len(chosen) == 10
    assert chosen != [f"q{i}" for i in range(10)]
    assert {query.qid for query in choose(queries[:30])} >= set(chosen) & {f"q{i}" for i in range(30)}
    assert len(choose(queries[:3])) == 3


def test_a_snippet_is_one_line_of_bounded_length():
    assert snippet("a\n b\t c ") == "a b c"
    assert len(snippet("word " * 500)) <= SNIPPET
    assert snippet("word " * 500).endswith("…")
