"""Which pseudo-queries are kept: repetitions, queries that do not find their document, queries of several documents."""

from __future__ import annotations

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from zerogr_ray.cluster import ray_cluster
from zerogr_ray.config import IndexConfig, QueryConfig, make_config
from zerogr_ray.corpus.terms import stems
from zerogr_ray.keys import Keys
from zerogr_ray.queries.filter import (
    COPIES,
    KEPT,
    NOT_FOUND,
    REPEATS,
    Judge,
    JudgeQueries,
    better_elsewhere,
    filter_queries,
    judged_schema,
    repeats,
)
from zerogr_ray.queries.round_trip import NOWHERE, Finder
from zerogr_ray.rows import document_schema, query_schema
from zerogr_ray.stage import Output, sample_shards
from zerogr_ray.store import Folder

TEXTS = {
    "fox": "The red fox hunts mice and voles in the forest.",
    "wolf": "The grey wolf hunts deer in the forest.",
    "json": "json.dumps turns a dict into a JSON string.",
    "bread": "Sourdough bread rises with wild yeast.",
}
QUERIES = {
    "fox": ["what does the red fox hunt", "What does a red fox hunt?", "how is glass made", "hunting in the forest"],
    "wolf": ["who hunts in the forest", "deer hunting wolf"],
    "json": ["turn a dict into a string", "Deer hunting wolves", "the forest animal"],
    "bread": ["who is it", "the grey wolf"],
}


def settings(**changes):
    return make_config(QueryConfig, {}, {f"filter.{name}": value for name, value in changes.items()})


def stage(folder, sizes=(2, 2)):
    """The documents and queries above as the outputs of two stages."""
    corpus, queries = Output("corpus", Folder(folder / "corpus")), Output("queries", Folder(folder / "queries"))
    docnos = iter(TEXTS)
    for number, size in enumerate(sizes):
        mine = [next(docnos) for _ in range(size)]
        name = f"part-{number:06d}.parquet"
        rows = [{"docno": docno, "title": "", "text": TEXTS[docno]} for docno in mine]
        corpus.folder.write_table(name, pa.Table.from_pylist(rows, schema=document_schema()))
        asked = [
            {"docno": docno, "queries": QUERIES[docno], "kinds": ["question"] * len(QUERIES[docno])} for docno in mine
        ]
        queries.folder.write_table(name, pa.Table.from_pylist(asked, schema=query_schema()))
    return corpus, queries, {f"part-{number:06d}.parquet": size for number, size in enumerate(sizes)}


def judge(cfg):
    finder = Finder({docno: stems(text) for docno, text in TEXTS.items()})
    rows = [{"docno": d, "title": "", "text": text, "queries": QUERIES[d]} for d, text in TEXTS.items()]
    return {row["docno"]: row for row in JudgeQueries(cfg)(pa.Table.from_pylist(rows), finder).to_pylist()}


def test_a_query_with_the_same_words_in_another_form_is_a_repetition():
    sets = [frozenset(stems(query)) for query in QUERIES["fox"]]
    assert repeats(sets, 0.8) == [False, True, False, False]
    assert repeats(sets, 0) == [False] * 4


@given(st.lists(st.frozensets(st.sampled_from("abcdef"), min_size=1), max_size=12), st.sampled_from([0.5, 0.8, 1.0]))
def test_of_those_that_stay_no_two_overlap_that_much_and_each_that_goes_overlaps_with_one(sets, overlap):
    def alike(a, b):
        return len(a & b) / len(a | b) >= overlap

    gone = repeats(sets, overlap)
    stay = [words for words, again in zip(sets, gone, strict=True) if not again]
    assert not any(alike(a, b) for i, a in enumerate(stay) for b in stay[:i])
    assert all(any(alike(words, other) for other in stay) for words, again in zip(sets, gone, strict=True) if again)


def test_the_rank_counts_the_documents_that_fit_better():
    finder = Finder({docno: stems(text) for docno, text in TEXTS.items()})
    assert finder.rank("red fox in the forest", "fox") == 1
    assert finder.rank("red fox in the forest", "wolf") == 2
    assert finder.rank("red fox in the forest", "bread") == NOWHERE
    assert finder.rank("xylophone", "fox") == NOWHERE
    assert Finder({"a": stems("red fox"), "b": stems("red fox"), "c": ["cat"]}).rank("fox", "b") == 1  # a tie
    assert Finder({"a": []}).rank("fox", "a") == NOWHERE


def test_a_script_without_spaces_finds_its_document():
    finder = Finder({"weather": stems("東京の天気は晴れです"), "train": stems("電車の時刻表")})
    assert finder.rank("東京の天気", "weather") == 1
    assert finder.rank("東京の天気", "train") == 2


def test_a_query_that_does_not_find_its_document_goes_and_each_test_has_its_switch():
    verdicts = judge(settings(round_trip=1))
    assert verdicts["fox"]["reasons"] == [KEPT, REPEATS, NOT_FOUND, NOT_FOUND]  # the wolf fits the last one better
    assert verdicts["fox"]["ranks"] == [1, 1, NOWHERE, 2]
    assert verdicts["json"]["reasons"] == [KEPT, NOT_FOUND, NOT_FOUND]
    assert verdicts["bread"]["ranks"] == [NOWHERE, NOWHERE]
    assert judge(settings(round_trip=1, repeats=0))["fox"]["reasons"] == [KEPT, KEPT, NOT_FOUND, NOT_FOUND]
    off = judge(settings(round_trip=0))
    assert [row["reasons"].count(NOT_FOUND) for row in off.values()] == [0] * 4


def test_a_query_that_is_the_document_goes_as_a_copy_and_makes_none_a_repetition():
    text = "I like apples."
    rows = [{"docno": "d", "title": "", "text": text, "queries": ["i like apples", "apples I like", "who eats fruit"]}]
    for changes in ({"round_trip": 0}, {"repeats": 0}):
        table = pa.Table.from_pylist(rows)
        (found,) = JudgeQueries(settings(**changes))(table, Finder({"d": stems(text)})).to_pylist()
        assert found["reasons"][:2] == [COPIES, KEPT]


@pytest.mark.parametrize(("passages", "copies", "spared"), [(3, 1, 0), (0, 0, 1)])
def test_a_copy_is_counted_and_a_document_with_nothing_else_keeps_it(tmp_path, monkeypatch, passages, copies, spared):
    monkeypatch.setitem(QUERIES, "bread", [TEXTS["bread"].lower()])
    corpus, queries, sizes = stage(tmp_path)
    kept = Output("filtered", Folder(tmp_path / "kept"))
    cfg = make_config(QueryConfig, {}, {"passages": passages, "filter.round_trip": 0})
    judged(corpus, queries, kept, cfg, sizes, sorted(sizes))
    counts = filter_queries(corpus, queries, kept, cfg, sizes, actors=1, quiet=True)["queries"]
    assert (counts["copies"], counts["spared"]) == (copies, spared)
    assert everything(kept)["bread"] == QUERIES["bread"][:spared]


@pytest.mark.parametrize("part", [1 << 25, 2, 1])
def test_a_query_of_several_documents_stays_where_it_ranks_best_in_however_many_parts(tmp_path, part):
    judged = Output("judged", Folder(tmp_path))
    rows = [
        [("a", [KEPT, KEPT], [2, 1], [7, 8]), ("b", [REPEATS, KEPT], [1, 3], [7, 9])],
        [("c", [KEPT], [1], [7]), ("d", [KEPT, KEPT, KEPT], [1, 1, 4], [8, 5, 9])],
    ]
    for number, shard in enumerate(rows):
        table = [dict(zip(judged_schema().names, (*row, False), strict=True)) for row in shard]
        judged.folder.write_table(f"part-{number}.parquet", pa.Table.from_pylist(table, schema=judged_schema()))
    # 7: c's rank 1 beats a's 2, b's was gone before. 8: the same rank, a comes first. 9: b's 3 beats d's 4.
    assert better_elsewhere(judged, judged.shards(), part).tolist() == [0, 5, 7]


def test_of_a_large_corpus_the_own_shard_and_shards_spread_over_it_compete(tmp_path):
    corpus, queries, sizes = stage(tmp_path, (1, 1, 1, 1))
    assert sample_shards(sizes, 2) == ["part-000000.parquet", "part-000002.parquet"]
    assert sample_shards(sizes, 4) == sorted(sizes)
    worker = Judge(corpus, [(JudgeQueries(settings(documents=2)), Output("j", Folder(tmp_path / "j")))], queries, sizes)
    assert set(worker._finder("part-000000.parquet").places) == {"fox", "json"}
    assert set(worker._finder("part-000003.parquet").places) == {"fox", "json", "bread"}
    every = Judge(corpus, [(JudgeQueries(settings()), Output("k", Folder(tmp_path / "k")))], queries, sizes)
    assert every._finder("part-000000.parquet") is every._finder("part-000003.parquet")


def test_another_filter_redoes_the_filter_and_what_follows_and_nothing_else():
    def keys(**changes):
        return Keys.of(make_config(IndexConfig, {}, changes), "corpus", "model", "prompts", ["llm", "llm"])

    plan, other = keys(), keys(**{"queries.filter.round_trip": 3})
    assert (plan.docids, plan.queries) == (other.docids, other.queries)
    assert not {plan.lesson.kept, plan.lesson.pairs, plan.lesson.training, plan.index} & {
        other.lesson.kept,
        other.lesson.pairs,
        other.lesson.training,
        other.index,
    }
    none = {"queries.filter.round_trip": 0, "queries.filter.repeats": 0, "queries.filter.shared": False}
    assert keys(**none).lesson.kept == plan.queries


def test_a_second_pass_is_done_again_where_its_retriever_or_the_prior_that_it_ranks_by_is_another():
    def keys(**changes):
        settings = {"queries.filter.retriever": 5, **changes}
        return Keys.of(make_config(IndexConfig, {}, settings), "corpus", "model", "prompts", ["llm", "llm"])

    once, twice = keys(**{"queries.filter.retriever": 0}), keys()
    assert once.again is None
    assert (once.lesson, once.queries) == (twice.lesson, twice.queries), "the first training is the same"
    settings = {
        "queries.filter.retriever": 6,
        "training.epochs": 2,
        "calibration.texts": 3,
        "calibration.text_words": 9,
    }
    kept = [twice.again.kept, *(keys(**{name: value}).again.kept for name, value in settings.items())]
    assert len(set(kept)) == 5
    assert keys(**{"calibration.gist_tokens": 3}).again == twice.again, "it has no gists"


KEPT_OF = {
    "fox": ["what does the red fox hunt"],  # the wolf is found at a better rank by what it shares with the fox
    "wolf": ["who hunts in the forest", "deer hunting wolf"],
    "json": ["turn a dict into a string"],
    "bread": [],
}


def judged(corpus, queries, kept, cfg, sizes, shards):
    """Judge these shards in this process, as a run that was killed would have left them."""
    output = Output("filter", kept.folder / "judged")
    worker = Judge(corpus, [(JudgeQueries(cfg), output)], queries, sizes)
    worker({"shard": np.array(shards), "task": np.zeros(len(shards), dtype=int)})


def everything(kept):
    return {row["docno"]: row["queries"] for s in kept.shards() for row in kept.folder.read_table(s).to_pylist()}


def test_every_query_is_counted_once_under_the_reason_for_which_it_went(tmp_path):
    corpus, queries, sizes = stage(tmp_path)
    kept, cfg = Output("filtered", Folder(tmp_path / "kept")), settings(round_trip=2)
    judged(corpus, queries, kept, cfg, sizes, sorted(sizes))
    manifest = filter_queries(corpus, queries, kept, cfg, sizes, actors=1, quiet=True)
    assert everything(kept) == KEPT_OF
    assert manifest["queries"] == {
        "written": 11, "kept": 4, "copies": 0, "repeats": 1, "not found": 5, "shared": 1, "spared": 0,
    }  # fmt: skip


def test_a_document_with_nothing_else_to_train_on_keeps_its_best_query(tmp_path):
    corpus, queries, sizes = stage(tmp_path)
    kept, cfg = Output("filtered", Folder(tmp_path / "kept")), make_config(QueryConfig, {}, {"passages": 0})
    judged(corpus, queries, kept, cfg, sizes, sorted(sizes))
    manifest = filter_queries(corpus, queries, kept, cfg, sizes, actors=1, quiet=True)
    assert everything(kept)["bread"] == ["who is it"]
    assert manifest["queries"]["spared"] == 1


@pytest.mark.ray
def test_on_ray_what_a_killed_run_had_judged_is_not_judged_again(tmp_path):
    corpus, queries, sizes = stage(tmp_path)
    kept, cfg = Output("filtered", Folder(tmp_path / "kept")), settings(round_trip=2)
    judged(corpus, queries, kept, cfg, sizes, ["part-000000.parquet"])
    before = (tmp_path / "kept" / "judged" / "part-000000.parquet").stat().st_mtime_ns
    with ray_cluster():
        filter_queries(corpus, queries, kept, cfg, sizes, actors=1, quiet=True)
    assert (tmp_path / "kept" / "judged" / "part-000000.parquet").stat().st_mtime_ns == before
    assert everything(kept) == KEPT_OF
