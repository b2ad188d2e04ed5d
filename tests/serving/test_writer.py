"""Docids for documents that are added: by the model, and the adapter, with which an index gets its own."""

from __future__ import annotations

import json

import pyarrow as pa
import pytest
import torch
from safetensors.torch import save_file

from tests.tiny import save_tiny
from zerogr_ray.adapters import describe_base, find_adapted_model
from zerogr_ray.config import DocIdConfig, LLMConfig
from zerogr_ray.docids.generate import WriteDocIds
from zerogr_ray.generation.transformers_engine import TransformersEngine
from zerogr_ray.models import load_model
from zerogr_ray.serving.writer import DocidWriter

pytestmark = pytest.mark.model

TEXT = "How to open a file: call open with its path and read the lines one by one."
SETTINGS = {"max_new_tokens": 12, "examples": 0}


def adapter(base, folder):
    """An adapter of every query projection, as `zerogr train docids` would leave it."""
    folder.mkdir()
    generator, matrices = torch.Generator().manual_seed(3), {}
    for name, weight in load_model(base, "float32", "cpu").named_parameters():
        if "q_proj" in name:
            rows, columns = weight.shape
            stem = f"base_model.model.{name.removesuffix('.weight')}.lora"
            matrices[f"{stem}_A.weight"] = torch.randn(2, columns, generator=generator)
            matrices[f"{stem}_B.weight"] = torch.randn(rows, 2, generator=generator)
    save_file(matrices, folder / "adapter_model.safetensors")
    (folder / "adapter_config.json").write_text(json.dumps({"lora_alpha": 4, "r": 2}))
    about = {"format": 1, "task": "docids", "base": describe_base(str(base), base), "settings": SETTINGS}
    (folder / "zerogr.json").write_text(json.dumps(about))
    return str(folder)


def test_an_added_document_gets_the_docid_that_a_build_would_write(tmp_path, monkeypatch):
    monkeypatch.setenv("ZEROGR_CACHE", str(tmp_path / "cache"))
    base = save_tiny(tmp_path / "base")
    llm = LLMConfig(model=str(base), engine="transformers", dtype="float32")
    folder = adapter(base, tmp_path / "adapter")
    row = pa.table({"docno": ["d"], "title": ["Files"], "text": [TEXT]})
    stage = WriteDocIds(DocIdConfig(**SETTINGS))
    built = stage(row, TransformersEngine(llm, find_adapted_model(str(base), folder)))["docid"][0].as_py()
    assert DocidWriter(DocIdConfig(adapter=folder), llm).write("d", "Files", TEXT) == built
    assert DocidWriter(DocIdConfig(adapter="", **SETTINGS), llm).write("d", "Files", TEXT) != built
