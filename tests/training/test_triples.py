import json

import pyarrow.parquet as pq
import pytest

from zerogr_ray.config import TrainingConfig
from zerogr_ray.errors import InputError
from zerogr_ray.training.triples import learning_rows, read_triples, with_answers, write_rows

GOOD = {
    "task": "animals",
    "instruction": "Given a question, retrieve the page.",
    "query": "where do foxes live",
    "title": "Fox",
    "positive": "The red fox lives in forests and towns.",
}


def write(path, *rows):
    path.write_text("".join((row if isinstance(row, str) else json.dumps(row)) + "\n" for row in rows))
    return str(path)


def without(field):
    return {name: value for name, value in GOOD.items() if name != field}


@pytest.mark.parametrize(
    ("row", "reason"),
    [
        (without("query"), "field 'query' (or question) is missing"),
        (without("positive"), "field 'positive' (or sentence) is missing"),
        ({**GOOD, "query": " \n"}, "field 'query' is empty"),
        ({**GOOD, "query": "?!"}, "field 'query' is empty"),
        ({**GOOD, "positive": ""}, "field 'positive' is empty"),
        ({**GOOD, "query": 7}, "field 'query' holds a number, not text"),
        ({**GOOD, "query": "the red fox  lives in forests and TOWNS"}, "is the document itself"),
        ({**GOOD, "query": "Fox The red fox lives in forests and towns."}, "is the document itself"),
        ('{"query": ', "the line is not JSON"),
        ("[1]", "the line is a JSON list"),
    ],
)
def test_a_row_that_teaches_nothing_is_set_aside_with_its_line_and_reason(tmp_path, row, reason):
    path = write(tmp_path / "rows.jsonl", GOOD, row)
    triples = read_triples([path], "Find.")
    assert [triple.query for triple in triples.kept] == [GOOD["query"]]
    assert [(r.file, r.line) for r in triples.rejected] == [(path, 2)]
    assert reason in triples.rejected[0].reason
    with pytest.raises(InputError, match=r"no usable rows \(1 cannot be used\); .* line 1: "):
        read_triples([write(tmp_path / "bad.jsonl", row)], "Find.")


def test_rows_are_read_once_and_tasks_can_be_left_out(tmp_path):
    other = {**GOOD, "task": "scifact", "query": "foxes hunt mice"}
    path = write(tmp_path / "rows.jsonl", GOOD, GOOD, other, without("instruction"), without("task"))
    triples = read_triples([path], "Find.", without=["scifact"])
    assert [(t.task, t.instruction) for t in triples.kept] == [
        ("animals", GOOD["instruction"]),
        ("animals", "Find."),
        ("rows", GOOD["instruction"]),
    ]
    assert triples.left_out == {"scifact": 1}
    with pytest.raises(InputError, match="there is no task 'scifacts'; the tasks are animals, rows, scifact"):
        read_triples([path], "Find.", without=["scifacts"])


def test_sentence_question_pairs_are_read_as_people_write(tmp_path):
    row = {"sentence": "the afc -lrb- west -rrb- did n't win , it was 24 % .", "question": "who won super bowl 50 ?"}
    (triple,) = read_triples([write(tmp_path / "squad.jsonl", row)], "Find.").kept
    assert (triple.task, triple.instruction, triple.title) == ("squad", "Find.", "")
    assert triple.text == "the afc (west) didn't win, it was 24%."
    assert triple.query == "who won super bowl 50?"


def many(tmp_path, count):
    rows = [{**GOOD, "query": f"question {i}", "positive": f"fox number{i // 2} lives here"} for i in range(count)]
    return read_triples([write(tmp_path / "many.jsonl", *rows)], "Find.").kept


def test_at_most_so_many_rows_of_a_task_whatever_their_order(tmp_path):
    rows = [{**GOOD, "query": f"question {i}"} for i in range(50)]
    few = read_triples([write(tmp_path / "a.jsonl", *rows)], "Find.", most=7).kept
    again = read_triples([write(tmp_path / "b.jsonl", *reversed(rows))], "Find.", most=7).kept
    assert len(few) == 7
    assert set(few) == set(again)


def test_held_out_documents_are_never_trained_on(tmp_path):
    columns, rows = learning_rows("queries", many(tmp_path, 400))
    parts, held = write_rows(tmp_path / "rows", columns, rows, TrainingConfig(held_out=0.2))
    texts = [set(pq.read_table(files)["text"].to_pylist()) for files in (parts, held)]
    assert texts[0]
    assert texts[1]
    assert not texts[0] & texts[1]
    assert sum(pq.read_metadata(path).num_rows for path in parts + held) == 400
    assert write_rows(tmp_path / "few", columns, rows[:40], TrainingConfig(held_out=0.2))[1] == []


def test_each_task_learns_from_its_own_columns(tmp_path):
    triples = many(tmp_path, 4)
    assert len(learning_rows("queries", triples)[1]) == 4
    columns, rows = learning_rows("docids", triples)
    assert columns == ["title", "text", "docid"]
    assert [row.values for row in rows] == [
        ("Fox", "fox number0 lives here", "fox lives number0"),
        ("Fox", "fox number1 lives here", "fox lives number1"),
    ]
    columns, rows = learning_rows("retriever", triples)
    assert columns == ["instruction", "query", "docid"]
    assert rows[3].values == (GOOD["instruction"], "question 3", "fox lives number1")


def test_a_row_whose_answer_the_tokenizer_maps_to_nothing_is_set_aside_with_its_line(tmp_path):
    path = write(tmp_path / "rows.jsonl", GOOD, {**GOOD, "query": "狐はどこ"}, {**GOOD, "query": "red foxes"})
    columns, rows = learning_rows("queries", read_triples([path], "Find.").kept)

    def latin(texts):
        return [[1] * text.isascii() for text in texts]

    kept, rejected = with_answers(columns, rows, latin)
    assert [row.values[-1] for row in kept] == [GOOD["query"], "red foxes"]
    assert [(r.file, r.line) for r in rejected] == [(path, 2)]
    assert "tokenizer maps the query '狐はどこ' to nothing" in rejected[0].reason
    assert json.loads(rejected[0].row)["text"] == GOOD["positive"]
    with pytest.raises(InputError, match=r"rows.jsonl: no usable rows \(1 cannot be used\); .*'狐はどこ' to nothing"):
        with_answers(columns, rows[1:2], latin)
