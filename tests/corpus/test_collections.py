"""A test collection is its judged queries and their judgements; what is missing is named."""

import json

import pytest

from zerogr_ray.corpus.collections import read_collection
from zerogr_ray.errors import InputError
from zerogr_ray.rows import Query


def write_queries(folder, *rows):
    (folder / "queries.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")


def write_split(folder, split, *rows):
    (folder / "qrels").mkdir(exist_ok=True)
    (folder / "qrels" / f"{split}.tsv").write_text("query-id\tcorpus-id\tscore\n" + "".join(f"{row}\n" for row in rows))


def test_a_beir_collection_keeps_the_judged_queries_of_its_split(tmp_path):
    write_queries(tmp_path, {"_id": "q2", "text": "two"}, {"_id": 1, "text": "one"}, {"_id": "q3", "text": "three"})
    write_split(tmp_path, "test", "1\td1\t2", "1\td 2\t0", "q2\td1\t1.0", "gone\td1\t1")
    write_split(tmp_path, "train", "q3\td1\t1")
    (tmp_path / "instruction.txt").write_text("Find it.\n")
    found = read_collection(str(tmp_path))
    assert found.queries == [Query("q2", "two"), Query("1", "one")]
    assert found.qrels == {"q2": {"d1": 1}, "1": {"d1": 2, "d 2": 0}}
    assert (found.name, found.path, found.instruction) == (tmp_path.name, str(tmp_path), "Find it.")
    assert list(read_collection(str(tmp_path), "train").qrels) == ["q3"]


@pytest.mark.parametrize("labels", [[{"id": 7, "score": 2}, {"id": "d"}], {"7": 2, "d": 1.0}])
def test_a_mair_collection_carries_instructions_and_labels_on_its_queries(tmp_path, labels):
    write_queries(
        tmp_path,
        {"qid": "q1", "instruction": "Find.", "query": "one", "labels": labels},
        {"qid": "q2", "instruction": "Find.", "query": "unjudged", "labels": []},
    )
    found = read_collection(str(tmp_path))
    assert found.queries == [Query("q1", "one", "Find.")]
    assert found.qrels == {"q1": {"7": 2, "d": 1}}


def test_a_missing_split_names_those_there_are(tmp_path):
    write_queries(tmp_path, {"_id": "q", "text": "x"})
    with pytest.raises(InputError, match=r"qrels/test\.tsv .* no splits"):
        read_collection(str(tmp_path))
    write_split(tmp_path, "dev", "q\td\t1")
    write_split(tmp_path, "train", "q\td\t1")
    with pytest.raises(InputError, match="splits dev, train"):
        read_collection(str(tmp_path))


def test_queries_that_match_no_judgement_are_refused(tmp_path):
    write_queries(tmp_path, {"_id": "q", "text": "x"})
    write_split(tmp_path, "test", "Q\td\t1")
    with pytest.raises(InputError, match="do the query ids match"):
        read_collection(str(tmp_path))


def test_a_folder_without_queries_names_the_files_looked_for(tmp_path):
    with pytest.raises(InputError, match=r"queries\.jsonl"):
        read_collection(str(tmp_path))
    with pytest.raises(InputError, match="no file or folder"):
        read_collection(str(tmp_path / "nothing"))
    (tmp_path / "queries.jsonl").write_text("")
    with pytest.raises(InputError, match="has no queries"):
        read_collection(str(tmp_path))
    with pytest.raises(InputError, match="is a file"):
        read_collection(str(tmp_path / "queries.jsonl"))


@pytest.mark.parametrize(
    ("row", "reason"),
    [
        ({"_id": "q1", "text": "again"}, "was there before"),
        ({"_id": "q2", "text": " "}, "is empty"),
        ({"_id": "q2", "txt": "x"}, "nearest field is 'txt'"),
        ({"_id": "q2", "text": "x", "labels": "d1"}, "'labels' is neither"),
        ({"_id": "q2", "text": "x", "labels": {"d1": 0.5}}, "not a whole number"),
        ([], "not an object"),
    ],
)
def test_a_bad_query_is_an_error_that_names_file_and_line(tmp_path, row, reason):
    write_queries(tmp_path, {"_id": "q1", "text": "one"}, row)
    with pytest.raises(InputError, match=rf"queries\.jsonl line 2: .*{reason}"):
        read_collection(str(tmp_path))
