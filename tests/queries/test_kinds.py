"""The mix of kinds: what the instruction asks for, shared out exactly, each kind with a prompt of its own."""

from __future__ import annotations

from collections import Counter

import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from zerogr_ray.config import IndexConfig, QueryConfig, QueryMix, make_config
from zerogr_ray.errors import InputError
from zerogr_ray.generation.examples import EXAMPLES
from zerogr_ray.queries.generate import WriteQueries
from zerogr_ray.queries.kinds import DEFAULT, PROMPTS, kinds_of, share_out

DOCUMENTS = pa.table(
    {"docno": ["d0", "d1", "d2"], "title": ["Fox", "", ""], "text": ["Foxes hunt mice.", "Tides.", "Bread rises."]}
)


class EchoFormat:
    """Prompts are their own tokens, so that a test can read them."""

    def render(self, instruction, user, examples=()):
        return "|".join([instruction, *(f"{asked}=>{answer}" for asked, answer in examples), user])

    def tokens(self, texts):
        return [[text] for text in texts]

    def shorten(self, text, tokens):
        return text


class Echo:
    """An engine that writes down what it was asked and answers with the number of the prompt."""

    def __init__(self):
        self.format, self.prompts = EchoFormat(), []

    def generate(self, prompts, sampling, seed):
        assert sampling.n == 1
        self.prompts += [prompt[0] for prompt in prompts]
        return [[f"answer {number}"] for number in range(len(prompts))]


@pytest.mark.parametrize(
    ("instruction", "kinds"),
    [
        ("Given a scientific claim, retrieve documents that support or refute the claim.", ["claim"]),
        ("Given a question, retrieve the Wikipedia table that holds the answer.", ["question"]),
        ("Given an instruction, retrieve the API documentation of the model that can carry it out.", ["request"]),
        ("Given a how-to intent in natural language, retrieve the Python snippet.", ["question", "request"]),
        ("Given a medical topic, retrieve abstracts of medical articles about it.", ["keywords"]),
        ("Given search queries, retrieve products that are relevant to them.", ["keywords"]),
        ("Retrieve the full document for a finance news article based on its title.", ["keywords"]),
        ("Find a study that addresses this question.", ["question"]),
        ("Given a query, retrieve documents that answer the question.", []),  # what is found says nothing of what asks
        ("", []),
    ],
)
def test_the_words_for_what_is_given_name_the_kinds(instruction, kinds):
    shares = kinds_of(instruction)
    assert sum(shares.values()) == pytest.approx(1)
    if not kinds:
        assert shares == DEFAULT
    else:
        assert sum(shares[kind] for kind in kinds) >= 0.75
        assert all(shares[kind] >= DEFAULT[kind] for kind in kinds)
        assert all(0 < shares[kind] < DEFAULT[kind] for kind in PROMPTS if kind not in kinds)


def test_a_mix_in_the_settings_wins_over_the_instruction():
    assert kinds_of("Given a claim, retrieve.", QueryMix(question=3, keywords=1)) == {
        "question": 0.75, "keywords": 0.25, "claim": 0, "request": 0,
    }  # fmt: skip
    with pytest.raises(InputError, match=r"queries\.mix: .*give at least one a share"):
        make_config(IndexConfig, {}, {"queries.mix.claim": 0})


@given(st.lists(st.integers(0, 9), min_size=4, max_size=4).filter(any), st.integers(0, 40), st.integers(0, 20))
def test_every_document_gets_its_number_and_any_run_of_documents_the_shares(weights, documents, each):
    shares = {kind: weight / sum(weights) for kind, weight in zip(PROMPTS, weights, strict=True)}
    kinds = share_out(shares, documents, each)
    assert [len(some) for some in kinds] == [each] * documents
    for last in range(1, documents + 1):
        counts = Counter(kind for some in kinds[:last] for kind in some)
        assert all(abs(counts[kind] - share * last * each) < 3 for kind, share in shares.items())
        assert all(shares[kind] for kind in counts)


def test_each_kind_has_its_prompt_and_its_examples_and_all_before_the_document_is_the_same():
    engine = Echo()
    cfg = QueryConfig(per_document=4, mix=QueryMix(question=2, claim=1, keywords=1), examples=3)
    rows = WriteQueries(cfg, "Find it.", 0)(DOCUMENTS, engine).to_pylist()
    assert [Counter(row["kinds"]) for row in rows] == [Counter(question=2, claim=1, keywords=1)] * 3
    before = {}
    for kind in ("claim", "keywords", "question"):
        mine = [prompt.rpartition("|")[0] for prompt in engine.prompts if PROMPTS[kind] in prompt]
        assert len(mine) == 3 * Counter(rows[0]["kinds"])[kind]
        assert len(set(mine)) == 1
        before[kind] = mine[0]
        assert before[kind].count("=>") == 3
        assert all(f"=>{getattr(example, kind)}" in before[kind] for example in EXAMPLES[:3])
    # Prompts with the same beginning follow each other, and answers return to the document that was shown.
    beginnings = [prompt.rpartition("|")[0] for prompt in engine.prompts]
    assert [b for b, other in zip(beginnings, [None, *beginnings], strict=False) if b != other] == list(before.values())
    for row, text in zip(rows, DOCUMENTS["text"].to_pylist(), strict=True):
        for query, kind in zip(row["queries"], row["kinds"], strict=True):
            prompt = engine.prompts[int(query.split()[1])]
            assert text in prompt.rpartition("|")[2]
            assert prompt.startswith(PROMPTS[kind])


def test_a_fine_tuned_generator_gets_its_own_prompt_and_no_examples():
    engine = Echo()
    cfg = QueryConfig(per_document=1, examples=0, prompt="You write queries.")
    WriteQueries(cfg, "Find it.", 0)(DOCUMENTS, engine)
    shown = {"Title: Fox\nFoxes hunt mice.", "Tides.", "Bread rises."}
    assert set(engine.prompts) == {f"You write queries. The retrieval task: Find it.|{text}" for text in shown}


def test_the_key_changes_with_the_mix_and_the_examples_and_not_with_the_filter():
    def key(**changes):
        return WriteQueries(make_config(QueryConfig, {}, changes), "Find it.", 0).key("corpus", "model")

    assert key() == key(**{"filter.round_trip": 0})
    assert len({key(), key(examples=0), key(**{"mix.claim": 1}), key(prompt="Write.")}) == 4


def test_no_example_says_the_same_twice():
    said = [
        text for example in EXAMPLES for text in (example.question, example.keywords, example.claim, example.request)
    ]
    assert len(EXAMPLES) == 8
    assert len(set(said)) == 32
