"""Gists against plain forwards, and what a plan makes of them."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pyarrow as pa
import pytest
import torch

from tests.decoding.test_retriever import INSTRUCTION, make_index
from tests.tiny import save_tiny
from zerogr_ray.config import DecodeConfig
from zerogr_ray.corpus.bags import BAG, BUCKETS, STEPS, Bags, first_tokens, make_bags, query_bag
from zerogr_ray.corpus.terms import Frequencies
from zerogr_ray.decoding import plan
from zerogr_ray.decoding.gists import AT_ONCE, GistModel, WriteGists, document_prompts, query_prompts
from zerogr_ray.decoding.job import Request
from zerogr_ray.decoding.plan import bag_scores, term_gain
from zerogr_ray.decoding.retriever import Retriever
from zerogr_ray.docids.generate import show
from zerogr_ray.index.bundle import open_index
from zerogr_ray.models import load_format, load_model

pytestmark = pytest.mark.model

TEXTS = [f"{a} {b} {c}" for a in ("red", "json", "web") for b in ("fox", "file", "browser") for c in ("hat", "flags")]
TASK = WriteGists(INSTRUCTION, ("parse and read", "open the red"), tuple(TEXTS[:5]), 8, 128, 512)


@pytest.fixture(scope="module", autouse=True)
def no_floor():
    """A model of random weights is hardly moved by what a text says: everything above the mean shall count."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(plan, "FLOOR", 0.0)
        yield


@pytest.fixture(scope="module")
def engine(tmp_path_factory):
    folder = save_tiny(tmp_path_factory.mktemp("gists") / "model")
    return GistModel(load_model(folder, "float32", "cpu"), load_format(folder))


@pytest.fixture(scope="module")
def bags(engine):
    documents = pa.table({"title": [""] * len(TEXTS), "text": TEXTS})
    plain = Bags.of([make_bags(TEXTS)], first_tokens(engine.format, TEXTS))
    return plain.with_gists([TASK(documents.slice(0, 7), engine), TASK(documents.slice(7), engine)], engine.prior(TASK))


def after(engine, prompt):
    """Log-probabilities behind one prompt, from a forward of its own."""
    with torch.inference_mode():
        return engine.model(input_ids=torch.tensor([prompt])).logits[0, -1].log_softmax(-1).numpy()


def gist(z, usual):
    g = np.log1p(np.maximum(z - usual, 0))
    return g / np.linalg.norm(g)


def test_a_gist_is_what_a_plain_forward_expects_more_than_of_any_document(engine):
    assert len(TEXTS) > AT_ONCE
    table = TASK(pa.table({"title": ["", *["Title"] * (len(TEXTS) - 1)], "text": TEXTS}), engine)
    assert table.schema == BAG
    usual = np.mean([after(engine, prompt) for prompt in document_prompts(engine.format, TASK.sample)], axis=0)
    for row, text in enumerate(TEXTS):
        shown = show("Title" if row else "", text, engine.format, 128)
        [prompt] = document_prompts(engine.format, [shown])
        assert engine.format.tokenizer.decode(prompt).endswith('assistant\nThe word is: "')
        whole = gist(after(engine, prompt), usual)
        best = np.sort(np.argsort(-whole, kind="stable")[: TASK.most])
        best = best[whole[best] > 0]
        wanted = whole[best] / np.linalg.norm(whole[best])
        found = dict(zip(table["words"][row].as_py(), table["weights"][row].as_py(), strict=True))
        for token, weight in zip(best, wanted, strict=True):
            assert abs(found.get(BUCKETS + token, 0) / STEPS - weight) < 1 / STEPS
        assert set(found) <= {BUCKETS + token for token in best}


def test_a_query_is_asked_with_its_instruction(engine):
    [prompt] = query_prompts(engine.format, "Find the fox.", ["red hat"], 64)
    text = engine.format.tokenizer.decode(prompt)
    assert text.index("Find the fox.") < text.index("red hat") < text.index("The word is")
    wanted = np.mean([after(engine, p) for p in query_prompts(engine.format, INSTRUCTION, TASK.texts, 512)], axis=0)
    np.testing.assert_allclose(engine.prior(TASK), wanted, atol=1e-4)


def test_bags_keep_their_words_and_get_the_gists_beside_them(bags, engine):
    plain = Bags.of([make_bags(TEXTS)], first_tokens(engine.format, TEXTS))
    for row in range(len(TEXTS)):
        [own, both] = [(b.words[b.first[row] : b.first[row + 1]], b.weights[b.first[row] :]) for b in (plain, bags)]
        assert (np.diff(both[0].astype(np.int64)) > 0).all()
        assert both[0][: len(own[0])].tolist() == own[0].tolist()
        assert both[1][: len(own[0])].tolist() == own[1][: len(own[0])].tolist()
        assert (both[0][len(own[0]) :] >= BUCKETS).all()
    assert len(bags.begins) == BUCKETS + len(bags.prior)
    assert bags.begins[BUCKETS:].tolist() == list(range(len(bags.prior)))
    some = bags.take(np.array([3, 1]))
    assert some.join(some).prior is bags.prior


def test_a_plan_takes_the_gists_of_query_and_documents(bags, engine, tmp_path):
    index = make_index(tmp_path, TEXTS, vocab=len(engine.format.tokenizer), bags=bags)
    retriever = Retriever.load(index, "cpu", "float32")
    cfg = DecodeConfig(mode="top_k", plan_ahead=5, lookahead=1e6, gist=0.7)
    query = "open the red browser"
    [prompt] = query_prompts(engine.format, INSTRUCTION, [query], cfg.query_tokens)
    z = after(engine, prompt)
    postings = retriever.bundle.postings
    np.testing.assert_array_equal(postings.prior, bags.prior)
    own = engine.format.own_tokens(query, cfg.query_tokens)
    gain = term_gain(z, bags.prior, postings.begins, query_bag(query), cfg.own_terms, cfg.gist, (own, cfg.asked))
    wanted = 0.7 * gist(z, bags.prior)
    wanted[list(set(own))] += cfg.asked / len(set(own)) ** 0.5
    assert engine.format.tokenizer.decode(own) == f" {query}"
    assert np.allclose(gain[BUCKETS:], wanted, atol=1e-3)
    scores = bag_scores(postings, gain, np.arange(len(TEXTS)))
    best = np.argsort(-scores, kind="stable")[:5]
    hits = retriever.search(query, 5, config=cfg)
    docnos = retriever.bundle.documents["docno"].to_pylist()
    assert [hit.docno for hit in hits] == [docnos[row] for row in best]
    other = retriever.search_many([query, "json", query], 5, config=cfg)
    assert [hit.docno for hit in other[2]] == [hit.docno for hit in hits], "also in a batch"


def test_with_a_plan_the_rerank_head_orders_the_hits_and_chooses_no_others(bags, engine, tmp_path):
    index = make_index(tmp_path, TEXTS, vocab=len(engine.format.tokenizer), bags=bags)
    retriever = Retriever.load(index, "cpu", "float32")
    cfg = DecodeConfig(plan_ahead=12, lookahead=3.0)
    drawn = retriever.search("red fox", 5, config=cfg)
    ordered = retriever.search("red fox", 5, config=cfg.model_copy(update={"order": "rerank"}))
    assert {hit.docno for hit in ordered} == {hit.docno for hit in drawn}
    assert [hit.score for hit in ordered] == sorted((hit.score for hit in ordered), reverse=True)
    [z] = engine.logprobs(query_prompts(engine.format, INSTRUCTION, ["red fox"], cfg.query_tokens))
    asked = (engine.format.own_tokens("red fox", cfg.query_tokens), cfg.asked)
    postings = retriever.bundle.postings
    gain = term_gain(z, bags.prior, postings.begins, query_bag("red fox"), cfg.own_terms, cfg.gist, asked)
    docnos = retriever.bundle.documents["docno"].to_pylist()
    promised = dict(zip(docnos, 3.0 * bag_scores(postings, gain, np.arange(len(docnos))), strict=True))
    for hit in ordered:
        behind = promised[hit.docno] - max(promised.values())
        assert hit.score == pytest.approx(hit.rerank + hit.docid_logprob + behind, abs=1e-3)


def test_jobs_with_and_without_a_plan_share_a_batch(bags, engine, tmp_path):
    index = make_index(tmp_path, TEXTS, vocab=len(engine.format.tokenizer), bags=bags)
    retriever = Retriever.load(index, "cpu", "float32")
    ways = [DecodeConfig(), DecodeConfig(plan_ahead=4), DecodeConfig(mode="beam", draws=5)]
    together = retriever.answer([Request("red fox", 4, config=cfg) for cfg in ways])
    alone = [retriever.search("red fox", 4, config=cfg) for cfg in ways]
    assert [[hit.docno for hit in hits] for hits in together] == [[hit.docno for hit in hits] for hits in alone]


def test_an_index_without_gists_plans_by_what_begins_the_docid(bags, engine, tmp_path):
    plain = Bags.of([make_bags(TEXTS)], bags.begins[:BUCKETS])
    retriever = Retriever.load(make_index(tmp_path, TEXTS, vocab=len(engine.format.tokenizer), bags=plain), "cpu")
    cfg = DecodeConfig(plan_ahead=4, lookahead=10)
    assert retriever.prompt(retriever.job(Request("red fox", config=cfg))).word is None
    assert len(retriever.search("red fox", 4, config=cfg)) == 4


def test_a_compacted_index_keeps_its_gists(bags, engine, tmp_path):
    retriever = Retriever.load(
        make_index(tmp_path, TEXTS, vocab=len(engine.format.tokenizer), bags=bags), "cpu", "float32"
    )
    retriever.remove(["d0"])
    retriever.add(["new"], ["red browser"])
    retriever.compact(tmp_path / "compacted")
    kept = open_index(tmp_path / "compacted").postings
    np.testing.assert_array_equal(kept.prior, bags.prior)
    before, after_ = retriever.bundle, open_index(tmp_path / "compacted")
    row, new = (b.documents["docno"].to_pylist().index("d5") for b in (before, after_))
    held = [b.postings.tokens[b.postings.first[r] : b.postings.first[r + 1]] for b, r in ((before, row), (after_, new))]
    assert held[0].tolist() == held[1].tolist()


def test_the_task_s_key_changes_with_what_is_asked():
    keys = {
        replace(TASK, **changed).key("corpus", "model", "")
        for changed in ({}, {"most": 9}, {"texts": ("a",)}, {"sample": ("b",)}, {"instruction": "c"}, {"doc_tokens": 9})
    }
    assert len({*keys, TASK.key("other", "model", ""), TASK.key("corpus", "other", "")}) == 8


def test_of_a_record_of_fields_the_gist_is_that_of_its_telling_lines(engine):
    fields = "arguments: none " * 20
    texts = [f"{fields}\nThe parser reads json files from the web and shows them in a red window.", *[fields] * 19]
    documents = pa.table({"title": [""] * len(texts), "text": texts})
    known = Frequencies.counted(texts)
    few = replace(TASK, doc_tokens=60)
    picking = replace(few, known=known)
    shown = show("", texts[0], engine.format, few.doc_tokens, known)
    assert "The parser" in shown, "the test has something to pick"
    [picked, *_] = picking(documents, engine).to_pylist()
    assert [picked] == few(pa.table({"title": [""], "text": [shown]}), engine).to_pylist()
    assert picked != few(documents, engine).to_pylist()[0]
    assert picking.key("corpus", "model", "") != few.key("corpus", "model", "")
