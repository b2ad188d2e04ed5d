"""The training loop on Ray Train: workers, restarts and live progress. What is trained and how is loop.py's business.

Checkpoints are the loop's own, in `folder`, which all workers must see, or copied there if it is a URL. So a worker
that dies costs what it did since the last checkpoint (Ray Train starts the group anew), and a driver that dies costs
as much: call `fit` again.
"""

from __future__ import annotations

import hashlib
import json
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from zerogr_ray.cache import here
from zerogr_ray.cluster import cores
from zerogr_ray.config import TrainingConfig
from zerogr_ray.errors import BuildError, ZeroGRError
from zerogr_ray.models import fingerprint as model_fingerprint
from zerogr_ray.s3 import is_url, place_of
from zerogr_ray.stage import progress
from zerogr_ray.store import Folder
from zerogr_ray.training.checkpoints import Product, finished
from zerogr_ray.training.copies import Copies, fetched, workplace
from zerogr_ray.training.examples import BUFFER_ROWS
from zerogr_ray.training.tasks import Task

MAX_FAILURES = 3
"""Lost workers that one call survives."""

NOT_RESULTS = {"pack_tokens", "checkpoint_seconds", "workers", "cpus", "gpus", "resources", "labels"}
"""Settings that change how fast the training runs, not what comes out."""


@contextmanager
def bar_of_steps(quiet: bool) -> Iterator[Callable[[dict[str, Any]], None]]:
    """A progress bar on standard error, and the `on_progress` for `fit` that moves it."""
    with progress("training", None, unit="steps", quiet=quiet) as bar:

        def show(state: dict[str, Any]) -> None:
            bar.total = state["steps"]
            bar.set_postfix_str(
                f"loss {state['loss']:.2f}, {state['tokens_per_second']:.0f} tok/s, epoch {state['epoch']:.1f}",
                refresh=False,
            )
            bar.update(state["step"] - bar.n)

        yield show


def fit(
    model: str | Path,
    shards: Sequence[str | Path],
    task: Task,
    cfg: TrainingConfig,
    folder: str | Path,
    on_progress: Callable[[dict[str, Any]], None],
    held_out: Sequence[str | Path] = (),
    beside: Sequence[str | Path] = (),
    product: Product = "model",
    buffer_rows: int = BUFFER_ROWS,
) -> Path:
    """Train `model` on `shards` and return `folder/model`, or `folder/adapter`; Ray must be initialised.

    All of them may be URLs: every worker has its own copy then, and what is returned is this machine's.
    `held_out` are shards for early stop; `beside` holds for each shard a file with wrong docids, for rerank steps;
    `buffer_rows` is as for ExampleStream. `on_progress` is called in this process with each step's report. A product
    that the same call has finished before is returned at once. Raises BuildError with the worker's own words.
    """
    # By their whole paths: Ray Train changes its workers' directory.
    data = _Data(
        place_of(model),
        sorted(map(place_of, shards)),
        sorted(map(place_of, held_out)),
        sorted(map(place_of, beside)),
    )
    place = place_of(folder)
    found = data.here()
    fingerprint = training_fingerprint(found.model, [*found.shards, *found.held_out, *found.beside], task, cfg)
    if done := _done(place, fingerprint, product):
        return done
    from ray.train import FailureConfig, LoggingConfig, RunConfig, ScalingConfig, TrainingFailedError

    storage = Folder(place) / "ray"
    with _Progress(on_progress) as reports:
        trainer = _quiet_trainer()(
            _worker,
            train_loop_config={
                "data": data,
                "task": task,
                "buffer_rows": buffer_rows,
                "product": product,
                "cfg": cfg,
                "folder": place,
                "fingerprint": fingerprint,
                "progress": reports.actor,
            },
            scaling_config=ScalingConfig(
                num_workers=cfg.workers,
                use_gpu=bool(cfg.gpus),
                resources_per_worker={"CPU": cfg.cpus, **({"GPU": cfg.gpus} if cfg.gpus else {}), **cfg.resources},
                label_selector=cfg.labels or None,
            ),
            run_config=RunConfig(
                name=f"train-{fingerprint}",
                **_storage(storage),
                failure_config=FailureConfig(max_failures=MAX_FAILURES),
                logging_config=LoggingConfig(log_level="ERROR"),
                worker_runtime_env={"env_vars": {} if cfg.gpus else _on_cpus()},
            ),
        )
        try:
            trainer.fit()
        except TrainingFailedError as error:
            if not reports.last_word():
                raise BuildError(f"training failed: {_reason(error)}") from error
        finally:
            storage.delete()  # Ray Train's own notes; ours are in the checkpoints
        if refusal := reports.last_word():
            raise BuildError(refusal)
    if done := _done(place, fingerprint, product):
        return done
    raise BuildError(f"training ended, but {place}/{product} is not there; all workers must see the same {place}")


def _on_cpus() -> dict[str, str]:
    """Environment of a worker that trains on CPUs: what libraries read before they can be told otherwise."""
    return {
        "OMP_NUM_THREADS": str(cores()),  # Ray gives a process 1
        "MALLOC_ARENA_MAX": "1",  # the training's thread would get an arena that no large block comes from (memory.py)
        "THP_MEM_ALLOC_ENABLE": "1",  # torch asks for huge pages
    }


def _done(folder: str, fingerprint: str, product: Product) -> Path | None:
    """The product, if a run of this fingerprint has finished in `folder`."""
    if is_url(folder):
        return Copies(folder).finished(fingerprint, product)
    return finished(Path(folder), fingerprint, product)


def _storage(folder: Folder) -> dict[str, Any]:
    """Where Ray Train's controller and workers meet; under s3:// by the same settings as everything else."""
    if folder.local:
        return {"storage_path": folder.path}
    from pyarrow.fs import FSSpecHandler, PyFileSystem

    return {"storage_path": folder.path, "storage_filesystem": PyFileSystem(FSSpecHandler(folder.fs))}


@dataclass(frozen=True)
class _Data:
    """What a training reads, by paths or URLs."""

    model: str
    shards: list[str]
    held_out: list[str]
    beside: list[str]

    def here(self) -> _Files:
        """The same on this machine."""
        return _Files(
            here(self.model),
            fetched(self.shards),
            fetched(self.held_out),
            fetched(self.beside),
        )


class _Files(NamedTuple):
    """What a training reads, on one machine."""

    model: Path
    shards: list[Path]
    held_out: list[Path]
    beside: list[Path]


def training_fingerprint(model: Path, shards: Sequence[Path], task: Task, cfg: TrainingConfig) -> str:
    """Changes with whatever changes the trained weights: base model, examples, prompts, settings."""
    digest = hashlib.sha256(model_fingerprint(model).encode())
    about = [task.name, task.settings(), cfg.model_dump(exclude=NOT_RESULTS)]
    digest.update(json.dumps(about, sort_keys=True).encode())
    for shard in shards:
        digest.update(shard.name.encode())
        with shard.open("rb") as file:
            digest.update(hashlib.file_digest(file, "sha256").digest())
    return digest.hexdigest()[:16]


def _worker(job: dict[str, Any]) -> None:
    """What runs on each Ray Train worker."""
    import ray
    import ray.train
    import ray.train.torch
    import torch
    from transformers.utils import logging as transformers_logging

    from zerogr_ray.models import load_format, load_model
    from zerogr_ray.training.examples import ExampleStream
    from zerogr_ray.training.loop import train

    context, cfg, progress = ray.train.get_context(), job["cfg"], job["progress"]
    rank, world = context.get_world_rank(), context.get_world_size()
    if ray.get(progress.refused.remote()):
        return
    transformers_logging.disable_progress_bar()  # a bar in a worker is noise on the driver's terminal
    if not cfg.gpus:  # Ray allows one thread per reserved CPU; let this node's workers share all its cores
        torch.set_num_threads(max(1, cores() // context.get_local_world_size()))
    device = str(ray.train.torch.get_device()) if cfg.gpus else "cpu"

    def report(row: dict[str, Any]) -> None:
        if rank == 0:
            progress.put.remote(row)

    try:
        files = job["data"].here()
        model = load_model(files.model, "float32", device)
        stream = ExampleStream(
            files.shards,
            job["task"],
            load_format(files.model),
            cfg,
            beside=files.beside,
            buffer_rows=job["buffer_rows"],
        )
        more = {"fingerprint": job["fingerprint"], "held_out": files.held_out, "product": job["product"]}
        with workplace(job["folder"]) as (folder, copies):
            train(model, stream, cfg, folder, report, rank, world, copies=copies, **more)
    except ZeroGRError as error:
        # Another attempt would end the same way. Alone, end quietly so that Ray Train makes none; among others, fail:
        # they wait for this rank, and the next attempt ends as soon as it sees the refusal.
        ray.get(progress.refuse.remote(str(error)))
        if world > 1:
            raise


class _Board:
    """An actor on which rank 0 leaves its reports and the driver picks them up."""

    def __init__(self) -> None:
        self._rows: list[dict[str, Any]] = []
        self._refusal = ""

    def put(self, row: dict[str, Any]) -> None:
        self._rows.append(row)

    def take(self) -> list[dict[str, Any]]:
        rows, self._rows = self._rows, []
        return rows

    def refuse(self, why: str) -> None:
        self._refusal = self._refusal or why

    def refused(self) -> str:
        return self._refusal


class _Progress:
    """Carries reports from the workers to `on_progress`, in a thread of the driver, while the block runs."""

    def __init__(self, on_progress: Callable[[dict[str, Any]], None]) -> None:
        import ray
        from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

        # On the driver's own node: no other node can take it along when it dies.
        here = NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=False)
        self.actor: Any = ray.remote(num_cpus=0, scheduling_strategy=here)(_Board).remote()
        self._on_progress = on_progress
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._carry, name="training-progress", daemon=True)

    def __enter__(self) -> _Progress:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        import ray

        self._over.set()
        self._thread.join()
        ray.kill(self.actor)

    def last_word(self) -> str:
        """Why the training was refused; "" where it was not."""
        import ray

        return str(ray.get(self.actor.refused.remote()))

    def _carry(self) -> None:
        import ray
        from ray.exceptions import RayError

        over = False
        while not over:
            over = self._over.wait(0.2)  # once more after the end, for what is left
            try:
                rows = ray.get(self.actor.take.remote())
            except RayError:
                return  # Ray is going down; the training's own error is the one to see
            for row in rows:
                self._on_progress(row)


def _quiet_trainer() -> Any:
    """TorchTrainer without the callback that asks the dashboard every second whether the controller still lives.

    Where Ray runs without its dashboard that callback only repeats "Failed to query Ray Train Controller actor state".
    It would free the workers of a controller that died alone; without it they are freed when the driver ends.
    """
    from ray.train.torch import TorchTrainer

    class QuietTrainer(TorchTrainer):  # type: ignore[misc]
        def _create_default_callbacks(self) -> list[Any]:
            callbacks = super()._create_default_callbacks()
            return [callback for callback in callbacks if type(callback).__name__ != "PlacementGroupCleanerCallback"]

    return QuietTrainer


def _reason(error: Exception) -> str:
    """The worker's own message, without Ray's stack around it."""
    failures = getattr(error, "worker_failures", None)
    first = next(iter(failures.values()), error) if failures else error
    lines = [line.strip() for line in str(first).splitlines() if line.strip()]
    return lines[-1] if lines else repr(first)
