"""The last stage of a build: what the index keeps of the stages before it."""

import json

import pyarrow as pa
import pytest

from tests.tiny import save_tiny
from zerogr_ray.config import CalibrationConfig, IndexConfig
from zerogr_ray.index.bundle import open_index
from zerogr_ray.models import load_format
from zerogr_ray.publish import Left, publish
from zerogr_ray.rows import docid_schema, document_schema
from zerogr_ray.stage import Output
from zerogr_ray.store import Folder

pytestmark = pytest.mark.model


def test_the_index_keeps_the_losses_of_its_training_but_not_how_fast_it_was(tmp_path):
    work = Folder(tmp_path / "work")
    source, docids = Output.at(work, "corpus", "k"), Output.at(work, "docids", "k")
    rows = [["d1", "d2"], ["", "T"], ["red fox", "red hat"]]
    source.folder.write_table("part-0.parquet", pa.table(rows, schema=document_schema()))
    rows = [["d1", "d2"], ["red fox", "red hat"], ["lm", "lm"]]
    docids.folder.write_table("part-0.parquet", pa.table(rows, schema=docid_schema()))
    tuned = save_tiny(tmp_path / "work" / "training-k" / "model")
    (tuned.parent / "log.jsonl").write_text(
        '{"step": 1, "loss": 3.5, "tokens_per_second": 9.5}\n{"step": 2, "loss": 2.5, "tokens_per_second": 9.7}\n'
    )
    left = Left(source, docids, Output.at(work, "pairs", "k"), tuned, load_format(tuned))
    plain = IndexConfig(calibration=CalibrationConfig(texts=0, queries=0))
    publish(tmp_path / "index", left, plain, {"key": "k"}, work)
    record = open_index(tmp_path / "index").training
    assert [json.loads(line) for line in record.splitlines()] == [{"step": 1, "loss": 3.5}, {"step": 2, "loss": 2.5}]
