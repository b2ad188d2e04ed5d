"""A stage makes one folder of shards from another, shard by shard, and never makes a shard twice.

Every stage's folder is named after what it depends on (`docids-4f2a…`): the same inputs and settings lead to the
same folder, where what is done is found again; other settings lead to another. A shard is one parquet file,
`part-00012.parquet`, whole or absent; `done.json` is written last. Shards of all stages of a corpus line up.
"""

from __future__ import annotations

import logging
import resource
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Protocol, TypeVar

from zerogr_ray.errors import BuildError
from zerogr_ray.store import Folder

if TYPE_CHECKING:
    import pyarrow as pa
    from numpy.typing import NDArray
    from ray.data import DataContext
    from tqdm import tqdm

T = TypeVar("T")


@dataclass(frozen=True)
class Output:
    """The folder that one stage fills."""

    name: str
    """What the stage makes, in the plural: "docids"."""
    folder: Folder

    @classmethod
    def at(cls, work: Folder, name: str, key: str) -> Output:
        """The output called `name` with key `key` under the work folder."""
        return cls(name, work / f"{name}-{key}")

    def shards(self) -> list[str]:
        """Names of the shards that are there."""
        return self.folder.names("part-", ".parquet")

    def done(self) -> dict[str, Any] | None:
        """The completion manifest, or None while something is missing."""
        found = self.folder.read_json("done.json")
        return dict(found) if found else None

    def rows_at(self, places: Sequence[tuple[str, int]], columns: list[str] | None = None) -> list[dict[str, Any]]:
        """The rows at these (shard, row), in their order; a shard is read once."""
        found: dict[tuple[str, int], dict[str, Any]] = {}
        for name in dict.fromkeys(shard for shard, _ in places):
            table = self.folder.read_table(name, columns)
            found |= {(shard, row): table.slice(row, 1).to_pylist()[0] for shard, row in places if shard == name}
        return [found[place] for place in places]

    def finish(self, rows: int, **facts: Any) -> dict[str, Any]:
        """Write the completion manifest."""
        manifest = {"name": self.name, "rows": rows, "shards": self.shards(), **facts}
        self.folder.write_json("done.json", manifest)
        return manifest


def sample_shards(sizes: dict[str, int], rows: int) -> list[str]:
    """Shards spread evenly over the corpus, of `rows` documents at most together, but at least one of them.

    All of them where the corpus has no more. `sizes` gives the rows of each shard; the choice depends on nothing else.
    """
    shards = sorted(sizes)
    if sum(sizes.values()) <= rows:
        return shards
    most = max(1, rows // max(sizes.values()))
    return [shards[i * len(shards) // most] for i in range(most)]


class ShardTask(Protocol):
    """What turns one shard of documents into one shard of something else, with an LM at hand."""

    @property
    def name(self) -> str:
        """Name of the output."""
        ...

    def __call__(self, documents: pa.Table, engine: Any) -> pa.Table:
        """Rows of the output: one per document, in the documents' order."""
        ...


@dataclass
class Spent:
    """What the workers of one output took."""

    rows: int = 0
    tokens: int = 0
    loading: float = 0.0
    """Seconds in which models were loaded, by all workers."""
    memory: int = 0
    """Bytes of the largest worker."""
    seconds: list[float] = field(default_factory=list)
    """Of each shard, without the loading, in the order in which they were done: what a lost worker does again."""

    def add(self, more: Spent) -> None:
        """Take in what others of the output's workers, or the same ones later, took."""
        self.rows += more.rows
        self.tokens += more.tokens
        self.loading += more.loading
        self.memory = max(self.memory, more.memory)
        self.seconds += more.seconds

    def summary(self) -> dict[str, float]:
        """For people: how many shards, and how long the longest took."""
        longest = max(self.seconds, default=0.0)
        sums = {"rows": self.rows, "tokens": self.tokens, "memory": self.memory, "shards": len(self.seconds)}
        return {**sums, **{name: round(s, 3) for name, s in (("loading", self.loading), ("longest_shard", longest))}}


class Clock:
    """Wall seconds by stage, without those of the stages within it; and what the workers of each output took."""

    def __init__(self) -> None:
        self.began = time.monotonic()
        self.seconds: dict[str, float] = {}
        self.spent: dict[str, Spent] = {}
        self._within = 0.0

    def time(self, name: str, work: Callable[[], T]) -> T:
        """Do `work`; its seconds are those of `name`, together with what `name` took before."""
        outside, self._within = self._within, 0.0
        started = time.monotonic()
        try:
            return work()
        finally:
            took = time.monotonic() - started
            self.seconds[name] = self.seconds.get(name, 0.0) + took - self._within
            self._within = outside + took

    def add(self, spent: dict[str, Spent]) -> None:
        """Take in what map_shards returned."""
        for name, more in spent.items():
            self.spent.setdefault(name, Spent()).add(more)


class ShardWorker(ABC):
    """What the workers of a stage have in common: one shard after the other, each timed."""

    loading = 0.0
    """Seconds in which it has loaded models."""

    def __init__(self, source: Output, tasks: Sequence[tuple[Any, Output]]) -> None:
        self.source, self.tasks = source, tasks

    @abstractmethod
    def work(self, shard: str, task: Any, output: Output) -> tuple[int, int]:
        """Do `task` on `shard` and write it to `output`; returns (rows, tokens)."""

    def __call__(self, batch: dict[str, NDArray[Any]]) -> dict[str, list[Any]]:
        """Do the shards named in the batch; returns what was done."""
        done: dict[str, list[Any]] = {"task": [], "rows": [], "tokens": [], "seconds": [], "loading": [], "memory": []}
        for shard, number in zip(batch["shard"], batch["task"], strict=True):
            loaded, began = self.loading, time.perf_counter()
            rows, tokens = self.work(str(shard), *self.tasks[int(number)])
            loading = self.loading - loaded
            memory = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
            row = (int(number), rows, tokens, time.perf_counter() - began - loading, loading, memory)
            for column, value in zip(done.values(), row, strict=True):
                column.append(value)
        return done


@contextmanager
def progress(
    name: str, total: int | None, done: int = 0, unit: str = "docs", quiet: bool = False
) -> Iterator[tqdm[Any]]:
    """One stage's progress bar, on standard error."""
    import sys

    from tqdm import tqdm

    interval = 0.2 if sys.stderr.isatty() else 5.0  # a log file wants few lines
    with tqdm(total=total, initial=done, desc=f"{name:<9}", unit=unit, mininterval=interval, disable=quiet) as bar:
        yield bar


def quiet_ray_data() -> DataContext:
    """Settings of this process's Ray Data: no notices of its own, and a worker's own error reaches the caller."""
    from ray.data import DataContext

    logging.getLogger("ray.data").setLevel(logging.ERROR)  # importing ray.data sets it; its notices are not news
    context = DataContext.get_current()
    context.enable_progress_bars = False
    context.print_on_execution_start = False
    context.raise_original_map_exception = True
    context.issue_detectors_config.detectors = []  # they warn of a slow operator; a language model is one
    return context


def map_shards(
    source: Output,
    tasks: Sequence[tuple[ShardTask, Output]],
    worker: type[ShardWorker],
    worker_arguments: dict[str, Any],
    resources: dict[str, Any],
    actors: int,
    rows_of: Callable[[str], int],
    quiet: bool = False,
) -> dict[str, Spent]:
    """Run every task on every shard of `source` that its output lacks, in actors on Ray Data.

    Ray Data carries the shards' names; an actor reads, computes and writes them itself. So a killed actor or driver
    loses the shards in hand and no more, nothing large passes through the object store, and all tasks share one
    loaded engine. `worker(source, tasks, **worker_arguments)` is called with batches {"shard": [...], "task": [...]}.
    There are as many actors as there is work for, up to `actors`. Returns, for each output, what its workers took.
    Raises BuildError with the worker's own words.
    """
    import ray
    from ray.data import ActorPoolStrategy

    with ThreadPoolExecutor() as pool:  # a store lists 100,000 shards in some seconds: all folders at once
        everything, *found = pool.map(Output.shards, [source, *(output for _, output in tasks)])
    missing: list[dict[str, Any]] = []
    done = [0] * len(tasks)
    for number, there in enumerate(map(set, found)):
        missing += [{"shard": shard, "task": number} for shard in everything if shard not in there]
        done[number] = sum(rows_of(shard) for shard in everything if shard in there)
    spent = {output.name: Spent() for _, output in tasks}
    if not missing:
        return spent
    missing.sort(key=lambda item: (item["shard"], item["task"]))  # both outputs of a shard from one reading
    quiet_ray_data()
    work = ray.data.from_items(missing, override_num_blocks=len(missing)).map_batches(
        worker,
        fn_constructor_args=(source, list(tasks)),
        fn_constructor_kwargs=worker_arguments,
        batch_size=1,
        compute=ActorPoolStrategy(min_size=1, max_size=min(actors, len(missing))),
        **resources,
    )
    total = sum(rows_of(shard) for shard in everything)
    names = " + ".join(output.name for _, output in tasks)
    started, tokens = time.monotonic(), 0
    try:
        with progress(names, total * len(tasks), sum(done), unit="rows", quiet=quiet) as bar:
            for row in work.iter_rows():
                shard = Spent(row["rows"], row["tokens"], row["loading"], row["memory"], [row["seconds"]])
                spent[tasks[row["task"]][1].name].add(shard)
                tokens += row["tokens"]
                if tokens:
                    bar.set_postfix_str(f"{tokens / (time.monotonic() - started):.0f} tok/s", refresh=False)
                bar.update(row["rows"])
    except ray.exceptions.RayError as error:
        raise BuildError(f"writing {names} failed: {last_line(error)}; run the same command again to go on") from error
    return spent


def last_line(error: BaseException) -> str:
    """What the worker said, without the remote traceback and the advice that Ray adds."""
    cause = getattr(error, "cause", None) or error
    words = str(cause).partition("\nFailed to apply UDF")[0]
    lines = [line.strip() for line in words.splitlines() if line.strip()]
    return lines[-1] if lines else type(cause).__name__
