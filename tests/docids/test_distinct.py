"""Collisions: one more word for each document, the LM's or a rule's; only identical documents share a docid."""

from __future__ import annotations

import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from zerogr_ray.config import DocIdConfig, IndexConfig, make_config
from zerogr_ray.corpus.terms import Frequencies
from zerogr_ray.docids import distinct
from zerogr_ray.docids.distinct import make_distinct
from zerogr_ray.docids.term import Difference, differences, distinguish, rarest
from zerogr_ray.keys import Keys
from zerogr_ray.rows import docid_schema, document_schema
from zerogr_ray.stage import Output
from zerogr_ray.store import Folder

DOCUMENTS = [
    ("a", "red fox", "A red fox hunts mice in the forest."),
    ("b", "bread", "Sourdough bread."),
    ("c", "red fox", "A red fox hunts voles; voles and mice."),
    ("d", "red fox", "A  red fox hunts\nmice in the forest."),  # as a, but for white space
    ("e", "twins", "The same words."),
    ("f", "twins", "The same words."),
    ("g", "tides", "Tides follow the Moon."),
    ("h", "tides", "the moon tides follow"),  # the same words as g in another order
]


class Format:
    """The prompt of the worked example is left out, so that an answer can be looked up by what is shown."""

    def render(self, instruction, user, examples=()):
        return user

    def tokens(self, texts):
        return [[text] for text in texts]

    def shorten(self, text, tokens):
        return text


class Answering:
    """An engine that knows an answer for some texts and says nothing of the others."""

    def __init__(self, answers):
        self.format, self.answers, self.asked = Format(), answers, []

    def generate(self, prompts, sampling, seed):
        self.asked += [prompt[0] for prompt in prompts]
        return [[next((a for part, a in self.answers.items() if part in prompt[0]), "")] for prompt in prompts]


def stages(folder, documents=DOCUMENTS, shard=3):
    source, docids = Output("corpus", Folder(folder / "corpus")), Output("docids", Folder(folder / "docids"))
    for number in range(0, len(documents), shard):
        rows = documents[number : number + shard]
        name = f"part-{number:06d}.parquet"
        texts = [{"docno": docno, "title": "", "text": text} for docno, _, text in rows]
        written = [{"docno": docno, "docid": docid, "source": "lm"} for docno, docid, _ in rows]
        source.folder.write_table(name, pa.Table.from_pylist(texts, schema=document_schema()))
        docids.folder.write_table(name, pa.Table.from_pylist(written, schema=docid_schema()))
    return source, docids, Output("distinct", Folder(folder / "distinct"))


def asking(engine, die_after=None):
    """What map_shards does, in this process; it may die after some shards."""

    def ask(source, tasks, rows_of):
        [(task, output)] = tasks
        missing = [shard for shard in source.shards() if shard not in output.shards()]
        for done, shard in enumerate(missing):
            if done == die_after:
                raise KeyboardInterrupt
            documents = source.folder.read_table(shard)
            assert rows_of(shard) == documents.num_rows
            output.folder.write_table(shard, task(documents, engine))

    return ask


def result(output):
    rows = [row for shard in output.shards() for row in output.folder.read_table(shard).to_pylist()]
    return {row["docno"]: (row["docid"], row["source"]) for row in rows}


def test_the_lm_is_asked_about_the_documents_that_collide_and_only_identical_ones_share_in_the_end(tmp_path):
    source, docids, output = stages(tmp_path)
    engine = Answering({"voles": "Voles, of course", "forest": "elephants forest"})
    manifest = make_distinct(source, docids, output, DocIdConfig(), None, asking(engine), quiet=True)
    assert result(output) == {
        "a": ("red fox forest", "lm term"),  # there are no elephants in the document
        "b": ("bread", "lm"),
        "c": ("red fox voles", "lm term"),
        "d": ("red fox forest", "lm term"),
        "e": ("twins", "lm"),
        "f": ("twins", "lm"),
        "g": ("tides", "lm"),  # no word tells g from h
        "h": ("tides 2", "rule term"),
    }
    assert engine.asked == [  # a for d as well, and c; no word tells g from h
        "A red fox hunts mice in the forest.",
        "A red fox hunts voles;\nvoles and mice.",
    ]
    assert manifest["collisions"] == {
        "distinct_before": 4, "asked": 2, "lm": 2, "rule": 1, "distinct_after": 6, "identical": 4,
    }  # fmt: skip


def test_a_word_that_several_got_is_not_taken_and_they_are_asked_for_another(tmp_path):
    documents = [("a", "red fox", "It hunts mice.\nIt is old."), ("b", "red fox", "It hunts mice.\nIt is young.")]
    source, docids, output = stages(tmp_path, [*documents, ("c", "red fox", "It sleeps.")])
    engine = Answering({"mice": "hunts mice", "old": "old", "young": "young", "sleeps": "sleeps"})
    cfg = DocIdConfig(distinct_rounds=2)
    make_distinct(source, docids, output, cfg, None, asking(engine), quiet=True)
    first = ["It hunts mice.\nIt is old.", "It hunts mice.\nIt is young.", "It sleeps."]
    assert engine.asked == [*first, "It is old.", "It is young."]
    assert result(output) == {
        "a": ("red fox old", "lm term"),  # both said hunts; asked again, without c, only that sets them apart
        "b": ("red fox young", "lm term"),
        "c": ("red fox sleeps", "lm term"),
    }


def test_without_rounds_the_rule_does_all_and_no_lm_is_asked(tmp_path):
    source, docids, output = stages(tmp_path)
    make_distinct(source, docids, output, DocIdConfig(distinct_rounds=0), None, None, quiet=True)
    found = result(output)
    assert found["a"] == found["d"] == ("red fox forest", "rule term")
    assert found["c"] == ("red fox voles", "rule term")


def test_a_run_that_was_killed_goes_on_with_the_shards_that_are_missing_to_the_same_end(tmp_path, monkeypatch):
    monkeypatch.setattr(distinct, "SHARD_ROWS", 1)
    answers = {"voles": "voles", "forest": "forest"}
    source, docids, output = stages(tmp_path / "whole")
    make_distinct(source, docids, output, DocIdConfig(), None, asking(Answering(answers)), quiet=True)
    whole = result(output)

    source, docids, output = stages(tmp_path / "killed")
    first, second = Answering(answers), Answering(answers)
    with pytest.raises(KeyboardInterrupt):
        make_distinct(source, docids, output, DocIdConfig(), None, asking(first, die_after=1), quiet=True)
    assert output.done() is None
    make_distinct(source, docids, output, DocIdConfig(), None, asking(second), quiet=True)
    assert result(output) == whole
    assert not set(first.asked) & set(second.asked)
    assert len(first.asked) == len(second.asked) == 1
    make_distinct(source, docids, output, DocIdConfig(), None, None, quiet=True)  # done: nothing is asked or written


@pytest.mark.slow
@given(
    st.lists(
        st.tuples(st.sampled_from(["x", "y", "x 2"]), st.sampled_from(["", "p", "p q", "p p q", "q r", "2"])),
        max_size=12,
    ),
    st.sampled_from(["", "p", "q"]),
    st.integers(0, 2),
)
def test_documents_share_a_docid_exactly_where_they_shared_one_and_are_identical(tmp_path_factory, pairs, says, rounds):
    documents = [(f"d{i}", docid, f"text {text}") for i, (docid, text) in enumerate(pairs)]
    source, docids, output = stages(tmp_path_factory.mktemp("docids"), documents or DOCUMENTS, shard=2)
    ask = asking(Answering({"text": says}))
    make_distinct(source, docids, output, DocIdConfig(distinct_rounds=rounds), None, ask, quiet=True)
    found = {docno: docid for docno, (docid, _) in result(output).items()}
    for docno, docid, text in documents:
        for other, other_docid, other_text in documents:
            assert (found[docno] == found[other]) == ((docid, text) == (other_docid, other_text))


def test_what_sets_a_text_apart_is_its_lines_with_a_word_that_not_all_have():
    texts = ["Load it.\nname: resnet18 small\nRun it now!", "Load it.\nname: resnet34 small. Big. Run it now!"]
    assert list(differences(texts, [{"model"}, {"big"}])) == [
        Difference("name: resnet18 small", ["resnet18"], [1]),
        Difference("name: resnet34 small.", ["resnet34"], [1]),
    ]
    assert [one.times for one in differences(["a1 b2", "b2 c3", "d4"], [set()] * 3)] == [[1, 2], [2, 1], [1]]
    assert list(differences(["two words", "words two"], [set()] * 2)) == [Difference("", [], [])] * 2


def test_of_what_the_lm_wrote_the_word_counts_that_the_fewest_others_have():
    times = {"mice": 2, "voles": 1, "hunts-mice": 1}
    assert rarest("1. the mice.\nvoles", times) == "mice", "the first line"
    assert rarest("Keywords: red fox mice voles hunts-mice", times) == "voles"
    assert rarest("elephants", times) == rarest("", times) == ""


def test_the_rule_takes_the_word_that_is_frequent_here_and_rare_elsewhere():
    texts = ["lane lane common shared", "road common road road shared rare"]
    assert distinguish("x", texts, None, lambda _: False) == ["x lane", "x road"]
    known = Frequencies(1000, {"road": 990, "lane": 500})
    assert distinguish("x", texts, known, lambda _: False) == ["x lane", "x rare"]
    assert distinguish("x", texts, None, {"x road"}.__contains__) == ["x lane", "x rare"]
    assert distinguish("x", ["a1 a1 b2", "b2 b2 a1", "a1 b2"], None, lambda _: False) == [
        "x a1",
        "x b2",
        "x",
    ]  # more often
    assert distinguish("x", ["7 ab", "8 cd", "9"], None, lambda _: False) == ["x ab", "x cd", "x 9"]


def test_how_collisions_are_resolved_rebuilds_no_docids_and_no_queries():
    def keys(**changes):
        return Keys.of(make_config(IndexConfig, {}, changes), "corpus", "model", "prompts", ["llm", "llm"])

    plan, other = keys(), keys(**{"docids.distinct_rounds": 2})
    assert (plan.docids, plan.queries, plan.lesson.kept) == (other.docids, other.queries, other.lesson.kept)
    assert not {plan.distinct, plan.lesson.pairs, plan.index} & {other.distinct, other.lesson.pairs, other.index}
    assert keys(**{"docids.distinct": False}).distinct == plan.docids
