"""What an index will cost, of a tiny model and a small corpus: counted as the stages do it, and with reasons."""

from __future__ import annotations

import json
from importlib.resources import files
from itertools import pairwise

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from tests.command import zerogr
from tests.tiny import save_tiny
from zerogr_ray.chat import PromptFormat
from zerogr_ray.cluster import ray_cluster
from zerogr_ray.config import IndexConfig, make_config
from zerogr_ray.corpus.terms import Frequencies
from zerogr_ray.docids.generate import docid_prompt
from zerogr_ray.docids.rule import core_terms
from zerogr_ray.models import load_format, load_model
from zerogr_ray.planning.calibrate import _by_two_sizes, _warm
from zerogr_ray.planning.speeds import Calibration, Speed, gpus_of, two_speeds
from zerogr_ray.planning.work import ModelShape, count_work
from zerogr_ray.rows import Document
from zerogr_ray.training.examples import ExampleStream
from zerogr_ray.training.loop import train
from zerogr_ray.training.pairs import queries_of
from zerogr_ray.training.tasks import Retrieve

pytestmark = pytest.mark.model

WORDS = "fox hat json file web page sort list flag command bread moon tide glass bee train".split()
DOCUMENTS = [
    Document(
        f"d{number}", " ".join(WORDS[(number * 5 + i * (1 + number % 3)) % 16] for i in range(30)), f"page {number}"
    )
    for number in range(24)
]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A corpus, a model, and a calibration with round numbers."""
    folder = tmp_path_factory.mktemp("plan")
    rows = ({"_id": d.docno, "title": d.title, "text": d.text} for d in DOCUMENTS)
    (folder / "corpus.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    save_tiny(folder / "tiny")
    fixed = {
        "start": 5.0,
        "engine": 20.0,
        "training": 10.0,
        "filter": 4.0,
        "gists": 6.0,
        "priors": 6.0,
        "decoding": 6.0,
    }
    names = (
        "start engine corpus terms distinct pairs index bags filter ranking finder docids queries training gists priors"
    )
    stages = {
        name: Speed(unit="tokens", per_second=100, fixed=fixed.get(name, 0.5))
        for name in f"{names} decoding serving".split()
    }
    parameters = ModelShape.of(folder / "tiny").parameters
    about = {"hardware": "a test", "device": "cpu", "cores": 2, "model": "tiny", "parameters": parameters}
    sizes = {"documents": 8, "bulk": 24, "docid_answer": 6.0, "query_answer": 9.0, "kept": 0.5}
    calibration = Calibration(**about, **sizes, memory={"engine": 1 << 30}, stages=stages)
    (folder / "calibration.json").write_text(calibration.model_dump_json())
    return folder


def plan(folder, *more):
    given = (
        "--model",
        folder / "tiny",
        "--calibration",
        folder / "calibration.json",
        "--set",
        "llm.engine=transformers",
    )
    return zerogr("plan", folder / "corpus.jsonl", *given, *more)


def planned(folder, *more):
    status, out, err = plan(folder, *more, "--json")
    assert status == 0, err
    return json.loads(out)


def by_stage(made, column):
    return {row["stage"]: row[column] for row in made["stages"]}


def test_the_corpus_is_counted_and_every_stage_has_its_row(folder):
    made = planned(folder)
    assert (made["documents"], made["sample"]) == (24, 24)
    everything = "start corpus terms docids queries distinct filter pairs bags training gists priors index"
    assert set(by_stage(made, "seconds")) >= set(everything.split())
    assert made["total"]["seconds"] == pytest.approx(sum(by_stage(made, "seconds").values()))


def test_a_second_training_costs_as_much_as_the_first_and_the_searches_before_it(folder):
    one, two = (planned(folder, *("--set", f"queries.filter.retriever={n}")) for n in (0, 5))
    once, twice = (by_stage(made, "seconds") for made in (one, two))
    assert twice["again"] == twice["training"] == once["training"]
    assert two["total"]["seconds"] - one["total"]["seconds"] == pytest.approx(twice["again"] + twice["second pass"])
    assert any("second training" in said for said in two["assumptions"])


def test_nothing_gets_less_with_more_documents(folder):
    made = [planned(folder, "--documents", number) for number in (24, 1000, 100_000, 40_000_000)]
    for column in ("amount", "hours", "seconds", "memory", "storage", "network"):
        for small, large in pairwise(made):
            fewer, more = by_stage(small, column), by_stage(large, column)
            assert all(more[name] >= value for name, value in fewer.items()), column
    assert by_stage(made[3], "seconds")["docids"] > 1e5 * by_stage(made[0], "seconds")["docids"] / 24 / 10
    assert made[3]["serving"]["index_bytes"] > made[0]["serving"]["index_bytes"]


def test_what_is_fixed_is_not_multiplied(folder):
    given = ("--set", "training.held_out=0")  # so many are held out at most, whatever the size
    small, large = (by_stage(planned(folder, "--documents", n, *given), "seconds") for n in (1000, 10_000))
    for stage, fixed in (("docids", 20.0), ("training", 10.0), ("corpus", 0.5)):
        assert large[stage] - fixed == pytest.approx(10 * (small[stage] - fixed), rel=0.02)


def test_more_gpus_take_less_time_and_no_fewer_hours(folder):
    one, eight = (planned(folder, "--gpus", gpus, "--documents", 1_000_000) for gpus in ("A100", "8xA100"))
    assert by_stage(eight, "seconds")["queries"] < by_stage(one, "seconds")["queries"] / 6
    assert eight["total"]["seconds"] < one["total"]["seconds"]
    assert eight["total"]["gpu_hours"] >= one["total"]["gpu_hours"] > 0
    assert by_stage(one, "on")["training"] == "GPU"
    assert by_stage(one, "on")["corpus"] == "core"


def test_the_reasons_are_printed_beside_the_figures(folder):
    status, out, err = plan(folder, "--gpus", "8xL40S")
    assert status == 0, err
    table, reasons = out.split("assumed:")
    assert "in all" in table
    assert "a minute at most with corpus.shard_rows=" in table
    assert "https://github.com/NVIDIA/TensorRT-LLM" in reasons
    assert "scaled from 6.7B" in reasons
    assert "training: no published figure was found; a third of the prefill" in reasons
    assert "the filter keeps 50% of the queries" in reasons
    assert "measured on a test" in plan(folder)[1].split("assumed:")[1]


def test_a_gpu_that_nobody_published_is_refused_with_those_that_somebody_did(folder):
    status, out, err = plan(folder, "--gpus", "8xB9000")
    assert (status, out) == (2, "")
    assert "--gpus 8xB9000: give a number and a kind such as 8xA100" in err
    assert "A100, H100, L40S, A10G" in err
    assert plan(folder, "--gpus", "0xA100")[0] == 2
    assert gpus_of("2 x a100").count == 2


def test_a_file_that_is_no_calibration_is_refused(folder):
    (folder / "other.json").write_text("{}")
    for name, what in (("other.json", "is no calibration"), ("nothing.json", "cannot be read")):
        status, out, err = plan(folder, "--calibration", folder / name)
        assert (status, out) == (2, "")
        assert what in err
        assert "Traceback" not in err


def test_without_a_calibration_no_speed_is_made_up(folder):
    for more in ((), ("--gpus", "8xA100")):
        status, out, err = zerogr("plan", folder / "corpus.jsonl", "--model", folder / "tiny", *more)
        assert (status, out) == (2, "")
        assert "zerogr plan CORPUS --calibrate FILE" in err


def test_every_published_figure_has_its_source():
    table = json.loads((files("zerogr_ray.planning") / "gpus.json").read_text())
    for kind, facts in table.items():
        sources = [facts["hardware_source"], facts["generation"]["source"]]
        sources += [facts["training"]["source"]] if facts["training"] else []
        assert all(source.startswith("https://") for source in sources), kind


def test_two_speeds_give_the_published_throughputs_again():
    for kind in ("A100", "H100", "L40S", "A10G"):
        runs = gpus_of(kind).facts["generation"]["runs"]
        prefill, decode = two_speeds(runs)
        for run in runs:
            seconds = run["prompt"] / prefill + run["answer"] / decode
            assert run["answer"] / seconds == pytest.approx(run["answer_tokens_per_second"])
        assert min(prefill, decode) > 0


def test_prompts_are_those_that_the_writer_sends(folder):
    fmt = load_format(folder / "tiny")
    cfg = make_config(IndexConfig, {}, {"llm.engine": "transformers"})
    known = Frequencies.counted(f"{d.title}\n{d.text}" for d in DOCUMENTS)
    sent = fmt.tokens([docid_prompt(fmt, cfg.docids, d.title, d.text, known) for d in DOCUMENTS])
    whole = count_work(DOCUMENTS, fmt, (fmt, fmt), cfg, cached=False)
    assert whole.docids.prompt * len(DOCUMENTS) == pytest.approx(sum(map(len, sent)))
    assert whole.queries.count == cfg.queries.per_document
    # With a cache, every prefix that two prompts share is computed once.
    nodes = {tuple(prompt[: end + 1]) for prompt in sent for end in range(len(prompt))}
    shared = count_work(DOCUMENTS, fmt, (fmt, fmt), cfg, cached=True)
    assert shared.docids.prompt * len(DOCUMENTS) == pytest.approx(len(nodes))


def test_tokens_of_training_are_those_that_training_forwards(folder, tmp_path):
    fmt: PromptFormat = load_format(folder / "tiny")
    settings = {"training.batch_examples": 8, "queries.per_document": 0, "training.pack_tokens": 512}
    cfg = make_config(IndexConfig, {}, settings)
    work = count_work(DOCUMENTS, fmt, (fmt, fmt), cfg)
    known = Frequencies.counted(f"{d.title}\n{d.text}" for d in DOCUMENTS)
    rows = [
        (query, core_terms(d.title, d.text, known, cfg.docids.max_words))
        for d in DOCUMENTS
        for query in queries_of(d.title, d.text, [], cfg.queries)
    ]
    table = pa.table({"query": [q for q, _ in rows], "docid": [d for _, d in rows]})
    pq.write_table(table, tmp_path / "part-0.parquet")
    stream = ExampleStream([tmp_path / "part-0.parquet"], Retrieve(cfg.instruction, 96), fmt, cfg.training)
    seen = []
    train(load_model(folder / "tiny", "float32", "cpu"), stream, cfg.training, tmp_path / "out", seen.append)
    assert work.examples * len(DOCUMENTS) == len(rows)
    assert work.example_tokens * len(rows) == pytest.approx(sum(row["tokens"] for row in seen), rel=0.03)


def test_starting_and_growing_are_told_apart():
    class Built:
        def __init__(self, documents):
            self.documents = documents

    speed = _by_two_sizes(3.0 + 10 * 0.2, 3.0 + 100 * 0.2, Built(10), Built(100), workers=1)
    assert (speed.fixed, speed.per_second) == (pytest.approx(3.0), pytest.approx(5.0))
    assert _warm([9.0, 2.0, 4.0]) == (3.0, 6.0)


def test_a_calibration_that_would_measure_nothing_is_refused(folder):
    status, out, err = plan(folder, "--calibrate", folder / "new.json")
    assert (status, out) == (2, "")
    assert "a calibration takes 3 documents or more, here 192, and" in err
    assert "corpus.jsonl gives 24; give other --documents" in err


@pytest.mark.ray
def test_a_calibration_is_measured_on_real_builds_and_a_plan_is_made_of_it(folder):
    small = {
        "corpus.shard_rows": 2,
        "queries.per_document": 1,
        "queries.max_new_tokens": 4,
        "docids.max_new_tokens": 4,
        "training.batch_examples": 8,
        "calibration.texts": 2,
        "calibration.queries": 0,
        "postings": "none",
        "queries.filter.repeats": 0,
        "queries.filter.shared": "false",
        "queries.filter.round_trip": 0,
    }
    given = [part for name, value in small.items() for part in ("--set", f"{name}={value}")]
    made = folder / "made.json"
    with ray_cluster():
        status, out, err = plan(folder, "--calibrate", made, "--documents", 6, *given)
    assert status == 0, err
    assert "training" in out
    found = Calibration.model_validate_json(made.read_text())
    assert (found.documents, found.bulk, found.device) == (6, 24, "cpu")
    assert found.stages["engine"].fixed > 0
    assert found.memory["engine"] > 1 << 26
    status, out, err = plan(folder, *given, "--calibration", made, "--json")
    assert status == 0, err
    assert json.loads(out)["total"]["seconds"] > found.stages["start"].fixed
