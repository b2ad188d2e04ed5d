"""The overlap check finds what training and evaluation share, through its index as by comparing all pairs."""

import gzip
import json

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.evaluation.test_compare import complaint, zerogr
from zerogr_ray.errors import InputError
from zerogr_ray.evaluation.overlap import (
    NEAR_QUERY,
    Pool,
    QueryIndex,
    normalise,
    overlap,
    read_pool,
    tfidf_cosine,
)
from zerogr_ray.rows import Collection, Query

LONG = "please tell me which of the many small red foxes that live in this forest hunts mice at night in winter"
TOOLS = "Given a user request, retrieve the tools that are needed to fulfil it."


def collection(*queries, instruction="", name="c"):
    return Collection(name, "", [Query(f"q{i}", text) for i, text in enumerate(queries)], {}, instruction)


def pool(queries=(), instructions=()):
    return Pool(dict.fromkeys(instructions, ("task",)), dict.fromkeys(queries, ("task",)))


def jaccard(a, b):
    """Of word trigrams, from the definition."""
    one, other = ({tuple(w[i : i + 3]) for i in range(max(1, len(w) - 2))} for w in (a.split(), b.split()))
    return len(one & other) / len(one | other)


sentences = st.lists(st.sampled_from("abc"), min_size=1, max_size=14).map(" ".join)


@given(st.lists(sentences, min_size=1, max_size=30), sentences)
def test_the_index_finds_what_comparing_all_pairs_finds(trained, query):
    best = max(jaccard(query, other) for other in trained)
    found = QueryIndex(trained).match(query)
    if query in trained:
        assert found == ("exact", 1.0, query)
    elif best >= NEAR_QUERY:
        assert found[:2] == ("near", pytest.approx(best))
        assert jaccard(query, found[2]) == best
    else:
        assert found is None


def test_case_punctuation_and_unicode_forms_do_not_count():
    assert normalise("What's  the ＢＢＣ?") == normalise("what 's the bbc")
    assert normalise("东京 天気?") == "东 京 天 気"
    assert normalise(" ?! ") == "?!"
    assert normalise("") == ""


def test_a_query_with_a_word_changed_at_its_end_is_near_and_a_rewritten_one_is_not():
    found = overlap(pool([LONG]), [collection(LONG.upper() + "!", LONG + " now", "do foxes hunt mice at night")])[0]
    assert (found.verdict, found.exact, found.near, found.tasks) == ("leaked queries", 1, 1, {"task": 2})
    assert [(leak.kind, leak.qid) for leak in found.leaks] == [("exact", "q0"), ("near", "q1")]
    assert found.leaks[1].similarity == pytest.approx(19 / 20)


def test_an_instruction_in_other_words_is_similar_and_one_that_shares_phrasing_is_not():
    trained = [TOOLS, "Given a how-to intent in natural language, retrieve the Python snippet that implements it."]
    asked = [
        collection("x", instruction="Given a user request, retrieve the tool that can fulfil it."),
        collection("x", instruction=TOOLS.upper()),
        collection("x", instruction="Given a medical topic, retrieve abstracts of medical articles about it."),
        collection("x"),
    ]
    found = overlap(pool(instructions=trained), asked)
    assert [row.verdict for row in found] == ["similar instruction", "similar instruction", "clean", "clean"]
    assert [row.nearest[0].kind for row in found[:3]] == ["near", "exact", "far"]
    assert found[0].nearest[0].instruction == TOOLS
    assert found[3].nearest == []


def test_instructions_of_the_queries_themselves_count():
    asked = Collection("mair", "", [Query("q1", "x", "find a cat"), Query("q2", "y", TOOLS)], {})
    assert overlap(pool(instructions=[TOOLS]), [asked])[0].nearest[0].kind == "exact"


def test_another_similarity_can_be_given():
    found = overlap(pool(instructions=["a", "b"]), [collection("x", instruction="c")], lambda e, t: np.eye(1, 2), 0.9)
    assert [(match.kind, match.instruction) for match in found[0].nearest] == [("near", "a"), ("far", "b")]


def test_tfidf_is_the_cosine_of_its_formula():
    def weight(df):
        return np.log(4 / (1 + df)) + 1

    # "red fox": red, fox, "red fox"; "red hat": red, hat, "red hat"; "hat": hat
    norm = [np.sqrt(weight(2) ** 2 + 2 * weight(1) ** 2), np.sqrt(2 * weight(2) ** 2 + weight(1) ** 2)]
    expected = [[weight(2) ** 2 / norm[0] / norm[1], 0]]
    np.testing.assert_allclose(tfidf_cosine(["Red fox!"], ["red hat", "hat"]), expected)


def test_every_format_of_a_pool_is_read(tmp_path):
    triples = [{"task": "a", "instruction": "find a", "query": "q1", "positive": "p"}, {"task": "b", "query": "q1"}]
    (tmp_path / "triples.jsonl").write_text("".join(json.dumps(row) + "\n" for row in triples))
    (tmp_path / "squad.jsonl.gz").write_bytes(gzip.compress(b'{"sentence": "s", "question": "q2 ?"}\n'))
    (tmp_path / "mair.tsv").write_text("domain\ttask\tinstruction\nWeb\tc\tfind c\n")
    (tmp_path / "e5.json").write_text('{"d": "find d", "a": "find a"}')
    (tmp_path / "README.md").write_text("not read")
    assert read_pool(str(tmp_path)) == Pool(
        {"find d": ("d",), "find a": ("a",), "find c": ("c",)}, {"q2 ?": ("squad",), "q1": ("a", "b")}
    )
    assert read_pool(str(tmp_path), ["a", "squad"]) == Pool({"find d": ("d",), "find c": ("c",)}, {"q1": ("b",)})


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("p.jsonl", '{"query": "a"}\n{"qurey": "b"}\n', "line 2.*'qurey'"),
        ("p.jsonl", '{"query": ["a"]}\n', "line 1.*list"),
        ("p.jsonl", "", "no training instructions"),
        ("p.tsv", "task\tinstruction\na\n", "line 2.*1 columns"),
        ("p.json", "[1]", "list"),
    ],
)
def test_bad_pools_are_refused(tmp_path, name, content, message):
    (tmp_path / name).write_text(content)
    with pytest.raises(InputError, match=message):
        read_pool(str(tmp_path / name))


def test_a_task_left_out_must_be_there(tmp_path):
    (tmp_path / "p.jsonl").write_text('{"task": "scifact", "query": "a"}\n')
    with pytest.raises(InputError, match=r"no task 'scifcat'; its tasks are scifact"):
        read_pool(str(tmp_path / "p.jsonl"), ["scifcat"])


def test_the_command_prints_a_verdict_per_collection(tmp_path):
    (tmp_path / "pool.jsonl").write_text(json.dumps({"task": "foxes", "instruction": TOOLS, "query": LONG}) + "\n")
    for name, query in (("leaky", LONG), ("fresh", "what do owls eat")):
        (tmp_path / name / "qrels").mkdir(parents=True)
        (tmp_path / name / "queries.jsonl").write_text(json.dumps({"_id": "q1", "text": query}) + "\n")
        (tmp_path / name / "qrels" / "test.tsv").write_text("query-id\tcorpus-id\tscore\nq1\td0\t1\n")
        (tmp_path / name / "instruction.txt").write_text("Given a question, retrieve a page about birds.\n")
    verb = ("overlap", tmp_path / "pool.jsonl", tmp_path / "leaky", tmp_path / "fresh")
    status, out, err = zerogr(*verb)
    rows = [line.split("\t") for line in out.splitlines()]
    assert (status, err) == (0, "")
    assert [row for row in rows if row[1] == "verdict"] == [
        ["leaky", "verdict", "leaked queries"],
        ["fresh", "verdict", "clean"],
    ]
    assert ["leaky", "leaked from", "foxes", "1"] in rows
    assert ["leaky", "leak", "exact", "1.000", "q1", LONG, LONG] in rows
    found = json.loads(zerogr(*verb, "--json")[1])
    assert found["near"]["query"] == NEAR_QUERY
    assert [row["verdict"] for row in found["collections"]] == ["leaked queries", "clean"]
    assert "no task 'foxen'" in complaint(*verb, "--without", "foxen")
    assert "nothing" in complaint("overlap", tmp_path / "pool.jsonl", tmp_path / "nothing")
