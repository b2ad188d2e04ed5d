"""Batched tree attention and the retriever, on a tiny model with random weights."""

from __future__ import annotations

import subprocess
import sys
from itertools import pairwise

import numpy as np
import pyarrow as pa
import pytest
import torch

from tests.decoding.oracle import draw_one_by_one
from tests.tiny import save_tiny
from zerogr_ray.chat import PromptFormat
from zerogr_ray.config import DecodeConfig
from zerogr_ray.decoding.retriever import Retriever
from zerogr_ray.decoding.schedule import temperatures
from zerogr_ray.errors import InputError, ModelError
from zerogr_ray.index.bundle import DOCUMENTS, write_index
from zerogr_ray.models import load_format

pytestmark = pytest.mark.model

INSTRUCTION = "Given a query, retrieve documents."
WORDS = [
    "parse",
    "read",
    "write",
    "open",
    "json",
    "file",
    "red",
    "fox",
    "hat",
    "browser",
    "command",
    "line",
    "flags",
    "web",
]


def make_index(folder, docids, docnos=None, **arrays):
    model = save_tiny(folder / "model")
    fmt = load_format(model)
    docnos = docnos or [f"d{i}" for i in range(len(docids))]
    facts = {
        "instruction": INSTRUCTION,
        "prompt_format": fmt.fingerprint,
        "key": "tiny",
        "model": {"trained_from": "tiny"},
    }
    documents = pa.table([docnos, docids, fmt.docids(docids), docnos], schema=DOCUMENTS)
    write_index(folder / "index", documents, fmt.end, model, facts | {"rerank_token": 0}, **arrays)
    return folder / "index"


@pytest.fixture(scope="module")
def docids():
    rng = np.random.default_rng(5)
    some = [" ".join(rng.choice(WORDS, size=rng.integers(1, 6))) for _ in range(120)]
    return [*some, "red fox", "red fox", "red fox hat"]


@pytest.fixture(scope="module")
def retriever(docids, tmp_path_factory):
    return Retriever.load(make_index(tmp_path_factory.mktemp("retriever"), docids), device="cpu", dtype="float32")


def plain_logits(retriever, prompt):
    """Logits by a forward over prompt + path from scratch: no cache, no tree, no batch."""

    def logits_at(path, tokens):
        with torch.inference_mode():
            out = retriever.model(input_ids=torch.tensor([[*prompt, *path]])).logits[0, -1]
        return out[tokens].float().numpy()

    return logits_at


def test_a_search_equals_the_sequential_algorithm_draw_by_draw(retriever):
    trie, cfg = retriever.bundle.trie, DecodeConfig(draws=60, seed=11)
    docnos = retriever.bundle.documents["docno"].to_pylist()
    for query in ("fox", "open a web browser and read the file", "???"):
        prompt = retriever.format.prompts(INSTRUCTION, [query], cfg.query_tokens)[0]
        expected = draw_one_by_one(trie, plain_logits(retriever, prompt), temperatures(cfg), cfg.seed)
        rows = [row for leaf in expected for row in trie.documents_of(leaf)]
        assert [hit.docno for hit in retriever.search(query, k=50, config=cfg)] == [docnos[row] for row in rows[:50]]


def test_many_queries_in_one_batch_give_what_each_gives_alone(retriever):
    queries = ["fox", "open a web browser", "read json " * 30, "x", "hat fox red"]
    together = retriever.search_many(queries, k=20, config=DecodeConfig())
    alone = [retriever.search(query, k=20) for query in queries]
    for one, other in zip(together, alone, strict=True):
        assert [hit.docno for hit in one] == [hit.docno for hit in other]
        np.testing.assert_allclose([h.logprob for h in one], [h.logprob for h in other], atol=1e-3)


def test_asking_for_more_documents_than_there_are_gives_each_once(retriever, docids):
    hits = retriever.search("fox", k=1000)
    assert sorted(hit.docno for hit in hits) == sorted(f"d{i}" for i in range(len(docids)))
    assert [hit.rank for hit in hits] == list(range(1, len(docids) + 1))
    assert all(hit.docid == docids[int(hit.docno[1:])] for hit in hits)
    assert all(a.score > b.score for a, b in pairwise(hits))


def test_documents_that_share_a_docid_come_from_one_draw(retriever):
    by_docid = {}
    for hit in retriever.search("fox", k=1000):
        by_docid.setdefault(hit.docid, set()).add(hit.draw)
    assert all(len(draws) == 1 for draws in by_docid.values())


def test_the_seed_decides_what_is_drawn_after_the_greedy_one(retriever):
    one, again, other = ([h.docno for h in retriever.search("fox", 30, config=DecodeConfig(seed=s))] for s in (1, 1, 2))
    assert one == again
    assert one != other
    assert one[0] == other[0]


@pytest.mark.parametrize("docids_", [["one docid"], ["same", "same"], ["a b", "a b c"]])
def test_the_smallest_indexes_work(docids_, tmp_path):
    retriever = Retriever.load(make_index(tmp_path, docids_), device="cpu", dtype="float32")
    assert len(retriever.search("anything", k=10)) == len(docids_)


def test_queries_of_any_length_and_script_work(retriever):
    for query in (
        "x" * 100_000,
        "word " * 20_000,
        "日本語の質問",
        "🦊🦊",
        "שלום עולם",
        "a\x00b\x1f",
        "<|im_end|>",
        "lone \ud800",
    ):
        assert len(retriever.search(query, k=3)) == 3


def test_impossible_requests_are_refused_with_one_sentence(retriever):
    with pytest.raises(InputError, match="k is 0"):
        retriever.search("fox", k=0)
    with pytest.raises(InputError, match="the query is empty"):
        retriever.search("  \n")
    with pytest.raises(InputError, match="query 2 of 2 is empty"):
        retriever.search_many(["fox", ""])
    with pytest.raises(InputError, match="2 queries came with 1 instructions"):
        retriever.search_many(["fox", "hat"], instruction=["only one"])


def test_a_model_without_a_system_role_gets_the_instruction_with_the_query(retriever):
    fmt = retriever.format
    plain = fmt.tokenizer.chat_template
    try:
        fmt.tokenizer.chat_template = (
            "{% if messages[0].role == 'system' %}{{ raise_exception('no system') }}{% endif %}" + plain
        )
        text = PromptFormat(fmt.tokenizer).render("Do this.", "fox")
    finally:
        fmt.tokenizer.chat_template = plain
    assert text == "<|im_start|>user\nDo this.\n\nfox<|im_end|>\n<|im_start|>assistant\n"


def test_a_template_with_a_date_gives_the_same_prompt_on_every_day(retriever):
    fmt = retriever.format
    plain = fmt.tokenizer.chat_template
    try:
        fmt.tokenizer.chat_template = "{{ strftime_now('%d %b %Y') }} {{ date_string }}" + plain
        text = PromptFormat(fmt.tokenizer).render("Do this.", "fox")
    finally:
        fmt.tokenizer.chat_template = plain
    assert text.startswith("26 Jul 2024 26 Jul 2024<|im_start|>")


def test_a_template_that_cannot_be_rendered_is_one_sentence(retriever):
    fmt = retriever.format
    plain = fmt.tokenizer.chat_template
    try:
        fmt.tokenizer.chat_template = "{% if %}"
        with pytest.raises(ModelError, match="cannot be rendered"):
            PromptFormat(fmt.tokenizer)
    finally:
        fmt.tokenizer.chat_template = plain


def test_text_is_cut_by_tokens_whatever_its_script(retriever):
    for text in ("🦊" * 96, "東京" * 90, "word " * 200, "x" * 5000):
        short = retriever.format.shorten(text, 96)
        assert len(retriever.format.tokens([short])[0]) <= 97
        assert text.startswith(short.rstrip("\ufffd"))
    assert retriever.format.shorten("short", 96) == "short"


def test_importing_the_package_loads_neither_torch_nor_ray_nor_vllm():
    code = "import sys, zerogr_ray; assert not {'torch', 'ray', 'vllm', 'transformers'} & set(sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True)
