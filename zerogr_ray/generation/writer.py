"""The Ray Data actor around an engine: reads a shard, lets a task write, commits the result, says what it did."""

from __future__ import annotations

import os
import time
from functools import cached_property
from typing import Any

from zerogr_ray.chat import PromptFormat
from zerogr_ray.cluster import cores, pin_apart, pool_options
from zerogr_ray.config import LLMConfig
from zerogr_ray.errors import BuildError
from zerogr_ray.generation.engine import Engine, Sampling, open_engine
from zerogr_ray.models import find_model
from zerogr_ray.stage import Output, ShardTask, ShardWorker


class CountingEngine:
    """An engine that counts the tokens of what it writes. It is loaded when something is first asked of it."""

    def __init__(self, llm: LLMConfig) -> None:
        self.llm = llm
        self.room, self.tokens, self.loading = llm.max_model_len, 0, 0.0

    @cached_property
    def engine(self) -> Engine:
        """The engine itself."""
        began = time.perf_counter()
        engine = open_engine(self.llm, find_model(self.llm.model))
        self.loading = time.perf_counter() - began
        return engine

    @property
    def format(self) -> PromptFormat:
        """That of its model."""
        return self.engine.format

    def generate(self, prompts: list[list[int]], sampling: Sampling, seed: int) -> list[list[str]]:
        """See Engine. Raises BuildError for a prompt that leaves no room for the answer."""
        if (longest := max(map(len, prompts), default=0) + sampling.max_tokens) > self.room:
            raise BuildError(
                f"the longest prompt and its answer take {longest} tokens, llm.max_model_len is {self.room}; raise it, "
                f"or lower doc_tokens, or write a shorter instruction"
            )
        texts = self.engine.generate(prompts, sampling, seed)
        self.tokens += sum(map(len, self.format.tokens([text for some in texts for text in some])))
        return texts

    def close(self) -> None:
        """Give the memory back."""
        if "engine" in self.__dict__:
            self.engine.close()


class Writer(ShardWorker):
    """One loaded model that writes shards of docids or pseudo-queries."""

    def __init__(self, source: Output, tasks: list[tuple[ShardTask, Output]], llm: LLMConfig) -> None:
        super().__init__(source, tasks)
        if llm.engines > 1 and not llm.gpus:
            pin_apart(int(os.environ["OMP_NUM_THREADS"]))
        self.engine = CountingEngine(llm)

    def work(self, shard: str, task: ShardTask, output: Output) -> tuple[int, int]:
        """Write one shard."""
        documents = self.source.folder.read_table(shard)
        before = self.engine.tokens
        written = task(documents, self.engine)
        if written["docno"].to_pylist() != documents["docno"].to_pylist():
            raise BuildError(f"{output.name} of {shard}: not one row per document; this is a defect of {task.name}")
        output.folder.write_table(shard, written)
        self.loading = self.engine.loading
        return documents.num_rows, self.engine.tokens - before


def engine_resources(llm: LLMConfig) -> dict[str, Any]:
    """What one engine reserves of the cluster. Ray would give a CPU engine one thread: it gets the machine's cores."""
    threads = str(max(1, cores() // (1 if llm.gpus else llm.engines)))
    variables = {"OMP_NUM_THREADS": threads, "TOKENIZERS_PARALLELISM": "false"}
    devices = {"num_cpus": llm.cpus, "num_gpus": llm.gpus or 0}
    return {**devices, **pool_options(llm), "runtime_env": {"env_vars": variables}}
