"""`zerogr train`: one of the three fine-tunings from files of rows, published as a LoRA adapter (or a whole model)."""

from __future__ import annotations

import json
import shlex
import shutil
import tempfile
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

from zerogr_ray import adapters
from zerogr_ray.cluster import asked_of, cluster_nodes, ray_cluster, refuse_lacking, shared
from zerogr_ray.config import (
    DEFAULT_INSTRUCTION,
    DEFAULT_MODEL,
    DocIdConfig,
    QueryConfig,
    Strict,
    TrainingConfig,
    dotted,
    make_config,
)
from zerogr_ray.errors import BuildError, InputError
from zerogr_ray.models import find_model, load_format
from zerogr_ray.published import publish_folder, refuse_other
from zerogr_ray.s3 import is_url, place_of
from zerogr_ray.store import Folder, as_json, key_of
from zerogr_ray.training.checkpoints import Product, read_log
from zerogr_ray.training.copies import workplace
from zerogr_ray.training.fit import NOT_RESULTS, bar_of_steps, fit
from zerogr_ray.training.tasks import LearnDocIds, LearnQueries, Retrieve, Task
from zerogr_ray.training.triples import Triples, learning_rows, read_triples, with_answers, write_rows

TaskName = Literal["queries", "docids", "retriever"]


class FinetuneConfig(Strict):
    """What `zerogr train` can be told with --set."""

    model: str = DEFAULT_MODEL
    """The base model: Hugging Face name, local folder, or packaged model."""
    instruction: str = DEFAULT_INSTRUCTION
    """The retrieval task of rows that bring none."""
    docids: DocIdConfig = DocIdConfig(examples=0)
    queries: QueryConfig = QueryConfig(examples=0)
    training: TrainingConfig = TrainingConfig(method="lora", average=1)


def finetune_config(settings: dict[str, Any]) -> FinetuneConfig:
    """The configuration with these settings (dotted keys). Raises InputError.

    A fine-tuned generator needs no worked examples in its prompt, a folder of a few MB is what is asked for, and what
    it learns is the task itself: nothing of what it knew before is to be had back.
    """
    defaults = {"queries.examples": 0, "docids.examples": 0, "training.method": "lora", "training.average": 1}
    if settings.get("training.method", "lora") == "lora":
        defaults["training.learning_rate"] = 1e-3
    return make_config(FinetuneConfig, {}, {**defaults, **settings})


@dataclass(frozen=True)
class FinetuneReport:
    """What a fine-tuning did."""

    out: str
    task: str
    examples: int
    held_out: int
    rejected: int
    rejects: str
    """Where the rejected rows are; "" if there are none."""
    steps: int
    loss: float
    validation_loss: float | None
    best_step: int
    rows: dict[str, int] = field(default_factory=dict)
    """Rows by their task."""


def finetune(
    task: TaskName,
    data: Sequence[str],
    out: str | Path,
    config: FinetuneConfig | None = None,
    without: Sequence[str] = (),
    most: int | None = None,
    licence: str = "not given",
    quiet: bool = False,
) -> FinetuneReport:
    """Fine-tune for `task` on the rows of `data` and publish the folder `out`; work in progress stays in OUT.work.

    `out` may be under s3://. Interrupted at any moment and called again, it goes on from its last checkpoint. Raises
    InputError for rows and paths that cannot be used, ModelError for the model, BuildError where training cannot go on.
    """
    cfg, target = config or FinetuneConfig(), place_of(out)
    _check_training(cfg.training)
    _check_target(target)
    triples = read_triples(data, cfg.instruction, without, most)
    base = find_model(cfg.model)
    columns, rows = learning_rows(task, triples.kept)
    rows, unwritable = with_answers(columns, rows, load_format(base).tokens)
    gone = {(row.file, row.line) for row in unwritable}
    kept = [row for row in triples.kept if (row.file, row.line) not in gone]
    triples = replace(triples, kept=kept, rejected=[*triples.rejected, *unwritable])
    learns: dict[str, Task] = {
        "queries": LearnQueries(cfg.queries),
        "docids": LearnDocIds(cfg.docids),
        "retriever": Retrieve(None, cfg.training.query_tokens),
    }
    product: Product = "adapter" if cfg.training.method == "lora" else "model"
    about = {
        "format": adapters.FORMAT,
        "task": task,
        "base": adapters.describe_base(cfg.model, base),
        "settings": learns[task].settings(),
        "training": cfg.training.model_dump(exclude=NOT_RESULTS),
        "rows": dict(sorted(Counter(row.task for row in triples.kept).items())),
    }
    work = Folder(f"{target}.work")
    key = key_of(about, columns, [row.values for row in rows])
    place = work / f"{task}-{key}"
    with workplace(str(place)) as (folder, copies):
        files = write_rows(folder / "rows", columns, rows, cfg.training)
        if copies is not None:
            place.upload(folder)
        shards, held = ([place.url_of(f"rows/{file.name}") for file in some] for some in files)
        rejects = _write_rejects(work, triples)
        with ray_cluster():
            training = cfg.training.model_copy(update={"gpus": _gpus(cfg.training)})
            refuse_lacking(asked_of(training), cluster_nodes())
            if copies is None:
                shared("the work folder", folder, work)
            seen, where = shared("model", base, work), place.url_of("training")
            with bar_of_steps(quiet) as show:
                made = fit(seen, shards, learns[task], training, where, show, held, product=product, buffer_rows=1)
        log = read_log(made.parent)
        report = _report(task, target, log, len(rows), triples, rejects, files[1])
    about["result"] = {
        name: getattr(report, name) for name in ("steps", "loss", "validation_loss", "best_step", "examples")
    }
    command = as_command(task, data, str(out), cfg, without, most, licence)
    _publish(target, made, about, model_card(about, log, triples, data, without, licence, command), key)
    return report


def as_command(
    task: str,
    data: Sequence[str],
    out: str,
    cfg: FinetuneConfig,
    without: Sequence[str],
    most: int | None,
    licence: str,
) -> str:
    """The command that trains this again, with files by their names and the settings that are not the usual ones."""
    parts = ["zerogr", "train", task, *(Path(path).name for path in data), Path(out).name]
    parts += [word for name in without for word in ("--without", name)]
    parts += ["--most", str(most)] if most is not None else []
    parts += ["--licence", licence] if licence != "not given" else []
    usual = dict(dotted(finetune_config({}).model_dump()))
    for name, value in dotted(cfg.model_dump()):
        if value != usual.get(name):
            parts += ["--set", f"{name}={value if isinstance(value, str) else json.dumps(value)}"]
    return shlex.join(parts)


def model_card(
    about: dict[str, Any],
    log: list[dict[str, Any]],
    triples: Triples,
    data: Sequence[str],
    without: Sequence[str],
    licence: str,
    command: str,
) -> str:
    """README.md of the folder: what it is, what it was and was not trained on, how it went."""
    result, training = about["result"], about["training"]
    does = {
        "queries": "writes search queries for a document",
        "docids": "writes the docid of a document",
        "retriever": "answers a query with docids; a retriever's training begins from it",
    }
    files = ", ".join(Path(path).name for path in data)
    curve = [row for row in log if "validation_loss" in row]
    by_task = "\n".join(f"| {name} | {count} |" for name, count in about["rows"].items())
    left_out = ", ".join(f"{name} ({triples.left_out[name]} rows)" for name in without) or "nothing was left out"
    measured = "\n".join(f"| {row['step']} | {row['loss']:.3f} | {row['validation_loss']:.3f} |" for row in curve)
    method = (
        "every weight"
        if training["method"] == "full"
        else (f"LoRA, rank {training['lora_rank']}, alpha {training['lora_alpha']}, all linear layers but the output")
    )
    best = f"step {result['best_step']}" if result["best_step"] else "the last step: nothing was held out"
    return f"""# {about["base"]["name"]}, fine-tuned: {about["task"]}

It {does[about["task"]]}, for generative retrieval with zerogr_ray.
Base model: {about["base"]["name"]} (weights {about["base"]["weights"]}). Trained: {method}.
Licence: {licence}.

## Data
From {files}; {result["examples"]} examples; {len(triples.rejected)} rows were rejected.

| task | rows |
|---|--:|
{by_task}

Not trained on: {left_out}. Any other collection is unseen too, unless its texts are among the rows above.

## Training
```
{command}
```

{result["steps"]} steps of {training["batch_examples"]} examples, peak learning rate {training["learning_rate"]:g}, \
seed {training["seed"]}. Published: the state with the lowest loss on documents that training never saw ({best}).

| step | training loss | held-out loss |
|--:|--:|--:|
{measured or f"| {result['steps']} | {result['loss']:.3f} | – |"}

Prompt settings, which its use must share: {json.dumps(about["settings"], ensure_ascii=False)}
"""


def _gpus(cfg: TrainingConfig) -> float:
    import ray

    return cfg.gpus if cfg.gpus is not None else (1.0 if ray.cluster_resources().get("GPU", 0) >= 1 else 0.0)


def _report(
    task: str,
    target: str,
    log: list[dict[str, Any]],
    examples: int,
    triples: Triples,
    rejects: str,
    held: list[Path],
) -> FinetuneReport:
    import pyarrow.parquet as pq

    measured = [row for row in log if "validation_loss" in row]
    best = min(measured, key=lambda row: row["validation_loss"]) if measured else None
    apart = sum(pq.read_metadata(path).num_rows for path in held)
    return FinetuneReport(
        out=target,
        task=task,
        examples=examples - apart,
        held_out=apart,
        rejected=len(triples.rejected),
        rejects=rejects,
        steps=log[-1]["step"],
        loss=log[-1]["loss"],
        validation_loss=best["validation_loss"] if best else None,
        best_step=best["step"] if best else 0,
        rows=dict(Counter(row.task for row in triples.kept)),
    )


def _write_rejects(work: Folder, triples: Triples) -> str:
    if not triples.rejected:
        return ""
    rows = [{"file": r.file, "line": r.line, "reason": r.reason, "row": r.row} for r in triples.rejected]
    lines = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
    work.write("rejected/rows.jsonl", lines.encode())
    return work.url_of("rejected/rows.jsonl")


def _check_training(cfg: TrainingConfig) -> None:
    if not cfg.epochs:
        raise InputError("training.epochs=0 trains nothing; give more")
    if cfg.rerank_every:
        raise InputError(
            f"training.rerank_every={cfg.rerank_every} wants wrong docids beside each right one, which rows do not "
            "have; leave it out here, and give it to zerogr index"
        )


def _check_target(target: str) -> None:
    if is_url(target):
        refuse_other(target, adapters.ABOUT)
    elif Path(target).exists() and not (Path(target) / adapters.ABOUT).exists():
        raise BuildError(f"{target} exists and was not written by zerogr train; give another path or remove it")


def _publish(out: str, made: Path, about: dict[str, Any], card: str, key: str) -> None:
    """Copy the product and what describes it to `out`, whole or not at all."""
    if is_url(out):
        with tempfile.TemporaryDirectory(prefix="zerogr-train-") as folder:
            _assemble(Path(folder), made, about, card)
            publish_folder(out, Path(folder), key, adapters.ABOUT)
        return
    target = Path(out)
    target.parent.mkdir(parents=True, exist_ok=True)
    building = Path(tempfile.mkdtemp(dir=target.parent, prefix=f".{target.name}-building-"))
    try:
        _assemble(building, made, about, card)
        building.chmod(0o755)
        if target.exists():
            old = building.with_name(building.name + "-old")
            target.rename(old)
            building.rename(target)
            shutil.rmtree(old)
        else:
            building.rename(target)
    finally:
        shutil.rmtree(building, ignore_errors=True)


def _assemble(folder: Path, made: Path, about: dict[str, Any], card: str) -> None:
    shutil.copytree(made, folder, copy_function=shutil.copyfile, dirs_exist_ok=True)  # others may read it too
    (folder / "README.md").write_text(card, encoding="utf-8")
    (folder / adapters.ABOUT).write_bytes(as_json(about))
