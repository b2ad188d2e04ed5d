"""`zerogr index` with a journal of what its workers begin, and one moment at which it waits for a fault.

    python -m tests.recovery.watched index CORPUS OUT ...

Nothing of the work is changed. $RECOVERY_WATCH is a folder of the machine that all processes see:

    journal.jsonl   a line for whatever is begun: stage, what, rows, process
    hold            name of the stage that shall stop in the middle, once
    held            the process that has stopped there, with its work done and not yet committed
    go              it may go on
"""

from __future__ import annotations

import json
import os
import time
from pathlib import Path
from typing import Any

from zerogr_ray.decoding import priors
from zerogr_ray.decoding.priors import Calibrator
from zerogr_ray.generation.writer import Writer
from zerogr_ray.judge import Judge
from zerogr_ray.published import POINTER
from zerogr_ray.store import Folder
from zerogr_ray.training import fit

WATCH = "RECOVERY_WATCH"
PATIENCE = 300
"""Seconds that a held process waits at most."""

TRIE_ROWS = 16
"""Docids of a shard whose priors are measured; 4096 outside."""


STEPS = 5
"""Steps after a checkpoint at which a training is held."""


def note(stage: str, what: str, rows: int) -> None:
    """Write down that this process begins something."""
    line = {"stage": stage, "what": what, "rows": rows, "process": os.getpid()}
    with (Path(os.environ[WATCH]) / "journal.jsonl").open("a") as journal:
        journal.write(json.dumps(line) + "\n")


def held(stage: str) -> bool:
    """Whether the stage shall be held and has not been yet."""
    watch = Path(os.environ[WATCH])
    return not (watch / "held").exists() and (watch / "hold").read_text() == stage


def hold(stage: str) -> None:
    """Wait here if this is where to wait, until the fault is there."""
    if not held(stage):
        return
    watch = Path(os.environ[WATCH])
    mark = watch / f"held.{os.getpid()}"
    mark.write_text(str(os.getpid()))
    try:
        os.link(mark, watch / "held")
    except FileExistsError:
        return
    until = time.monotonic() + PATIENCE
    while not (watch / "go").exists() and time.monotonic() < until:
        time.sleep(0.02)


class WatchedTask:
    """A task that notes the shards it begins and can be held between one that is computed and its commit."""

    def __init__(self, task: Any, output: Any) -> None:
        self.task, self.output = task, output

    def __getattr__(self, name: str) -> Any:
        return getattr(self.task, name)

    def __call__(self, documents: Any, engine: Any) -> Any:
        stage = {"priors": "trie"}.get(self.output.name, self.output.name)
        note(stage, documents["docno"][0].as_py(), documents.num_rows)
        made = self.task(documents, engine)
        if self.output.shards():  # at least one is done
            hold(stage)
        return made


def watched(tasks: Any) -> list[Any]:
    return [(WatchedTask(task, output), output) for task, output in tasks]


class WatchedWriter(Writer):
    def __init__(self, source: Any, tasks: Any, **more: Any) -> None:
        super().__init__(source, watched(tasks), **more)


class WatchedCalibrator(Calibrator):
    def __init__(self, source: Any, tasks: Any, **more: Any) -> None:
        super().__init__(source, watched(tasks), **more)


class WatchedJudge(Judge):
    ways = 0

    def measure(self, cfg: Any) -> float:
        note("judge", json.dumps(cfg.model_dump()), len(self.queries))
        measured = super().measure(cfg)
        self.ways += 1
        if self.ways > 1:
            hold("judge")
        return measured


class WatchedFolder(Folder):
    """Where an index is published: held when all its files are there and only current.json is missing."""

    def upload(self, folder: Path, last: str = "") -> None:
        note("publish", folder.name, json.loads((folder / last).read_text())["documents"])
        super().upload(folder, last)

    def swap(self, name: str, data: bytes, seen: str | None) -> bool:
        if name == POINTER:
            hold("publish")
        return super().swap(name, data, seen)

    def __truediv__(self, name: str) -> Folder:
        return WatchedFolder(self.url_of(name))


def watched_worker(job: dict[str, Any]) -> None:
    """A worker of Ray Train that notes its steps and can be held some steps after its first copied checkpoint."""
    from zerogr_ray.training import loop

    train = loop.train

    def watched_train(model: Any, stream: Any, cfg: Any, folder: Path, report: Any, *others: Any, **more: Any) -> Any:
        def noted(row: dict[str, Any]) -> None:
            note("training", str(row["step"]), cfg.batch_examples)
            if held("training"):
                kept = more["copies"].folder.names("checkpoint-", ".json")
                if kept and row["step"] >= int(kept[-1][len("checkpoint-") : -len(".json")]) + STEPS:
                    hold("training")
            report(row)

        return train(model, stream, cfg, folder, noted, *others, **more)

    loop.train = watched_train
    try:
        fit._worker(job)
    finally:
        loop.train = train


def main() -> None:
    """The command, its workers watched."""
    from zerogr_ray import build, cli, judge, published

    build.Writer = WatchedWriter
    priors.Calibrator, priors.SHARD_ROWS = WatchedCalibrator, TRIE_ROWS
    judge.Judge = WatchedJudge
    published.Folder = WatchedFolder
    # By its importable name: the workers have this module too, and their own fit is as it was.
    from tests.recovery import watched as importable

    fit._worker = importable.watched_worker
    cli.main()


if __name__ == "__main__":
    from tests.recovery.watched import main as importable_main

    importable_main()
