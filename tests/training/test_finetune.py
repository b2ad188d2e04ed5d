"""`zerogr train` and `zerogr index` with a tiny model: the commands, Ray Train, and what they leave."""

import json
import os
import shlex
import shutil
import signal
from pathlib import Path

import pyarrow.parquet as pq
import pytest
import torch

from tests.test_cli import complaint, zerogr
from tests.tiny import save_tiny
from tests.training.test_fit import training_workers
from zerogr_ray.adapters import find_adapted_model, find_writer, read_adapter
from zerogr_ray.config import IndexConfig, QueryConfig, make_config
from zerogr_ray.errors import BuildError, ModelError
from zerogr_ray.index.bundle import open_index
from zerogr_ray.models import load_format, load_model
from zerogr_ray.queries.kinds import PROMPTS
from zerogr_ray.training import finetune as module
from zerogr_ray.training.finetune import FinetuneConfig, finetune

pytestmark = pytest.mark.ray

INSTRUCTION = "Given a question, retrieve the page."


@pytest.fixture(scope="module", autouse=True)
def _local_ray():
    import ray

    ray.init("local", num_cpus=4, include_dashboard=False, object_store_memory=1 << 27)
    yield
    ray.shutdown()


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    return str(save_tiny(tmp_path_factory.mktemp("base")))


@pytest.fixture
def data(tmp_path):
    animals = ["fox", "hat", "owl", "bee", "cat", "dog", "elk", "hen"]
    rows = [
        {
            "task": "odd" if i % 10 == 0 else "animals",
            "instruction": INSTRUCTION,
            "query": f"where does the {animals[i % 8]} number {i} live",
            "title": animals[i % 8],
            "positive": f"The {animals[i % 8]} with the number {i} lives in house {i}.",
        }
        for i in range(60)
    ]
    rows.append({**rows[0], "query": ""})
    path = tmp_path / "triples.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)


def settings(base, **more):
    training = {"method": "lora", "epochs": 1, "batch_examples": 6, "held_out": 0.4, "pack_tokens": 512, "lora_rank": 2}
    return make_config(FinetuneConfig, {"model": base, "training": training}, more)


def test_a_query_generator_becomes_an_adapter_with_a_card(base, data, tmp_path):
    out = tmp_path / "adapters" / "queries"
    options = ["--set", f"model={base}", "--set", "training.batch_examples=6", "--set", "training.held_out=0.4"]
    arguments = ["train", "queries", data, out, "--without", "odd", "--licence", "CC0", *options, "--json", "--quiet"]
    status, printed, err = zerogr(*arguments)
    assert status == 0, err
    report = json.loads(printed)
    assert (report["examples"] + report["held_out"], report["rejected"], report["rows"]) == (54, 1, {"animals": 54})
    assert "field 'query' is empty" in Path(report["rejects"]).read_text()
    assert report["held_out"] >= 16
    assert report["validation_loss"] > 0
    assert {path.name for path in out.iterdir()} == {
        "README.md",
        "adapter_config.json",
        "adapter_model.safetensors",
        "zerogr.json",
    }
    adapter = read_adapter(out)
    assert (adapter.task, adapter.base) == ("queries", base)
    assert adapter.settings == {"prompt": "", "doc_tokens": 128, "examples": 0, "kind_prompts": PROMPTS}
    card = (out / "README.md").read_text()
    for words in ("Licence: CC0", "| animals | 54 |", "Not trained on: odd (6 rows)", "held-out loss"):
        assert words in card
    again = shlex.join(
        ["train", "queries", "triples.jsonl", "queries", "--without", "odd", "--licence", "CC0", *options]
    )
    assert f"zerogr {again}\n" in card
    model = find_adapted_model(base, out)
    assert load_format(model).fingerprint == load_format(Path(base)).fingerprint

    asked = QueryConfig(adapter=str(out))
    assert find_writer(asked, base, "queries")[1] == asked.model_copy(update={"doc_tokens": 128, "examples": 0})
    about = json.loads((out / "zerogr.json").read_text())
    about["settings"]["kind_prompts"]["claim"] = "State a fact."
    other = shutil.copytree(out, tmp_path / "other")
    (other / "zerogr.json").write_text(json.dumps(about))
    with pytest.raises(ModelError, match="other prompts than this version asks with"):
        find_writer(QueryConfig(adapter=str(other)), base, "queries")

    stamp = (tmp_path / "adapters" / "queries.work").stat().st_mtime_ns
    assert json.loads(zerogr(*arguments)[1])["loss"] == report["loss"]  # nothing is trained twice
    assert (tmp_path / "adapters" / "queries.work").stat().st_mtime_ns == stamp


def test_a_query_that_the_tokenizer_maps_to_nothing_is_set_aside_before_training(base, data, tmp_path, monkeypatch):
    from tokenizers import Regex, normalizers

    latin = shutil.copytree(base, tmp_path / "latin")
    tokenizer = load_format(latin).tokenizer
    tokenizer.backend_tokenizer.normalizer = normalizers.Replace(Regex("[^\\x00-\\x7f]"), "")
    tokenizer.save_pretrained(latin)
    rows = [json.loads(line) for line in Path(data).read_text().splitlines()]
    rows[1]["query"] = "狐はどこ"
    Path(data).write_text("".join(json.dumps(row) + "\n" for row in rows))
    seen = []

    def fit(model, shards, *more, **others):
        seen.extend(row["query"] for shard in [*shards, *more[4]] for row in pq.read_table(shard).to_pylist())
        raise BuildError("no more is asked of it")

    monkeypatch.setattr(module, "fit", fit)
    with pytest.raises(BuildError, match="no more"):
        finetune("queries", [data], tmp_path / "out", settings(str(latin)), quiet=True)
    assert len(seen) == 59
    rejects = (tmp_path / "out.work" / "rejected" / "rows.jsonl").read_text().splitlines()
    found = [json.loads(line) for line in rejects]
    assert [(row["file"], row["line"]) for row in found] == [(data, 61), (data, 2)]
    assert "maps the query '狐はどこ' to nothing" in found[1]["reason"]


@pytest.mark.fault
def test_a_killed_worker_of_a_lora_training_costs_nothing(base, data, tmp_path, monkeypatch):
    killed = []
    real = module.fit

    def fit(*arguments, **more):
        model, shards, task, cfg, folder, show, held = arguments

        def show_and_kill(row):
            show(row)
            if row["step"] >= 8 and not killed:
                killed.extend(training_workers())
                os.kill(killed[0], signal.SIGKILL)

        return real(model, shards, task, cfg, folder, show_and_kill, held, **more)

    cfg = settings(base, **{"training.epochs": 6, "training.checkpoint_seconds": 0.2, "training.patience": 0})
    calm = finetune("docids", [data], tmp_path / "calm", cfg, quiet=True)
    monkeypatch.setattr(module, "fit", fit)
    hurt = finetune("docids", [data], tmp_path / "hurt", cfg, quiet=True)
    assert killed
    assert (hurt.steps, hurt.best_step) == (calm.steps, calm.best_step)
    assert hurt.validation_loss == pytest.approx(calm.validation_loss, rel=1e-3)


def test_a_full_retriever_is_a_whole_model(base, data, tmp_path):
    report = finetune("retriever", [data], tmp_path / "out", settings(base, **{"training.method": "full"}), quiet=True)
    assert report.steps > 0
    assert (tmp_path / "out" / "config.json").exists()
    assert json.loads((tmp_path / "out" / "zerogr.json").read_text())["task"] == "retriever"


def test_mistakes_get_one_sentence(base, data, tmp_path):
    assert "there is no task 'query' to train" in complaint("train", "query", data, tmp_path / "out")
    assert "there is no file or folder" in complaint("train", "queries", tmp_path / "none.jsonl", tmp_path / "out")
    assert "there is no task 'x'" in complaint("train", "queries", data, tmp_path / "out", "--without", "x")
    (tmp_path / "mine").mkdir()
    assert "was not written by zerogr train" in complaint("train", "queries", data, tmp_path / "mine")
    ranked = complaint("train", "retriever", data, tmp_path / "out", "--set", "training.rerank_every=8")
    assert "rerank_every=8 wants wrong docids" in ranked
    assert "epochs=0 trains nothing" in complaint(
        "train", "docids", data, tmp_path / "out", "--set", "training.epochs=0"
    )


def test_an_index_built_with_a_rerank_head_can_order_by_it(base, tmp_path):
    from zerogr_ray.build import build_index
    from zerogr_ray.config import DecodeConfig
    from zerogr_ray.decoding.retriever import Retriever

    words = ["fox", "hat", "json", "web", "file", "flag"]
    corpus = tmp_path / "corpus.jsonl"
    rows = [{"docno": f"d{i}", "text": f"{words[i % 6]} {words[i % 5]} number {i}"} for i in range(20)]
    corpus.write_text("".join(json.dumps(row) + "\n" for row in rows))
    cfg = make_config(
        IndexConfig,
        {
            "model": base,
            "corpus": {"shard_rows": 8},
            "llm": {"model": base, "engine": "transformers"},
            "docids": {"max_new_tokens": 4, "examples": 0, "distinct_rounds": 0},
            "calibration": {"texts": 0, "queries": 0},
            "queries": {
                "max_new_tokens": 4,
                "per_document": 8,
                "examples": 0,
                "filter": {"repeats": 0, "shared": False, "round_trip": 0},
            },
            "training": {
                "method": "lora",
                "rerank_every": 2,
                "rerank_candidates": 4,
                "held_out": 0.15,
                "batch_examples": 16,
            },
        },
    )
    report = build_index(str(corpus), tmp_path / "index", cfg, quiet=True)
    assert report.documents == 20
    assert set(report.seconds) >= {"pairs", "candidates", "training"}
    log = next((tmp_path / "index.work").glob("training-*/log.jsonl")).read_text()
    assert "rerank_loss" in log
    assert "validation_loss" in log
    retriever = Retriever.load(str(tmp_path / "index"))
    assert retriever.bundle.manifest["rerank_token"] == 0  # <|endoftext|>, which nothing writes
    hits = retriever.search("where is the fox", k=5, config=DecodeConfig(order="rerank"))
    assert [hit.rerank for hit in hits] == sorted((hit.rerank for hit in hits), reverse=True)
    assert build_index(str(corpus), tmp_path / "index", cfg, quiet=True).unchanged


def test_a_build_begins_from_a_retriever_adapter_and_from_no_other(base, data, tmp_path):
    from zerogr_ray.build import build_index

    finetune("retriever", [data], tmp_path / "adapter", settings(base), quiet=True)
    corpus = tmp_path / "corpus.jsonl"
    corpus.write_text("".join(json.dumps({"docno": f"d{i}", "text": f"the fox {i}"}) + "\n" for i in range(12)))
    small = {"training.epochs": 0, "docids.written_by": "rule", "queries.per_document": 0, "docids.distinct": False}
    small |= {"calibration.texts": 0, "adapter": str(tmp_path / "adapter"), "model": base, "llm.model": base}
    build_index(str(corpus), tmp_path / "index", make_config(IndexConfig, {}, small), quiet=True)
    begun = load_model(open_index(tmp_path / "index").model, "float32", "cpu").state_dict()
    wanted = load_model(find_adapted_model(base, tmp_path / "adapter"), "float32", "cpu").state_dict()
    plain = load_model(Path(base), "float32", "cpu").state_dict()
    assert all(torch.equal(begun[name], tensor) for name, tensor in wanted.items())
    assert not all(torch.equal(begun[name], tensor) for name, tensor in plain.items())

    about = json.loads((tmp_path / "adapter" / "zerogr.json").read_text())
    (tmp_path / "adapter" / "zerogr.json").write_text(json.dumps(about | {"task": "docids"}))
    with pytest.raises(ModelError, match="an adapter for docids, not for retriever"):
        build_index(str(corpus), tmp_path / "index", make_config(IndexConfig, {}, small), quiet=True)
