"""Docids tokenised and sorted by a real Ray make the trie that one process makes of them."""

from __future__ import annotations

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pytest

from tests.tiny import tiny_tokenizer
from zerogr_ray.chat import PromptFormat
from zerogr_ray.cluster import ray_cluster
from zerogr_ray.index import dataset
from zerogr_ray.index.dataset import Tokenise, index_documents, sorted_keys
from zerogr_ray.index.table import spooled
from zerogr_ray.index.trie import ARRAYS, Trie
from zerogr_ray.rows import docid_schema, document_schema
from zerogr_ray.stage import Output
from zerogr_ray.store import Folder

pytestmark = [pytest.mark.model, pytest.mark.ray]


@pytest.fixture(scope="module", autouse=True)
def cluster():
    with ray_cluster():
        yield


def corpus_of(folder, docids, cuts):
    """Shards of documents with these docids: the task that tokenises them, and the rows of each shard."""
    source, written = Output.at(folder, "corpus", "1"), Output.at(folder, "docids", "1")
    sizes = {}
    for number, (first, past) in enumerate(zip([0, *cuts], [*cuts, len(docids)], strict=True)):
        name, some = f"part-{number:06d}.parquet", docids[first:past]
        docnos = [f"d{row}" for row in range(first, past)]
        source.folder.write_table(name, pa.table([docnos, docnos, some], schema=document_schema()))
        written.folder.write_table(name, pa.table([docnos, some, ["rule"] * len(some)], schema=docid_schema()))
        sizes[name] = len(some)
    return Tokenise(source, written, PromptFormat(tiny_tokenizer())), sizes


def test_the_cluster_makes_the_documents_and_the_trie_that_one_process_makes(tmp_path, monkeypatch):
    rng = np.random.default_rng(0)
    docids = ["".join(rng.choice(list("abé"), size=rng.integers(1, 9))) for _ in range(3000)]
    docids[7:20:3] = [f"it goes on and on, beyond the tokens that are packed, to the {end}" for end in "abcba"]
    task, sizes = corpus_of(Folder(tmp_path), docids, [10, 700, 1800])
    tables, build = index_documents(task, Folder(tmp_path), "1", sizes, quiet=True)
    expected = pa.concat_tables(tables)
    assert build == Trie.build
    assert max(pc.list_value_length(expected["tokens"]).to_pylist()) > 20

    monkeypatch.setattr(dataset, "NEAR", 0)
    monkeypatch.setattr(dataset, "FAR", 0)
    monkeypatch.setattr(dataset, "CHUNK", 1000)
    tables, build = index_documents(task, Folder(tmp_path), "1", sizes, quiet=True)
    documents = spooled(tables, expected.schema, tmp_path / "documents.arrow")
    assert documents.equals(expected)
    end = task.fmt.end
    (trie, order), (same, same_order) = build(documents["tokens"], end), Trie.build(expected["tokens"], end)
    assert order.tolist() == same_order.tolist()
    for name in ARRAYS:
        np.testing.assert_array_equal(getattr(trie, name), getattr(same, name), strict=True)
    assert [path.name for path in tmp_path.glob("*.arrow")] == []


def test_an_empty_docid_is_refused_in_plain_words(tmp_path):
    output = Output.at(Folder(tmp_path), "documents", "1")
    output.folder.write_table("part-000000.parquet", pa.table({"tokens": pa.array([[1], []], pa.list_(pa.uint32()))}))
    with pytest.raises(ValueError, match="no docid may be empty"):
        sorted_keys(output, {"part-000000.parquet": 2}, 0, 3, 16)
