"""Decoding on a GPU: queries per second and latency of a 1B model. Part of decode.py, which prints it."""

from __future__ import annotations

import sys
import tempfile
import time
from collections.abc import Sequence
from itertools import count
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import torch
from tqdm import tqdm

from benchmarks.measure import depth_of, forward_clock, made
from zerogr_ray.config import CacheConfig, DecodeConfig
from zerogr_ray.decoding.forward import TreeForward
from zerogr_ray.decoding.retriever import Retriever
from zerogr_ray.decoding.search import Search
from zerogr_ray.index.bundle import DOCUMENTS, open_index, write_index


def cuda_figures(dry: bool = False, seconds: float = 240) -> dict[str, Any]:
    """Queries per second and latency of a 1B model on a GPU: K x batch, all of them in turns until `seconds` are over.

    The model has Llama-3.2-1B's shape and random weights, so its distributions are flatter than a trained retriever's:
    draws share fewer nodes, and the figures are on the slow side. Prompts and docids are random tokens, docids with
    Zipf-like frequencies. `dry` runs the same on the CPU with a tiny model.
    """
    from transformers import AutoModelForCausalLM, LlamaConfig

    shape = {"vocab_size": 128256, "hidden_size": 2048, "intermediate_size": 8192, "num_hidden_layers": 16}
    heads = {"num_attention_heads": 32, "num_key_value_heads": 8}
    device, docids, length = "cuda", 100_000, 300
    if dry:
        shape = {"vocab_size": 512, "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2}
        heads = {"num_attention_heads": 4, "num_key_value_heads": 2}
        device, docids, length, seconds = "cpu", 500, 30, 0
    torch.manual_seed(0)
    config = LlamaConfig(**shape, **heads, tie_word_embeddings=True, max_position_embeddings=4096)
    with torch.device(device):
        model = AutoModelForCausalLM.from_config(config, dtype=torch.bfloat16, attn_implementation="sdpa").eval()
    rng = np.random.default_rng(0)
    words = min(30_000, config.vocab_size - 1)
    rows = [(words * rng.random(n) ** 4).astype(np.int64).tolist() for n in rng.integers(6, 17, docids)]
    prompts = RandomPrompts(rng.integers(0, words, (256, length)).tolist(), config.vocab_size - 1)
    names = [f"d{i}" for i in range(docids)]
    with tempfile.TemporaryDirectory() as folder:
        (Path(folder) / "model").mkdir()  # the model is in memory: nothing is read from here
        documents = pa.table([names, names, rows, names], schema=DOCUMENTS)
        write_index(Path(folder) / "index", documents, prompts.end, Path(folder) / "model", {"instruction": "none"})
        bundle = open_index(Path(folder) / "index")  # memory-mapped: it outlives the folder's name
    retriever = Retriever(bundle, model, prompts, CacheConfig(batch=32))  # type: ignore[arg-type]
    trie, number = bundle.trie, count()

    def search(K: int, batch: int) -> float:
        cfg = DecodeConfig(draws=K, mode="reference", order="draw", seed=next(number))
        queries = [str((cfg.seed * batch + b) % len(prompts.rows)) for b in range(batch)]
        started = time.perf_counter()
        retriever.search_many(queries, k=K, config=cfg)  # its hits are on the host: nothing is left to wait for
        return time.perf_counter() - started

    cells: dict[tuple[int, int], list[float]] = {(K, batch): [] for K in (10, 100) for batch in (1, 8, 32)}
    notes: dict[tuple[int, int], dict[str, float]] = {}
    for K, batch in tqdm(cells, desc=f"{device}: warming", file=sys.stderr):
        search(K, batch)
        with forward_clock(model) as clock, made(Search, TreeForward) as new:
            spent = search(K, batch)
        tokens = sum(x.tokens_forwarded for x in new if isinstance(x, TreeForward))
        waves = max(x.waves for x in new if isinstance(x, Search))
        notes[K, batch] = {"forward_share": sum(clock) / spent, "tokens_per_query": tokens / batch, "waves": waves}
    started, rounds = time.perf_counter(), 0
    with tqdm(desc=f"{device}: rounds", file=sys.stderr) as bar:
        while rounds < 3 or time.perf_counter() - started < seconds:
            for (K, batch), taken in cells.items():
                taken += [search(K, batch) for _ in range(max(1, 8 // batch))]
            rounds += 1
            bar.update()
    return {
        "device": torch.cuda.get_device_name() if device == "cuda" else "cpu (dry run)",
        "model": f"{sum(p.numel() for p in model.parameters()) / 1e9:.3g}B parameters, random, bfloat16",
        "prompt_tokens": length,
        "docids": trie.leaves,
        "root_children": trie.children(0)[1] - 1,
        "depth": depth_of(trie),
        "peak_gib": torch.cuda.max_memory_allocated() / 2**30 if device == "cuda" else None,
        "cells": [
            {
                "K": K,
                "batch": batch,
                "queries_per_second": batch * len(taken) / sum(taken),
                "p50_seconds": float(np.percentile(taken, 50)),
                "p99_seconds": float(np.percentile(taken, 99)),
                "calls": len(taken),
                **notes[K, batch],
            }
            for (K, batch), taken in cells.items()
        ],
    }


class RandomPrompts:
    """Stands in for the prompt format of a model without a tokenizer: the query "7" is prompt number 7."""

    def __init__(self, rows: list[list[int]], end: int) -> None:
        self.rows, self.end = rows, end

    def prompts(self, _instruction: str, queries: Sequence[str], _query_tokens: int) -> list[list[int]]:
        """The prompts that `queries` number; prompt 0 for a probe of what prompts have in common, which is nothing."""
        return [self.rows[int(query) if query.isdigit() else 0] for query in queries]
