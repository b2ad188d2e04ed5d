"""`zerogr suite`: one table over many collections, means by domain, nothing searched twice."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from tests.decoding.test_retriever import make_index
from tests.evaluation.test_compare import complaint, zerogr
from zerogr_ray.config import DecodeConfig
from zerogr_ray.corpus.collections import read_collection
from zerogr_ray.corpus.trec import read_run
from zerogr_ray.decoding.retriever import Retriever
from zerogr_ray.evaluation.metrics import METRICS, evaluate
from zerogr_ray.evaluation.suite import SuiteConfig, read_suite

pytestmark = pytest.mark.model

TEXTS = ["red fox", "red hat", "open json file", "web browser", "read line"]
NAMES = {"one": "a", "two": "a", "three": "b"}


def write_collection(folder, shift, layout="beir"):
    """Five documents and four queries; which document is right moves with `shift`."""
    folder.mkdir(parents=True)
    (folder / "corpus.jsonl").write_text(
        "".join(json.dumps({"_id": f"d{i}", "text": text}) + "\n" for i, text in enumerate(TEXTS))
    )
    queries = [{"_id": f"q{i}", "text": TEXTS[i]} for i in range(4)]
    if layout == "mair":
        queries = [row | {"labels": {f"d{(i + shift) % 5}": 1}} for i, row in enumerate(queries)]
    else:
        (folder / "qrels").mkdir()
        rows = "".join(f"q{i}\td{(i + shift) % 5}\t1\n" for i in range(4))
        (folder / "qrels" / "test.tsv").write_text("query-id\tcorpus-id\tscore\n" + rows)
    (folder / "queries.jsonl").write_text("".join(json.dumps(row) + "\n" for row in queries))


@pytest.fixture(scope="module")
def built(tmp_path_factory):
    return make_index(tmp_path_factory.mktemp("built"), TEXTS)


@pytest.fixture
def here(built, tmp_path, monkeypatch):
    """A folder to work in: three collections under data/, an index of each, a suite."""
    monkeypatch.chdir(tmp_path)
    for shift, name in enumerate(NAMES):
        write_collection(tmp_path / "data" / name, shift, "mair" if name == "two" else "beir")
        shutil.copytree(built, tmp_path / "indexes" / name)
    (tmp_path / "data" / "notes").mkdir()
    (tmp_path / "suite.toml").write_text(
        '[[collections]]\ndataset = ["data/one", "data/two"]\nindex = "indexes/{name}"\ndomain = "a"\n'
        '[[collections]]\ndataset = "data/thr*"\nindex = "indexes/three"\ndomain = "b"\n'
    )
    return tmp_path


@pytest.fixture
def loads(monkeypatch):
    """Every index that was loaded."""
    seen = []
    load = Retriever.load.__func__

    def counted(cls, path, *rest, **named):
        seen.append(Path(path).name)
        return load(cls, path, *rest, **named)

    monkeypatch.setattr(Retriever, "load", classmethod(counted))
    return seen


def run(*more):
    status, out, err = zerogr("suite", "suite.toml", "--quiet", *more)
    assert status == 0, err
    return json.loads(out) if "--json" in more else out


def test_figures_are_those_of_the_runs_and_means_those_of_the_figures(here):
    found = run("--json")
    rows = {row["name"]: row for row in found["collections"]}
    assert {name: row["domain"] for name, row in rows.items()} == NAMES
    for shift, (name, row) in enumerate(rows.items()):
        qrels = {f"q{i}": {f"d{(i + shift) % 5}": 1} for i in range(4)}
        assert list(row["figures"]) == ["zerogr", "bm25"]
        for system, figures in row["figures"].items():
            per_query = evaluate(qrels, read_run(str(here / "suite.runs" / name / f"{system}.trec")))
            for metric in METRICS:
                assert figures[metric] == pytest.approx(sum(values[metric] for values in per_query.values()) / 4)
    assert rows["one"]["figures"]["bm25"]["acc@1"] == 1.0
    for system in ("zerogr", "bm25"):
        for metric in METRICS:
            one, two, three = (rows[name]["figures"][system][metric] for name in NAMES)
            assert found["domains"]["a"][system][metric] == pytest.approx((one + two) / 2)
            assert found["domains"]["b"][system][metric] == pytest.approx(three)
            assert found["mean"][system][metric] == pytest.approx((one + two + three) / 3)


def test_where_an_index_chose_another_way_all_collections_have_the_published_algorithm_too(here, loads, monkeypatch):
    from zerogr_ray.evaluation import suite

    searched = []
    search = suite.search_collection

    def counted(retriever, collection, decode, *rest):
        searched.append((collection.name, decode))
        return search(retriever, collection, decode, *rest)

    monkeypatch.setattr(suite, "search_collection", counted)
    shutil.rmtree(here / "indexes" / "two")
    own = DecodeConfig(mode="exhaustive", order="docid")
    other = make_index(here / "other", TEXTS, choose=lambda _: {"decode": own.model_dump()})
    shutil.copytree(other, here / "indexes" / "two")
    found = run("--json")
    assert list(found["mean"]) == ["zerogr", "published", "bm25"]
    assert loads == list(NAMES), "an index is opened once"
    plain = DecodeConfig()
    assert searched == [("one", plain), ("two", own), ("two", plain), ("three", plain)], "and not searched twice alike"
    runs = {system: read_run(str(here / "suite.runs" / "one" / f"{system}.trec")) for system in found["mean"]}
    assert runs["zerogr"] == runs["published"]
    both = [read_run(str(here / "suite.runs" / "two" / f"{system}.trec")) for system in ("zerogr", "published")]
    assert both[0] != both[1]
    collection, retriever = read_collection(str(here / "data" / "two")), Retriever.load(here / "indexes" / "two")
    hits = search(retriever, collection, plain, 100, True)
    assert {qid: list(run) for qid, run in both[1].items()} == {q: [h.docno for h in hits[q]] for q in hits}
    assert found["collections"][0]["figures"]["published"] == found["collections"][0]["figures"]["zerogr"]
    (here / "suite.toml").write_text("published = false\n" + (here / "suite.toml").read_text())
    assert list(run("--json")["mean"]) == ["zerogr", "bm25"]


def test_the_table_has_a_row_per_collection_and_one_per_mean(here):
    found = run("--json")
    lines = run("--metric", "acc@1").splitlines()
    assert lines[0].split() == ["collection", "(acc@1)", "domain", "queries", "zerogr", "bm25"]
    assert [line.split("  ")[0] for line in lines[1:]] == [*NAMES, "mean of a", "mean of b", "mean of all"]
    figures = [row["figures"] for row in found["collections"]]
    for line, row in zip(lines[1:], [*figures, *found["domains"].values(), found["mean"]], strict=True):
        assert line.split()[-2:] == [f"{row['zerogr']['acc@1']:.3f}", f"{row['bm25']['acc@1']:.3f}"]


def test_what_is_finished_is_kept_until_it_changes(here, loads):
    first = run("--json")
    assert loads == list(NAMES)
    again = run("--json")
    assert loads == list(NAMES)
    assert [row["kept"] for row in again["collections"]] == [True] * 3
    assert again["mean"] == first["mean"]

    queries = here / "data" / "one" / "queries.jsonl"  # a query that is asked otherwise
    queries.write_text(queries.read_text().replace('"red fox"', '"hat"'))
    manifest = json.loads((here / "indexes" / "three" / "manifest.json").read_text())  # an index that is built anew
    shutil.rmtree(here / "indexes" / "three")
    made = make_index(here / "other", TEXTS, training=b"{}\n")
    made.rename(here / "indexes" / "three")
    assert json.loads((here / "indexes" / "three" / "manifest.json").read_text())["sha256"] != manifest["sha256"]
    loads.clear()
    assert [row["kept"] for row in run("--json")["collections"]] == [False, True, False]
    assert loads == ["one", "three"]


def test_changed_judgements_are_counted_anew_without_a_search(here, loads):
    before = run("--json")["collections"][0]["figures"]["bm25"]
    (here / "data" / "one" / "qrels" / "test.tsv").write_text(
        "query-id\tcorpus-id\tscore\n" + "".join(f"q{i}\td4\t1\n" for i in range(4))
    )
    loads.clear()
    row = run("--json")["collections"][0]
    assert (loads, row["kept"], before["acc@1"], row["figures"]["bm25"]["acc@1"]) == ([], True, 1.0, 0.0)


@pytest.mark.parametrize("damage", ["truncate", "remove", "note"])
def test_a_damaged_run_is_made_again(here, loads, damage):
    first = run("--json")
    trec, note = (here / "suite.runs" / "two" / f"zerogr.{ending}" for ending in ("trec", "json"))
    if damage == "truncate":
        trec.write_text(trec.read_text()[:-20])
    elif damage == "remove":
        trec.unlink()
    else:
        note.write_text("{")
    loads.clear()
    assert run("--json")["mean"] == first["mean"]
    assert loads == ["two"]


def test_a_suite_that_is_stopped_goes_on_where_it_was(here, loads, monkeypatch):
    from zerogr_ray.evaluation import suite

    search = suite.search_collection

    def stop_at_three(retriever, collection, *rest):
        if collection.name == "three":
            raise KeyboardInterrupt
        return search(retriever, collection, *rest)

    monkeypatch.setattr(suite, "search_collection", stop_at_three)
    assert zerogr("suite", "suite.toml", "--quiet")[0] != 0
    monkeypatch.setattr(suite, "search_collection", search)
    loads.clear()
    assert [row["kept"] for row in run("--json")["collections"]] == [True, True, False]
    assert loads == ["three"]


def test_the_instruction_of_the_suite_and_its_decoding_are_used(here, float32):
    text = (here / "suite.toml").read_text()
    (here / "suite.toml").write_text(
        'bm25 = false\n[decode]\nmode = "exhaustive"\n' + text + 'instruction = "Find the web page."\n'
    )
    found = run("--json")
    assert list(found["mean"]) == ["zerogr", "published"]
    retriever = Retriever.load(here / "indexes" / "three")
    config = read_suite(here / "suite.toml").decode
    assert config.mode == "exhaustive"
    hits = retriever.search("red fox", 100, "Find the web page.", config)
    kept = read_run(str(here / "suite.runs" / "three" / "zerogr.trec"))["q0"]
    assert list(kept) == [hit.docno for hit in hits]
    assert list(kept.values()) == pytest.approx([hit.score for hit in hits], abs=1e-3)
    other = retriever.search("red fox", 100, None, config)
    assert list(kept.values()) != pytest.approx([hit.score for hit in other], abs=1e-3)


def test_a_pattern_names_what_it_leaves_out(here):
    (here / "suite.toml").write_text('[[collections]]\ndataset = "data/*"\nindex = "indexes/{name}"\n')
    found = run("--json")
    assert [row["name"] for row in found["collections"]] == sorted(NAMES)
    assert found["skipped"] == ["data/notes"]
    assert found["domains"] == {}
    assert "data/notes" in zerogr("suite", "suite.toml", "--quiet")[2]


def test_bad_suites_get_one_sentence_before_anything_is_searched(here, loads):
    def refused(text):
        (here / "suite.toml").write_text(text)
        return complaint("suite", "suite.toml", "--quiet")

    one = '[[collections]]\ndataset = "data/one"\n'
    assert "did you mean 'dataset'" in refused('[[collections]]\ndatset = "data/one"\nindex = "i"\n')
    assert "did you mean 'decode'" in refused(one + 'index = "indexes/one"\n[decod]\nmode = "beam"\n')
    assert "collections" in refused("k = 5\n")
    assert "is not valid TOML" in refused("[[collections\n")
    missing = refused(one + 'index = "indexes/none"\n')
    assert "collection 'one'" in missing
    assert "indexes/none does not exist; build one" in missing
    assert "there is no file or folder data/none" in refused('[[collections]]\ndataset = "data/none"\nindex = "i"\n')
    assert "no folder that matches 'data/x*'" in refused('[[collections]]\ndataset = "data/x*"\nindex = "i"\n')
    assert "put {name} into it" in refused('[[collections]]\ndataset = "data/t*"\nindex = "indexes/two"\n')
    assert "stands for 2 folders" in refused('[[collections]]\ndataset = "data/t*"\nindex = "{name}"\nname = "x"\n')
    twice = one + 'index = "indexes/one"\n'
    assert "'one' (data/one) comes twice" in refused(twice + twice)
    assert "cannot name a folder" in refused(twice + 'name = "../x"\n')
    shutil.rmtree(here / "data" / "one" / "qrels")
    assert "has no judgements" in refused(twice)
    assert "ndcg@5" in complaint("suite", "suite.toml", "--metric", "ndcg@5")
    assert "there is no run file" in complaint("suite", "none.toml")
    assert loads == []


def test_an_id_that_a_run_file_cannot_carry_is_refused_before_the_search(here, monkeypatch):
    from zerogr_ray.evaluation import suite

    monkeypatch.setattr(suite, "search_collection", None)
    shutil.rmtree(here / "indexes" / "one")
    make_index(here / "spaced", TEXTS, ["d0", "d1", "the d2", "d3", "d4"]).rename(here / "indexes" / "one")
    said = complaint("suite", "suite.toml", "--quiet")
    assert "collection 'one': the id 'the d2' has a space in it" in said


def test_the_example_is_a_suite():
    config = read_suite(Path(__file__).parents[2] / "pipelines" / "suites" / "example.toml")
    assert isinstance(config, SuiteConfig)
    assert len(config.collections) == 3
