"""The way of decoding that an index gets is the best of those tried, and a search without settings takes it."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from tests.decoding.test_retriever import WORDS, make_index
from zerogr_ray.config import DecodeConfig
from zerogr_ray.decoding.choose import WEIGHTS, choose, gains, usual, ways, weighed
from zerogr_ray.decoding.retriever import Retriever
from zerogr_ray.index.bundle import open_index

pytestmark = pytest.mark.model

DOCIDS = [f"{a} {b}" for a in WORDS for b in WORDS[:5] if a != b]
WAYS = [DecodeConfig(), DecodeConfig(mode="top_k"), DecodeConfig(order="docid"), DecodeConfig(mode="beam", draws=3)]


@pytest.fixture(scope="module")
def retriever(tmp_path_factory):
    return Retriever.load(make_index(tmp_path_factory.mktemp("choose"), DOCIDS), "cpu", "float32")


def test_each_way_is_judged_by_where_it_puts_the_docid_of_a_query(retriever):
    queries = [(f"query {number}", docid) for number, docid in enumerate(DOCIDS[::4])]
    choice = choose(WAYS, WAYS[0], lambda cfg: gains(retriever, queries, cfg))
    figures = []
    for cfg in WAYS:
        ranks = [
            [hit.docid for hit in retriever.search(query, 10, config=cfg)].index(docid) + 1
            if docid in [hit.docid for hit in retriever.search(query, 10, config=cfg)]
            else np.inf
            for query, docid in queries
        ]
        figures.append(np.mean([1 / np.log2(1 + rank) for rank in ranks]))
    np.testing.assert_allclose([row["ndcg@10"] for row in choice.tried], figures, atol=1e-4)
    assert choice.tried[1]["mode"] == "top_k"
    assert set(choice.tried[0]) == {"ndcg@10", "ahead", "error"}


def test_the_published_algorithm_always_takes_part_and_the_usual_way_is_kept_among_equals(retriever):
    tried, plain = list(ways(retriever.bundle)), usual(retriever.bundle)
    assert tried[0] == DecodeConfig()
    assert plain in tried
    nothing = [("query", "a docid that no document has")]
    assert choose(tried, plain, lambda cfg: gains(retriever, nothing, cfg)).best == plain


def test_another_way_than_the_usual_is_taken_only_where_it_is_ahead_by_more_than_chance():
    of = {WAYS[0]: [1, 0, 0, 0], WAYS[1]: [0, 1, 1, 0], WAYS[2]: [1, 1, 1, 0], WAYS[3]: [1, 1, 1, 1]}

    def chosen(among):
        return choose(among, WAYS[0], lambda cfg: np.array(of[cfg], dtype=float))

    assert chosen(WAYS[:2]).best == WAYS[0], "0.25 ahead with an error of 0.48"
    assert chosen(WAYS[:3]).best == WAYS[0], "0.5 ahead with an error of 0.29"
    assert chosen(WAYS).best == WAYS[3], "0.75 ahead with an error of 0.25"
    assert chosen(WAYS).tried[3] == {"ndcg@10": 1.0, "ahead": 0.75, "error": 0.25, "mode": "beam", "draws": 3}


def test_the_best_way_is_tried_with_every_weight_of_the_prior_and_no_other_way_is(retriever):
    bundle = replace(retriever.bundle, priors=np.zeros(retriever.bundle.trie.nodes, np.float16))
    beams = weighed(DecodeConfig(mode="beam", draws=3), bundle)

    def measure(cfg):
        return np.full(4, 0.1 * (1 + beams.index(cfg)) if cfg in beams else 0.0)

    choice = choose(WAYS, WAYS[0], measure, lambda best: weighed(best, bundle))
    assert choice.best == WAYS[3].model_copy(update={"prior_weight": WEIGHTS[-1]})
    assert len(choice.tried) == len(WAYS) + len(WEIGHTS) - 1, "λ = 0 was tried already"
    assert weighed(DecodeConfig(), retriever.bundle) == [], "without a prior there is nothing to weigh"


def test_a_search_without_settings_is_the_way_that_the_build_chose(tmp_path):
    chosen = DecodeConfig(mode="top_k", order="docid", draws=7)
    seen = []

    def settle(bundle):
        seen.append(bundle.trie.documents)
        return {"decode": chosen.model_dump()}

    index = make_index(tmp_path, DOCIDS, choose=settle)
    assert seen == [len(DOCIDS)]
    assert open_index(index).decode == chosen
    retriever = Retriever.load(index, "cpu", "float32")
    assert retriever.search("red fox", 5) == retriever.search("red fox", 5, config=chosen)
    assert retriever.search("red fox", 5) != retriever.search("red fox", 5, config=DecodeConfig())
