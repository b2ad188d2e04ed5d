"""What queries are expected to say, against plain forwards, and what becomes of it in a plan."""

from __future__ import annotations

import math

import numpy as np
import pyarrow as pa
import pytest
import torch

from tests.tiny import save_tiny
from zerogr_ray.config import QueryConfig
from zerogr_ray.corpus.bags import BAG, BUCKETS, STEPS
from zerogr_ray.decoding.expected import RARE, RISE, Asked, ExpectWords, QueryModel
from zerogr_ray.models import load_format, load_model
from zerogr_ray.queries.generate import query_prompt
from zerogr_ray.training.validation import is_held_out

pytestmark = pytest.mark.model

INSTRUCTION = "Given a question, find the page."
CFG = QueryConfig(expected_tokens=12, examples=0)
DOCUMENTS = [
    Asked("fox", "the red fox and the hat", ("red fox", "who has a hat"), ("question", "question")),
    Asked("", "read json files", ("read json",), ("keywords",)),
    Asked("web", "open a web browser", (), ()),
]
TASK = ExpectWords(CFG, INSTRUCTION, tuple(DOCUMENTS))


@pytest.fixture(scope="module")
def engine(tmp_path_factory):
    folder = save_tiny(tmp_path_factory.mktemp("expected") / "model")
    return QueryModel(load_model(folder, "float32", "cpu"), load_format(folder))


@pytest.fixture(scope="module")
def table(engine):
    return TASK(rows_of(DOCUMENTS), engine)


def rows_of(documents):
    names = [f"d{number}" for number in range(len(documents))]
    columns = zip(Asked._fields, zip(*documents, strict=True), strict=True)
    return pa.table({"docno": names, **{name: list(values) for name, values in columns}})


def plainly(engine, asked, kind):
    """Mean over the places of the queries, each in a forward of its own."""
    shown = f"Title: {asked.title}\n{asked.text}" if asked.title else asked.text
    [prompt] = engine.format.tokens([query_prompt(engine.format, CFG, kind, INSTRUCTION, shown)])
    found = []
    for query in engine.format.tokens(asked.queries):
        with torch.inference_mode():
            logits = engine.model(input_ids=torch.tensor([prompt + query])).logits[0]
        found.append(logits[len(prompt) - 1 : -1].softmax(-1).numpy())
    return np.concatenate(found).mean(0)


def test_it_is_the_mean_of_what_the_lm_would_have_written_at_every_place(engine):
    for asked in DOCUMENTS[:2]:
        wanted = plainly(engine, asked, asked.kinds[0])
        np.testing.assert_allclose(engine.words(TASK, asked), wanted, atol=1e-6)


def test_what_is_likelier_than_for_other_documents_is_kept_at_unit_length(engine, table):
    assert table.schema == BAG
    p = [plainly(engine, asked, asked.kinds[0]) for asked in DOCUMENTS[:2]]
    usual = np.maximum(np.mean(p, axis=0), RARE)
    for row, p_V in enumerate(p):
        rise = np.log1p(RISE * p_V / usual)
        best = np.argsort(-rise * np.sqrt(p_V), kind="stable")[: CFG.expected_tokens]
        wanted = {BUCKETS + int(v): rise[v] / math.sqrt((rise[best] ** 2).sum()) for v in best}
        found = dict(zip(table["words"][row].as_py(), table["weights"][row].as_py(), strict=True))
        assert set(found) <= set(wanted)
        for token, weight in wanted.items():
            assert abs(found.get(token, 0) / STEPS - weight) <= 1 / STEPS


def test_a_document_that_nothing_is_asked_of_expects_nothing(table):
    assert table.to_pylist()[2] == {"words": [], "weights": []}


def test_without_any_query_nothing_fails(tmp_path):
    folder = save_tiny(tmp_path / "model")
    engine = QueryModel(load_model(folder, "float32", "cpu"), load_format(folder))
    task = ExpectWords(CFG, INSTRUCTION, tuple(DOCUMENTS[2:]))
    rows = task(rows_of(DOCUMENTS[2:]), engine)
    assert rows.to_pylist() == [{"words": [], "weights": []}]


def test_queries_that_are_held_back_to_judge_the_index_tell_it_nothing(engine):
    asked = Asked("fox", "the red fox and the hat", tuple(f"red fox {n}" for n in range(8)), ("question",) * 8)
    row = {"docno": "d0", **asked._asdict()}
    half = Asked.of(row, 0.5)
    assert half.queries == tuple(query for query in asked.queries if not is_held_out(0.5, "d0", query))
    assert 0 < len(half.queries) == len(half.kinds) < 8
    without = ExpectWords(CFG, INSTRUCTION, tuple(DOCUMENTS), held=0.5)(rows_of([asked]), engine)
    assert without == ExpectWords(CFG, INSTRUCTION, tuple(DOCUMENTS))(rows_of([half]), engine)
    assert Asked.of(row) == asked
