"""The priors of a whole index, measured on Ray Data: its docids in the order of the trie, shard by shard."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from zerogr_ray.cache import here
from zerogr_ray.chat import PromptFormat
from zerogr_ray.config import CacheConfig, DecodeConfig
from zerogr_ray.decoding.calibrate import docid_logprobs, edge_priors
from zerogr_ray.index.trie import Trie
from zerogr_ray.models import hush, load_format, load_model
from zerogr_ray.stage import Clock, Output, ShardWorker, map_shards
from zerogr_ray.store import Folder, key_of

if TYPE_CHECKING:
    import pyarrow as pa

SHARD_ROWS = 4096
"""Docids of one shard: what a lost actor measures again."""

FIRST = "first.parquet"
"""Beside the shards: the prior of the token that comes first, for every token of the vocabulary."""


@dataclass(frozen=True)
class MeasurePriors:
    """Add to every docid of a shard the mean log-probability of each of its tokens behind the calibration texts."""

    instruction: str
    texts: tuple[str, ...]
    query_tokens: int = DecodeConfig().query_tokens
    name: str = "priors"

    def key(self, documents: str, model: str) -> str:
        """Changes with the docids and their order, the model that is asked, and the texts."""
        return key_of("priors", 1, documents, model, self.instruction, self.texts, self.query_tokens)

    def __call__(self, documents: pa.Table, engine: CalibrationModel) -> pa.Table:
        """Rows (docno, priors), one per document, in order."""
        import pyarrow as pa

        docids = [[*tokens, engine.format.end] for tokens in documents["tokens"].to_pylist()]
        order = sorted(range(len(docids)), key=docids.__getitem__)
        measured, first = engine.logprobs(self, [docids[row] for row in order])
        engine.first = first.mean(0)
        priors: list[Any] = [None] * len(docids)
        for row, logprobs in zip(order, measured, strict=True):
            priors[row] = logprobs.mean(0).astype(np.float16)
        return pa.table([documents["docno"], pa.array(priors, pa.list_(pa.float16()))], ["docno", "priors"])


class CalibrationModel:
    """The retriever's LM, asked for docids behind texts that ask for nothing."""

    def __init__(self, model: Any, prompt_format: PromptFormat) -> None:
        self.model, self.format = model, prompt_format
        self.first: NDArray[np.float32] | None = None

    def logprobs(
        self, task: MeasurePriors, docids: list[list[int]]
    ) -> tuple[list[NDArray[np.float32]], NDArray[np.float32]]:
        """See docid_logprobs."""
        from zerogr_ray.decoding.forward import TreeForward

        prompts = self.format.prompts(task.instruction, task.texts, task.query_tokens)
        return docid_logprobs(TreeForward(self.model, CacheConfig()), prompts, docids)


class Calibrator(ShardWorker):
    """Ray Data actor: measures one shard after another."""

    def __init__(
        self, source: Output, tasks: list[tuple[MeasurePriors, Output]], model: str | Path, device: str
    ) -> None:
        super().__init__(source, tasks)
        hush()
        folder = here(model)
        self.model = CalibrationModel(load_model(folder, "auto", device), load_format(folder))

    def work(self, shard: str, task: MeasurePriors, output: Output) -> tuple[int, int]:
        """Measure one shard."""
        import pyarrow as pa

        documents = self.source.folder.read_table(shard)
        measured = task(documents, self.model)
        if not output.folder.exists(FIRST):
            output.folder.write_table(FIRST, pa.table({"prior": self.model.first}))
        output.folder.write_table(shard, measured)
        return documents.num_rows, len(measured["priors"].combine_chunks().flatten()) * len(task.texts)


def measure_priors(
    trie: Trie,
    documents: pa.Table,
    model: str | Path,
    task: MeasurePriors,
    work: Folder,
    key: str,
    resources: dict[str, Any],
    actors: int = 1,
    quiet: bool = False,
    clock: Clock | None = None,
) -> dict[str, NDArray[Any]]:
    """The arrays of PRIORS for an index of `documents`, in the order of `trie`; Ray must be initialised.

    `model` is a folder that all actors see, or its URL. What an interrupted run has measured under the same `key`
    stays measured.
    """
    ordered, priors = Output.at(work, "ordered", key), Output.at(work, "priors", key)
    sizes = _write_ordered(documents, ordered)
    device = "cuda" if resources.get("num_gpus") else "cpu"
    spent = map_shards(
        ordered,
        [(task, priors)],
        Calibrator,
        {"model": model, "device": device},
        resources,
        actors,
        sizes.__getitem__,
        quiet,
    )
    if clock is not None:
        clock.add(spent)
    columns = [priors.folder.read_table(shard)["priors"].combine_chunks() for shard in ordered.shards()]
    return _arrays(trie, columns, priors.folder.read_table(FIRST)["prior"].to_numpy())


def measure_here(
    trie: Trie, documents: pa.Table, model: Any, prompt_format: PromptFormat, task: MeasurePriors
) -> dict[str, NDArray[Any]]:
    """As `measure_priors`, in this process and with a loaded model: for an index of thousands of docids."""
    engine = CalibrationModel(model, prompt_format)
    starts = range(0, documents.num_rows, SHARD_ROWS)
    columns = [task(documents.slice(start, SHARD_ROWS), engine)["priors"].combine_chunks() for start in starts]
    assert engine.first is not None, "an index has documents"
    return _arrays(trie, columns, engine.first)


def _arrays(trie: Trie, columns: Sequence[pa.Array], first: NDArray[np.float32]) -> dict[str, NDArray[Any]]:
    flat = np.concatenate([column.flatten().to_numpy() for column in columns])
    lengths = np.concatenate([column.value_lengths().to_numpy() for column in columns]).astype(np.int64)
    return {**edge_priors(trie, flat, lengths), "next_prior": first}


def _write_ordered(documents: pa.Table, ordered: Output) -> dict[str, int]:
    """The documents as shards, in their order; returns the rows of each."""
    names = {start: f"part-{at:06d}.parquet" for at, start in enumerate(range(0, documents.num_rows, SHARD_ROWS))}
    if ordered.done() is None:
        for start, name in names.items():
            ordered.folder.write_table(name, documents.select(["docno", "tokens"]).slice(start, SHARD_ROWS))
        ordered.finish(documents.num_rows)
    return {name: min(SHARD_ROWS, documents.num_rows - start) for start, name in names.items()}
