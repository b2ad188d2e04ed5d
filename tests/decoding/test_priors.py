"""Priors measured shard by shard on a real Ray are those of a plain forward, and are measured once."""

from __future__ import annotations

import numpy as np
import pyarrow as pa
import pytest
import torch

from tests.tiny import save_tiny
from zerogr_ray.cluster import ray_cluster
from zerogr_ray.decoding import priors as module
from zerogr_ray.decoding.priors import MeasurePriors, measure_priors
from zerogr_ray.index.bundle import open_index, write_index
from zerogr_ray.models import load_format, load_model
from zerogr_ray.store import Folder

pytestmark = pytest.mark.ray

DOCIDS = ["red fox", "red hat", "web browser", "json files", "json", "command line flags", "red fox"]
TASK = MeasurePriors("Find it.", ("parse and read", "open the red"))


def test_an_index_gets_the_priors_of_a_plain_forward(tmp_path, monkeypatch, float32):
    monkeypatch.setattr(module, "SHARD_ROWS", 3)
    model = save_tiny(tmp_path / "model")
    fmt = load_format(model)
    columns = [[f"d{row}" for row in range(len(DOCIDS))], DOCIDS, fmt.docids(DOCIDS), [""] * len(DOCIDS)]
    documents = pa.table(columns, ["docno", "docid", "tokens", "title"])
    folder = Folder(tmp_path / "work")
    resources = {"num_cpus": 1, "runtime_env": {"env_vars": {"OMP_NUM_THREADS": "1"}}}

    def measure(trie, ordered):
        return measure_priors(trie, ordered, model, TASK, folder, "key", resources, quiet=True)

    about = {"instruction": TASK.instruction, "key": "k", "prompt_format": fmt.fingerprint}
    with ray_cluster():
        write_index(tmp_path / "index", documents, fmt.end, model, about, priors=measure)
        shards = sorted((tmp_path / "work" / "priors-key").glob("part-*"))
        written = [shard.stat().st_mtime_ns for shard in shards]
        shards[1].unlink()
        write_index(tmp_path / "index", documents, fmt.end, model, about, priors=measure)
    again = [shard.stat().st_mtime_ns for shard in shards]
    assert len(shards) == 3
    assert [before == after for before, after in zip(written, again, strict=True)] == [True, False, True]

    bundle = open_index(tmp_path / "index")
    lm = load_model(model, "float32", "cpu")
    prompts = fmt.prompts(TASK.instruction, TASK.texts, TASK.query_tokens)
    for row, tokens in enumerate(bundle.documents["tokens"].to_pylist()):
        whole = [*tokens, fmt.end]
        with torch.inference_mode():
            logits = [lm(input_ids=torch.tensor([[*prompt, *whole]])).logits[0].float() for prompt in prompts]
        expected = np.mean(
            [
                x.log_softmax(-1)[len(p) - 1 :][range(len(whole)), whole].numpy()
                for x, p in zip(logits, prompts, strict=True)
            ],
            axis=0,
        )
        leaf = next(leaf for leaf in range(1, bundle.trie.nodes) if _is_leaf(bundle.trie, leaf, row))
        path, node = [], leaf
        while node:
            path.append(bundle.priors[node])
            node = bundle.trie.parent(node)
        np.testing.assert_allclose(path[::-1], expected[: len(path)], rtol=2e-3)
        np.testing.assert_allclose(bundle.tail_priors[row], expected[len(path) :].sum(), rtol=2e-3, atol=1e-6)
    with torch.inference_mode():
        first = [lm(input_ids=torch.tensor([prompt])).logits[0, -1].float().log_softmax(-1) for prompt in prompts]
    np.testing.assert_allclose(bundle.next_prior, torch.stack(first).mean(0), atol=1e-4)


def _is_leaf(trie, node, row):
    first, past = trie.children(node)
    return first == past and row in trie.documents_of(node)
