"""What a request may ask for: modes, scores of whole docids, filters, plan-ahead, a stream, live changes."""

from __future__ import annotations

import threading
from itertools import islice

import numpy as np
import pytest
import torch

from tests.decoding.test_retriever import INSTRUCTION, WORDS, make_index
from tests.tiny import tiny_tokenizer
from zerogr_ray.chat import PromptFormat
from zerogr_ray.config import CacheConfig, DecodeConfig
from zerogr_ray.corpus.bags import Bags, first_tokens, make_bags
from zerogr_ray.decoding.job import Request
from zerogr_ray.decoding.retriever import Retriever
from zerogr_ray.errors import InputError

pytestmark = pytest.mark.model

VOCAB = len(tiny_tokenizer())
MODES = ["reference", "exact", "sampling", "beam", "top_k", "best_first", "exhaustive"]
QUERIES = ["fox", "read a json file with the command line", "web"]


def some_priors(trie, documents):
    rng = np.random.default_rng(3)
    return {
        "priors": rng.normal(-3, 1, trie.nodes).astype(np.float16),
        "tail_priors": rng.normal(-6, 1, trie.documents).astype(np.float16),
        "next_prior": rng.normal(-5, 1, VOCAB).astype(np.float32),
    }


@pytest.fixture(scope="module")
def docids():
    rng = np.random.default_rng(7)
    some = {" ".join(rng.choice(WORDS, size=rng.integers(2, 7))) for _ in range(90)}
    return [*sorted(some), "red fox", "red fox", "red fox hat"]


@pytest.fixture(scope="module")
def folder(docids, tmp_path_factory):
    return make_index(tmp_path_factory.mktemp("requests"), docids, vocab=VOCAB, priors=some_priors)


@pytest.fixture
def retriever(folder):
    return Retriever.load(folder, device="cpu", dtype="float32")


def whole_docids(retriever, query, instruction=INSTRUCTION):
    """docno -> (log-probability of docid and end, logit of token 0 after it), by plain forwards."""
    prompt = retriever.format.prompts(instruction, [query], 512)[0]
    found = {}
    for row in retriever.bundle.documents.to_pylist():
        answer = [*row["tokens"], retriever.format.end]
        with torch.inference_mode():
            logits = retriever.model(input_ids=torch.tensor([[*prompt, *answer]])).logits[0].float()
        logprobs = logits[len(prompt) - 1 : -1].log_softmax(-1)
        found[row["docno"]] = (
            sum(float(logprobs[i, token]) for i, token in enumerate(answer)),
            float(logits[-1, 0]),
        )
    return found


@pytest.mark.parametrize("mode", MODES)
def test_every_mode_gives_all_documents_once_on_a_real_model(retriever, docids, mode):
    for hits in retriever.search_many(QUERIES, k=1000, config=DecodeConfig(mode=mode)):
        assert sorted(hit.docno for hit in hits) == sorted(f"d{i}" for i in range(len(docids)))
        assert [hit.rank for hit in hits] == list(range(1, len(docids) + 1))


@pytest.mark.parametrize("mode", ["reference", "beam", "exhaustive"])
def test_the_score_of_a_whole_docid_is_that_of_a_plain_forward(retriever, mode):
    expected = whole_docids(retriever, QUERIES[1])
    cfg = DecodeConfig(mode=mode, order="docid", draws=30)
    hits = retriever.search_many(QUERIES, k=20, config=cfg)[1]
    for hit in hits:
        assert hit.docid_logprob == pytest.approx(expected[hit.docno][0], abs=1e-3)
        assert hit.rerank == pytest.approx(expected[hit.docno][1], abs=1e-3)
        assert hit.calibrated == hit.docid_logprob
    assert [hit.score for hit in hits] == sorted((hit.score for hit in hits), reverse=True)
    if mode == "exhaustive":
        best = sorted(expected, key=lambda docno: -expected[docno][0])[:20]
        np.testing.assert_allclose([expected[h.docno][0] for h in hits], [expected[d][0] for d in best], atol=1e-3)


def test_hits_can_be_ordered_by_the_rerank_head(retriever):
    expected = whole_docids(retriever, "fox")
    hits = retriever.search("fox", k=10, config=DecodeConfig(order="rerank", draws=1000))
    best = sorted((logit for _, logit in expected.values()), reverse=True)[:10]
    np.testing.assert_allclose([expected[hit.docno][1] for hit in hits], best, atol=1e-3)


def test_the_calibrated_score_is_less_the_priors_of_path_and_tail(retriever):
    cfg = DecodeConfig(mode="exhaustive", prior_weight=0.5)
    bundle = retriever.bundle
    for hit in retriever.search("fox", k=30, config=cfg):
        if hit.docid == "red fox":
            continue  # two documents share it; the made-up priors of their tails differ
        row = int(bundle.rows_of([hit.docno])[0][0])
        leaf = int(retriever.live.view.leaves(np.array([row]))[0])
        prior = float(bundle.tail_priors[row])
        while leaf:
            prior += float(bundle.priors[leaf])
            leaf = bundle.trie.parent(leaf)
        assert hit.calibrated == pytest.approx(hit.docid_logprob - 0.5 * prior, abs=1e-2)


def test_priors_decide_what_is_drawn_in_every_mode_but_not_its_log_probability(retriever):
    for mode in MODES[:-1]:
        plain = {h.docno: h for h in retriever.search("fox", 1000, config=DecodeConfig(mode=mode))}
        moved = retriever.search("fox", 1000, config=DecodeConfig(mode=mode, prior_weight=1.0))
        assert [h.docno for h in moved] != list(plain)
        np.testing.assert_allclose([h.logprob for h in moved], [plain[h.docno].logprob for h in moved], atol=1e-4)


def test_requests_of_all_kinds_share_a_batch_and_get_what_each_gets_alone(retriever):
    requests = [
        Request("fox", 5),
        Request("open a web browser " * 8, 30, "Find the page.", DecodeConfig(seed=4, mode="exact", draws=40)),
        Request("json", 3, None, DecodeConfig(mode="top_k")),
        Request("hat", 7, "Another task altogether.", DecodeConfig(order="docid", t_max=0.8)),
        Request("line", 4, docnos=["d1", "d2", "d3"]),
        Request("line", 4, docnos=[]),
        Request("flags", 9, None, DecodeConfig(mode="best_first", plan_ahead=20, lookahead=0.5)),
    ]
    together = retriever.answer(requests)
    for request, hits in zip(requests, together, strict=True):
        alone = retriever.answer([request])[0]
        assert [hit.docno for hit in hits] == [hit.docno for hit in alone]
        np.testing.assert_allclose([h.score for h in hits], [h.score for h in alone], atol=1e-3)
    assert [len(hits) for hits in together] == [5, 30, 3, 7, 3, 0, 9]


@pytest.mark.parametrize("mode", MODES)
def test_a_filter_is_never_left_whatever_the_mode(retriever, mode):
    allowed = [f"d{i}" for i in range(0, 90, 7)]
    hits = retriever.search("fox", 50, config=DecodeConfig(mode=mode), docnos=allowed)
    assert sorted(hit.docno for hit in hits) == sorted(allowed)


def test_plan_ahead_searches_the_documents_whose_bag_of_tokens_the_prompt_favours(retriever):
    bundle = retriever.bundle
    prompt = retriever.format.prompts(INSTRUCTION, ["fox"], 512)[0]
    with torch.inference_mode():
        z = retriever.model(input_ids=torch.tensor([prompt])).logits[0, -1].float().log_softmax(-1).numpy()
    gain = z - bundle.next_prior[: len(z)]
    bag = {row["docno"]: gain[list(set(row["tokens"]))].sum() for row in bundle.documents.to_pylist()}
    hits = retriever.search("fox", 12, config=DecodeConfig(plan_ahead=5))
    worst = sorted(bag.values(), reverse=True)[11]
    assert len(hits) == 12, "no fewer than are wanted"
    assert all(bag[hit.docno] >= worst - 1e-3 for hit in hits)
    allowed = [f"d{i}" for i in range(40)]
    inside = retriever.search("fox", 2, config=DecodeConfig(plan_ahead=5), docnos=allowed)
    assert {h.docno for h in inside} <= set(sorted(allowed, key=lambda docno: -bag[docno])[:5])


def test_a_plan_of_terms_is_compared_with_what_documents_are_about_and_decides_as_much_as_it_is_told(tmp_path):
    texts = [f"{a} {b}" for a in WORDS for b in WORDS[:4]]
    fmt = PromptFormat(tiny_tokenizer())
    bags = Bags.of([make_bags(texts)], first_tokens(fmt, texts))
    index = make_index(tmp_path, texts[::-1], vocab=VOCAB, bags=bags, priors=some_priors)
    retriever = Retriever.load(index, device="cpu", dtype="float32")
    weigh = DecodeConfig(plan_ahead=6, own_terms=100, lookahead=1000)  # the query's own words, and next to nothing else
    about = dict(zip([f"d{row}" for row in range(len(texts))], texts, strict=True))
    hits = retriever.search("browser write", 3, config=weigh)
    assert about[hits[0].docno] == "browser write"
    scored = weigh.model_copy(update={"order": "docid"})
    assert retriever.search("browser write", 3, config=scored)[0].docno == hits[0].docno
    free = retriever.search("browser write", 40, config=weigh.model_copy(update={"lookahead": 0.0}))
    assert [hit.docno for hit in free[:3]] != [hit.docno for hit in hits], "the LM alone would say otherwise"
    for hit in hits:
        [same] = [one for one in retriever.search("browser write", 60) if one.docno == hit.docno]
        assert hit.docid == same.docid

    retriever.add(["new"], ["browser write browser"])
    assert "new" in {hit.docno for hit in retriever.search("browser write", 3, config=weigh)}, "by its docid's words"
    retriever.compact(tmp_path / "v2")
    second = Retriever.load(tmp_path / "v2", device="cpu", dtype="float32")
    again = {hit.docno for hit in second.search("browser write", 3, config=weigh)}
    assert {"new", hits[0].docno} <= again


@pytest.mark.parametrize("limits", [{"tokens_per_query": 60}, {"tokens_per_batch": 200}, {"batch": 1}])
def test_a_small_cache_finds_the_same(retriever, folder, limits):
    little = Retriever.load(folder, device="cpu", dtype="float32", cache=CacheConfig(**limits))
    cfg = DecodeConfig(order="docid")
    for one, other in zip(*(r.search_many(QUERIES, 40, config=cfg) for r in (retriever, little)), strict=True):
        assert [hit.docno for hit in one] == [hit.docno for hit in other]


def test_a_stream_gives_the_same_hits_as_a_search_one_by_one(retriever):
    cfg = DecodeConfig(seed=2)
    assert list(retriever.stream("fox", config=cfg, k=25)) == retriever.search("fox", 25, config=cfg)
    everything = list(retriever.stream("fox"))
    assert len({hit.docno for hit in everything}) == len(everything) == retriever.live.view.entries
    assert list(islice(retriever.stream("fox"), 3)) == everything[:3]
    assert {hit.temperature for hit in everything} == {1.0}


def test_a_document_with_two_docids_comes_back_once_under_its_best(tmp_path):
    docids = ["red fox", "open json file", "red hat", "web browser", "json file"]
    folder = make_index(tmp_path, docids, ["a", "a", "b", "c", "c"])
    retriever = Retriever.load(folder, device="cpu", dtype="float32")
    expected = {}
    for row in retriever.bundle.documents.to_pylist():
        hits = retriever.search("fox", 9, config=DecodeConfig(mode="exhaustive"), docnos=[row["docno"]])
        expected[row["docno"]] = hits[0].docid
        assert len(hits) == 1
    for cfg in (DecodeConfig(), DecodeConfig(order="docid"), DecodeConfig(mode="beam")):
        assert sorted(hit.docno for hit in retriever.search("fox", 3, config=cfg)) == ["a", "b", "c"]
    assert {h.docno: h.docid for h in retriever.search("fox", 3, config=DecodeConfig(order="docid"))} == expected


def test_documents_come_and_go_while_others_search(retriever, docids):
    wrong, stop = [], threading.Event()

    def change():
        for number in range(40):
            retriever.add([f"new{number}"], [f"red fox {WORDS[number % len(WORDS)]} hat"])
            retriever.remove([f"d{number}"])
        stop.set()

    thread = threading.Thread(target=change)
    thread.start()
    while not stop.is_set():
        gone = len(docids) - sum(hit.docno.startswith("d") for hit in retriever.search("fox", 1000))
        wrong += [gone] if not 0 <= gone <= 40 else []
    thread.join()
    assert not wrong
    found = {hit.docno for hit in retriever.search("fox", 1000, config=DecodeConfig(order="docid"))}
    assert found == {f"d{i}" for i in range(40, len(docids))} | {f"new{i}" for i in range(40)}


def test_what_was_added_and_removed_gives_what_a_new_index_of_it_would_give(retriever, docids, tmp_path):
    changed = [*docids[10:], "web command fox", "red"]
    docnos = [*(f"d{i}" for i in range(10, len(docids))), "n1", "n2"]
    retriever.remove([f"d{i}" for i in range(10)])
    retriever.add(["n1", "n2"], changed[-2:])
    fresh = Retriever.load(make_index(tmp_path, changed, docnos), device="cpu", dtype="float32")
    for mode in ("top_k", "exhaustive"):  # without noise, which is keyed by node
        one, other = (r.search("fox", 1000, config=DecodeConfig(mode=mode)) for r in (retriever, fresh))
        np.testing.assert_allclose([h.logprob for h in one], [h.logprob for h in other], atol=1e-4)
        assert {h.docno: round(h.logprob, 3) for h in one} == {h.docno: round(h.logprob, 3) for h in other}


def test_a_compacted_index_is_found_to_be_what_was_searched(retriever, docids, tmp_path):
    retriever.remove(["d0", "d1"])
    retriever.add(["new", "d2"], ["red fox web hat", "open browser"])
    retriever.compact(tmp_path / "v2")
    compacted = Retriever.load(tmp_path / "v2", device="cpu", dtype="float32")
    cfg = DecodeConfig(mode="exhaustive")
    one, other = ([(h.docno, h.docid) for h in r.search("fox", 1000, config=cfg)] for r in (retriever, compacted))
    assert sorted(one) == sorted(other)
    assert len(one) == len(docids) - 1
    assert compacted.search("fox", config=DecodeConfig(plan_ahead=5))


def test_requests_that_this_index_cannot_answer_are_refused(retriever, tmp_path):
    plain = Retriever.load(make_index(tmp_path, ["a", "b"]), device="cpu", dtype="float32")
    for cfg, message in (
        (DecodeConfig(plan_ahead=5), "no postings"),
        (DecodeConfig(prior_weight=1), "no edge priors"),
        (DecodeConfig(lookahead=1), "plan_ahead"),
    ):
        with pytest.raises(InputError, match=message):
            plain.search("fox", config=cfg)
    with pytest.raises(InputError, match="document x1 and 1 more"):
        retriever.search("fox", docnos=["d1", "x1", "x2"])
    with pytest.raises(InputError, match="cannot be streamed"):
        retriever.stream("fox", k=3, config=DecodeConfig(order="docid"))
