"""`zerogr report`: every number on the page against a count by hand; a page that needs nothing else."""

from __future__ import annotations

import json
import math
import re
from hashlib import sha256

import pytest

from tests.decoding.test_retriever import make_index
from tests.evaluation.markup import Page
from tests.evaluation.test_compare import complaint, zerogr
from zerogr_ray.config import DecodeConfig
from zerogr_ray.corpus.collections import read_collection
from zerogr_ray.corpus.trec import read_run
from zerogr_ray.decoding.retriever import Retriever
from zerogr_ray.evaluation import modes
from zerogr_ray.evaluation.figures import BARS, SERIES, Chart, svg
from zerogr_ray.evaluation.metrics import METRICS, evaluate
from zerogr_ray.evaluation.modes import left_out, usual_modes
from zerogr_ray.evaluation.page import SERIES_DARK
from zerogr_ray.evaluation.significance import compare

pytestmark = pytest.mark.model

WORDS = "parse read write open json file red fox hat browser command line flags web".split()
DOCIDS = [f"{WORDS[i % 14]} {WORDS[(3 * i + i // 14) % 14]} {WORDS[(5 * i) % 14]}" for i in range(40)]
DOCIDS[7] = DOCIDS[6] = "red fox hat"
QUERIES = [f"{WORDS[i]} {WORDS[-i - 1]} <b>&" for i in range(12)]
STEPS = [{"step": i, "loss": 4 / i, "held_out_loss" if i % 2 == 0 else "other": 5 / i} for i in range(1, 8)]
MODES = ("reference", "top_k", "exact+order=docid")


@pytest.fixture(scope="module")
def collection(tmp_path_factory):
    folder = tmp_path_factory.mktemp("data") / "little"
    (folder / "qrels").mkdir(parents=True)
    rows = [{"_id": f"d{i}", "title": f"T{i}", "text": f"about {docid}"} for i, docid in enumerate(DOCIDS)]
    (folder / "corpus.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    queries = [{"_id": f"q{i}", "text": text} for i, text in enumerate(QUERIES)]
    (folder / "queries.jsonl").write_text("".join(json.dumps(row) + "\n" for row in queries))
    judged = [f"q{i}\td{(i * 7 + j * 11) % 40}\t{1 + j % 2}\n" for i in range(12) for j in range(1 + i % 7)]
    (folder / "qrels" / "test.tsv").write_text("query-id\tcorpus-id\tscore\n" + "".join(judged) + "q0\tgone\t0\n")
    return folder


@pytest.fixture(scope="module")
def index(tmp_path_factory):
    record = "".join(json.dumps(row) + "\n" for row in STEPS).encode()
    return make_index(tmp_path_factory.mktemp("made"), DOCIDS, training=record)


@pytest.fixture(scope="module")
def written(index, collection, tmp_path_factory, float32):
    """A page in three modes, its pictures and runs."""
    folder = tmp_path_factory.mktemp("out")
    arguments = [part for mode in MODES for part in ("--mode", mode)]
    status, out, err = zerogr(
        *("report", index, collection, "--out", folder / "new" / "page.html", "--png", folder / "png"),
        *("--run", folder / "runs", "--json", "--quiet", *arguments),
    )
    assert status == 0, err
    text = (folder / "new" / "page.html").read_text("utf-8")
    return folder, text, Page(text), json.loads(out)


@pytest.fixture(scope="module")
def judged(collection):
    return read_collection(str(collection))


@pytest.fixture(scope="module")
def hits(index, judged, float32):
    """mode -> qid -> hits, each query searched alone."""
    retriever = Retriever.load(index)
    configs = {
        "reference": DecodeConfig(),
        "top_k": DecodeConfig(mode="top_k"),
        "exact+order=docid": DecodeConfig(mode="exact", order="docid"),
    }
    return {
        mode: {query.qid: retriever.search(query.text, 100, config=config) for query in judged.queries}
        for mode, config in configs.items()
    }


def ndcg(docnos, grades):
    gain = sum(grades.get(docno, 0) / math.log2(rank + 1) for rank, docno in enumerate(docnos[:10], 1))
    best = sum(g / math.log2(rank + 1) for rank, g in enumerate(sorted(grades.values(), reverse=True)[:10], 1))
    return gain / best


def average(values):
    values = list(values)
    return f"{sum(values) / len(values):.3f}"


def shown(value):
    return f"{value:.0f}" if value == int(value) and value >= 2 else f"{value:.3f}"


def test_the_table_of_systems_is_what_the_runs_give(written, judged):
    folder, _, page, facts = written
    rows = page.table("Results")
    runs = {name: evaluate(judged.qrels, read_run(str(folder / "runs" / f"{name}.trec"))) for name in (*MODES, "bm25")}
    assert rows[0] == ["system", *METRICS]
    assert [row[0] for row in rows[1:]] == list(facts["systems"]) == [*MODES, "bm25"]
    for name, *cells in rows[1:]:
        for metric, cell in zip(METRICS, cells, strict=True):
            ours, bm25 = ({qid: row[metric] for qid, row in runs[system].items()} for system in (name, "bm25"))
            found = compare(ours, bm25)
            p = f"|p {found.p:.3f}" if found.p >= 0.001 else "|p <0.001"
            expected = f"{found.a.mean:.3f}|{found.a.low:.3f} to {found.a.high:.3f}" + p * (name != "bm25")
            assert cell == expected
            assert facts["systems"][name]["figures"][metric]["mean"] == found.a.mean


def test_ndcg_by_draw_is_counted_from_the_hits_that_the_first_draws_found(written, judged, hits):
    rows = written[2].table("How good")
    assert rows[0] == ["draws", *MODES]
    assert [rows[1][0], rows[2][0], rows[-1][0]] == ["1", "2", "100"]
    for draws, *cells in rows[1:]:
        for mode, cell in zip(MODES, cells, strict=True):
            kept = {q: [hit.docno for hit in found if hit.draw < int(draws)] for q, found in hits[mode].items()}
            assert cell == average(ndcg(kept[qid], grades) for qid, grades in judged.qrels.items())
    assert len({row[1] for row in rows[1:]}) > 3  # the curve moves


def test_recall_by_depth_is_counted_from_the_hits(written, judged, hits):
    rows = written[2].table("Recall by depth")
    assert rows[0] == ["depth k", *MODES, "bm25"]
    for k, *cells in rows[1:]:
        for mode, cell in zip(MODES, cells, strict=False):
            recalls = []
            for qid, grades in judged.qrels.items():
                right = {docno for docno, grade in grades.items() if grade > 0}
                recalls.append(len(right & {hit.docno for hit in hits[mode][qid][: int(k)]}) / len(right))
            assert cell == average(recalls)
    assert rows[1][1] < rows[-1][1]


def test_schedule_docids_and_losses_are_those_of_the_index(written):
    page = written[2]
    rows = page.table("Temperature")

    def sigmoid(x):
        return 1 / (1 + math.exp(-x))

    low, high = sigmoid(-1), sigmoid(9)
    assert rows[1:] == [
        [str(i + 1), f"{1.5 * (sigmoid(10 * (i / 100 - 0.1)) - low) / (high - low):.3f}"] for i in range(100)
    ]
    assert page.table("Docid length")[1:] == [["3", str(len(set(DOCIDS)))]]
    shared = [DOCIDS.count(docid) for docid in set(DOCIDS)]
    assert page.table("Documents that share")[1:] == [[str(n), shown(shared.count(n))] for n in sorted(set(shared))]
    prefixes = page.table("Tokens that tell")[1:]
    assert sum(float(count) for _, count in prefixes) == len(set(DOCIDS))
    assert page.table("Loss")[0] == ["step", "loss", "held_out_loss"]
    assert page.table("Loss")[1:] == [
        [str(row["step"]), shown(row["loss"]), shown(row["held_out_loss"]) if "held_out_loss" in row else ""]
        for row in STEPS
    ]


def test_the_ten_queries_are_chosen_by_hash_and_tell_what_came_and_what_should_have(written, judged, hits):
    folder, _, page, facts = written
    chosen = sorted(judged.qrels, key=lambda qid: sha256(qid.encode()).hexdigest())[:10]
    assert [sample["qid"] for sample in facts["samples"]] == chosen
    texts = {query.qid: query.text for query in judged.queries}
    bm25 = read_run(str(folder / "runs" / "bm25.trec"))
    for qid in chosen:
        grades, found = judged.qrels[qid], hits["reference"][qid]
        relevance = {None: "not judged", 0: "wrong (0)", 1: "right (1)", 2: "right (2)"}
        assert page.table(f"{texts[qid]}: What came back")[1:] == [
            [str(hit.rank), hit.docno, hit.docid, relevance[grades.get(hit.docno)]] for hit in found[:5]
        ]
        right = sorted((d for d, grade in grades.items() if grade), key=lambda docno: (-grades[docno], docno))
        ranks = {hit.docno: str(hit.rank) for hit in found}
        scores = bm25.get(qid, {})
        theirs = sorted(scores, key=lambda docno: (scores[docno], docno), reverse=True)
        rows = page.table(f"{texts[qid]}: What should have")
        for docno, row in zip(right[:5], rows[1:], strict=True):
            number = int(docno[1:])
            rank = str(theirs.index(docno) + 1) if docno in theirs else "–"
            text = f"T{number} about {DOCIDS[number]}"
            assert row == [docno, DOCIDS[number], text, ranks.get(docno, "–"), rank]
        more = [name for name in page.tables if name.startswith(f"{texts[qid]}: What should have, and")]
        assert bool(more) == (len(right) > 5)


def test_the_page_needs_nothing_else_and_answers_its_own_references(written):
    _, text, page, _ = written
    assert all(link.startswith("#") and link[1:] in page.ids for link in page.links)
    assert not re.search(r"https?:|@import|<script|<link|<img", text)
    assert set(re.findall(r"url\(#([^)]*)\)", text)) <= page.ids
    assert page.references <= page.ids
    assert not set(re.findall(r"var\(--([\w-]+)\)", text)) - set(re.findall(r"--([\w-]+):", text))
    assert "<b>" not in text
    pictures = [attributes for tag, attributes in page.tags if tag == "svg"]
    assert len(pictures) == 7
    assert all(picture["role"] == "img" and picture["aria-labelledby"] for picture in pictures)
    assert all(attributes.get("scope") in ("row", "col") for tag, attributes in page.tags if tag == "th")
    assert ("html", {"lang": "en"}) in page.tags
    assert "prefers-color-scheme: dark" in text
    assert "width=device-width" in text


def test_the_same_input_gives_the_same_bytes_and_a_date_is_shown_as_given(written, index, collection, tmp_path):
    folder, text, _, _ = written
    page = tmp_path / "page.html"
    status, out, err = zerogr(
        *("report", index, collection, "--out", page, "--png", tmp_path, "--quiet", "--date", "1 May <2026>"),
        *(part for mode in MODES for part in ("--mode", mode)),
    )
    assert (status, out) == (0, f"{page}\n"), err
    dated = page.read_text("utf-8")
    assert dated.replace("<dt>date</dt><dd>1 May &lt;2026&gt;</dd>\n", "") == text != dated
    pictures = sorted(file.name for file in (folder / "png").iterdir())
    assert len(pictures) == 7
    for name in pictures:
        data = (folder / "png" / name).read_bytes()
        assert data.startswith(b"\x89PNG")
        assert data == (tmp_path / name).read_bytes()


def test_without_modes_an_index_gets_those_it_has_data_for(tmp_path, monkeypatch):
    plain = Retriever.load(make_index(tmp_path / "plain", ["red fox", "hat"])).bundle
    planned = Retriever.load(make_index(tmp_path / "planned", DOCIDS, vocab=400)).bundle
    usual = ["reference", "exact", "sampling", "beam", "top_k", "best_first", "reference+order=docid", "exhaustive"]
    assert {mode.partition("+")[0] for mode in usual} == set(modes.MODES), "recall against k for each of them"
    assert usual_modes(plain) == [*usual, "reference+order=rerank"]  # the tests' index names a rerank token
    plain.manifest["decode"] = {"mode": "top_k"}
    assert usual_modes(plain)[:2] == ["index", "reference"]
    assert usual_modes(planned) == [
        *usual,
        "reference+plan_ahead=10",  # a quarter of the documents; 200 of many
        "reference+plan_ahead=10+order=docid",
        "reference+order=rerank",
    ]
    assert left_out(plain) == {}
    monkeypatch.setattr(modes, "IN_FULL", 1)
    assert "exhaustive" not in usual_modes(plain)
    assert "the index has 2 documents, over 1." in left_out(plain)["exhaustive"]


def test_the_page_says_what_it_leaves_out_unless_somebody_chose(index, collection, tmp_path, monkeypatch):
    monkeypatch.setattr(modes, "IN_FULL", 1)
    out = tmp_path / "page.html"
    status, printed, err = zerogr("report", index, collection, "--out", out, "--json", "--quiet", "--draws", "5")
    assert status == 0, err
    facts = json.loads(printed)
    assert list(facts["left_out"]) == ["exhaustive"]
    assert {"reference", "exact", "sampling", "beam", "top_k", "best_first"} < set(facts["recall_by_depth"])
    assert "Left out: exhaustive, since it scores every docid in full" in out.read_text("utf-8")
    status, _, err = zerogr("report", index, collection, "--out", out, "--quiet", "--mode", "top_k")
    assert status == 0, err
    assert "Left out" not in out.read_text("utf-8")


def test_an_index_without_a_record_and_a_page_without_bm25_say_so(collection, tmp_path):
    index = make_index(tmp_path / "plain", DOCIDS)
    status, _, err = zerogr(
        *("report", index, collection, "--out", tmp_path / "a.html", "--no-bm25", "--mode", "top_k", "--quiet")
    )
    page = Page((tmp_path / "a.html").read_text("utf-8"))
    assert status == 0, err
    assert "holds no record of its training" in "".join(page.words)
    assert len([tag for tag, _ in page.tags if tag == "svg"]) == 6
    assert [row[0] for row in page.table("Results")] == ["system", "top_k"]
    assert "|p " not in page.table("Results")[1][1]


def test_bad_input_gets_one_sentence_before_anything_is_searched(index, collection, tmp_path):
    bare = tmp_path / "bare"
    bare.mkdir()
    (bare / "queries.jsonl").write_text('{"_id": "q1", "text": "fox"}\n')
    out = ("--out", tmp_path / "page.html", "--quiet")
    assert "does not exist; build one" in complaint("report", tmp_path / "none", collection, *out)
    assert "has no judgements" in complaint("report", index, bare, *out)
    assert "did you mean 'beam'" in complaint("report", index, collection, "--mode", "beem", *out)
    assert "did you mean 'prior_weight'" in complaint("report", index, collection, "--mode", "exact+prior_wait=1", *out)
    assert "set twice" in complaint("report", index, collection, "--mode", "exact+mode=beam", *out)
    assert "given twice" in complaint("report", index, collection, "--mode", "exact", "--mode", "exact", *out)
    assert "has no postings" in complaint("report", index, collection, "--mode", "exact+plan_ahead=5", *out)
    assert "write --mode NAME" in complaint("report", index, collection, "--set", "mode=exact", *out)
    assert "is a folder" in complaint("report", index, collection, "--out", tmp_path)
    assert not (tmp_path / "page.html").exists()


def test_an_unfinished_training_record_is_cut_to_what_does_not_depend_on_the_clock(tmp_path):
    from zerogr_ray.training.record import training_record

    line = {"step": 1, "loss": 2.5, "tokens_per_second": 31.4, "seconds": 2}
    (tmp_path / "log.jsonl").write_text(json.dumps(line) + '\n{"step": 2, "lo')
    assert training_record(tmp_path) == b'{"step": 1, "loss": 2.5}\n'
    assert training_record(tmp_path / "none") == b""


def test_a_compacted_index_keeps_the_record_of_its_training(index, tmp_path):
    retriever = Retriever.load(index)
    retriever.remove(["d3"])
    retriever.compact(tmp_path / "smaller")
    assert Retriever.load(tmp_path / "smaller").bundle.training == retriever.bundle.training != b""


def test_inspect_counts_what_only_some_indexes_have(tmp_path):
    status, out, err = zerogr(
        "inspect", make_index(tmp_path, ["red fox", "hat"], vocab=400, training=b"{}\n"), "--json"
    )
    assert status == 0, err
    assert json.loads(out)["bytes"]["training.jsonl"] == 3
    assert json.loads(out)["bytes"]["postings"] > 0


LINES = Chart("lines", "t", "draws", "nDCG@10", {"a<b": {1: 0.1, 10: 0.5}, "other": {1: 0.3, 100: 0.2}}, log="x")
HISTOGRAM = Chart("bars", "t", "words", "docids", {"docids": {1: 3.0, 40: 2.0}}, kind="bars", log="y")


@pytest.mark.parametrize("chart", [LINES, HISTOGRAM], ids=lambda chart: chart.name)
def test_a_picture_is_sound_markup_in_the_colours_of_the_page_and_always_the_same(chart):
    text = svg(chart)
    page = Page(text)
    assert all(name.startswith(f"{chart.name}-") for name in page.ids)
    assert all(link[1:] in page.ids for link in page.links)
    assert "http" not in text
    assert "var(--series-0)" in text
    assert "var(--ink)" in text
    assert not {colour for colour in SERIES if colour in text}
    assert text == svg(chart)


def test_a_picture_has_its_words_and_numbers_beside_it():
    assert LINES.alt == (
        "Line chart: nDCG@10 by draws. a<b: 0.100 at 1, 0.500 at 10, highest 0.500 at 10. "
        "other: 0.300 at 1, 0.200 at 100, highest 0.300 at 1."
    )
    assert LINES.rows() == [(1, ["0.100", "0.300"]), (10, ["0.500", ""]), (100, ["", "0.200"])]
    assert "a&lt;b" in svg(LINES)
    assert f">{BARS}+<" in svg(HISTOGRAM)
    assert len(SERIES) == len(SERIES_DARK)
