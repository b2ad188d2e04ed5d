"""vLLM and plain transformers stand in for each other: the same rows for greedy decoding on the same model."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pydoc_data.topics import topics

import pyarrow as pa
import pytest

from tests.tiny import save_tiny
from zerogr_ray.adapters import SHIPPED, find_writer
from zerogr_ray.config import DEFAULT_INSTRUCTION, DEFAULT_MODEL, DocIdConfig, LLMConfig, QueryConfig
from zerogr_ray.docids.generate import WriteDocIds, show
from zerogr_ray.errors import ModelError
from zerogr_ray.generation.engine import Sampling, choose_engine, open_engine
from zerogr_ray.generation.transformers_engine import TransformersEngine
from zerogr_ray.models import find_model
from zerogr_ray.queries.generate import WriteQueries, query_prompt

pytestmark = pytest.mark.model

TEXTS = [
    "The red fox hunts mice.",
    "json.dumps makes a JSON string of a dict.",
    "Tides follow the Moon.",
    "短い文書",
    "A. " * 300,
]
DOCUMENTS = pa.table({"docno": [f"d{i}" for i in range(5)], "title": ["Fox", "", "Tides", "", "Long"], "text": TEXTS})

WRITE = """
import json, sys
from tests.generation.test_engines import DOCUMENTS
from zerogr_ray.config import DocIdConfig, LLMConfig
from zerogr_ray.docids.generate import WriteDocIds
from zerogr_ray.generation.engine import open_engine
from zerogr_ray.models import find_model
engine = open_engine(LLMConfig(engine=sys.argv[1], dtype="float32"), find_model(sys.argv[2]))
print(json.dumps(WriteDocIds(DocIdConfig())(DOCUMENTS, engine).to_pylist()))
engine.close()
"""


@pytest.fixture(scope="module")
def engine(tmp_path_factory):
    return TransformersEngine(LLMConfig(dtype="float32"), save_tiny(tmp_path_factory.mktemp("tiny")))


def test_every_document_gets_a_docid_and_n_queries_in_order(engine):
    docids = WriteDocIds(DocIdConfig())(DOCUMENTS, engine).to_pylist()
    queries = WriteQueries(QueryConfig(per_document=3), "Find it.", seed=1)(DOCUMENTS, engine).to_pylist()
    assert [row["docno"] for row in docids] == [row["docno"] for row in queries] == DOCUMENTS["docno"].to_pylist()
    assert all(row["docid"] for row in docids)
    assert all(len(row["queries"]) == 3 and all(row["queries"]) for row in queries)


def test_the_seed_decides_the_queries_and_the_docids_need_none(engine):
    def write(seed):
        return WriteQueries(QueryConfig(per_document=2), "Find it.", seed)(DOCUMENTS, engine).to_pylist()

    assert write(1) == write(1) != write(2)
    assert WriteDocIds(DocIdConfig())(DOCUMENTS, engine).equals(WriteDocIds(DocIdConfig())(DOCUMENTS, engine))


def test_prompts_of_different_length_in_one_batch_give_what_each_gives_alone(engine):
    prompts = engine.format.tokens(["fox", "open a web browser and read", "json " * 40])
    together = engine.generate(prompts, Sampling(max_tokens=8), seed=0)
    assert together == [engine.generate([prompt], Sampling(max_tokens=8), seed=0)[0] for prompt in prompts]


def test_no_queries_and_no_documents_need_no_model_at_all():
    none = QueryConfig(per_document=0)
    assert WriteQueries(none, "Find it.", 0)(DOCUMENTS, None)["queries"].to_pylist() == [[]] * 5
    assert WriteQueries(QueryConfig(), "Find it.", 0)(DOCUMENTS.slice(0, 0), None).num_rows == 0


def test_the_key_of_the_queries_changes_with_instruction_and_seed_but_not_with_the_passages():
    key = WriteQueries(QueryConfig(), "Find it.", 0).key("corpus", "model")
    assert key == WriteQueries(QueryConfig(passages=1), "Find it.", 0).key("corpus", "model")
    others = [
        WriteQueries(QueryConfig(), "Find them.", 0).key("corpus", "model"),
        WriteQueries(QueryConfig(), "Find it.", 1).key("corpus", "model"),
        WriteQueries(QueryConfig(temperature=0.5), "Find it.", 0).key("corpus", "model"),
        WriteQueries(QueryConfig(), "Find it.", 0).key("other corpus", "model"),
    ]
    assert len({key, *others}) == 5


def test_asking_for_vllm_where_it_is_not_installed_says_how_to_get_it(monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    assert choose_engine(LLMConfig()) == "transformers"
    with pytest.raises(ModelError, match="pip install vllm"):
        choose_engine(LLMConfig(engine="vllm"))


def in_a_process(code, *arguments, given=""):
    """What the last line that `code` prints is as JSON."""
    done = subprocess.run(
        [sys.executable, "-c", code, *arguments],
        input=given,
        capture_output=True,
        text=True,
        timeout=300,
        env={**os.environ, "OMP_NUM_THREADS": "2"},
        check=False,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    return json.loads(done.stdout.splitlines()[-1])


@pytest.mark.vllm
@pytest.mark.slow
def test_vllm_and_transformers_write_the_same_docids():
    find_model(DEFAULT_MODEL)
    rows = {}
    for name in ("transformers", "vllm"):
        rows[name] = in_a_process(WRITE, name, DEFAULT_MODEL)
    assert rows["vllm"] == rows["transformers"]
    assert sum(row["source"] == "lm" for row in rows["vllm"]) == 5


ASK = """
import json, sys
from zerogr_ray.config import LLMConfig
from zerogr_ray.generation.engine import Sampling, open_engine
from pathlib import Path
engine = open_engine(LLMConfig(engine="vllm", dtype="float32"), Path(sys.argv[1]))
prompts = engine.format.tokens(json.load(sys.stdin))
print(json.dumps(engine.generate(prompts, Sampling(24), seed=0)))
engine.close()
"""


AGAIN = """
import json, sys
from zerogr_ray.config import DEFAULT_MODEL, LLMConfig
from zerogr_ray.generation.engine import Sampling, open_engine
from zerogr_ray.models import find_model
engine = open_engine(LLMConfig(engine="vllm"), find_model(DEFAULT_MODEL))
some, others = map(engine.format.tokens, json.load(sys.stdin))
print(json.dumps([engine.generate(shard, Sampling(24, temperature=1.0), seed=0) for shard in (some, others, some)]))
engine.close()
"""


@pytest.mark.vllm
@pytest.mark.slow
def test_what_vllm_writes_for_a_shard_does_not_depend_on_the_shards_before():
    find_model(DEFAULT_MODEL)
    texts = [text[:600] for _, text in sorted(topics.items())]
    asked = [f"Write a query that somebody might ask a search engine to find this page.\n\n{text}" for text in texts]
    shards = [asked[:20], asked[20:30]]
    first, _, again = in_a_process(AGAIN, given=json.dumps(shards))
    assert again == first


@pytest.mark.vllm
@pytest.mark.slow
def test_vllm_writes_with_a_merged_adapter_what_peft_writes_with_the_adapter_beside_its_base():
    from peft import PeftModel

    merged, cfg = find_writer(QueryConfig(), DEFAULT_MODEL, "queries")
    engine = TransformersEngine(LLMConfig(dtype="float32"), find_model(DEFAULT_MODEL))
    asked = [
        query_prompt(engine.format, cfg, "question", DEFAULT_INSTRUCTION, show(title, text, engine.format, 128))
        for title, text in zip(*(DOCUMENTS[name].to_pylist() for name in ("title", "text")), strict=True)
    ]
    prompts = engine.format.tokens(asked)
    plain = engine.generate(prompts, Sampling(24), seed=0)
    engine.model = PeftModel.from_pretrained(engine.model, str(SHIPPED / f"{DEFAULT_MODEL}-queries")).eval()
    adapted = engine.generate(prompts, Sampling(24), seed=0)
    assert adapted != plain
    done = in_a_process(ASK, str(merged), given=json.dumps(asked))
    assert done == adapted


@pytest.mark.slow
def test_the_engine_is_opened_by_its_name():
    engine = open_engine(LLMConfig(engine="transformers"), find_model(DEFAULT_MODEL))
    try:
        assert isinstance(engine, TransformersEngine)
    finally:
        engine.close()
