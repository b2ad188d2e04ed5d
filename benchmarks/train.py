"""Training speed: our loop beside a plain padded Hugging Face Trainer, and under Ray Train beside itself.

The same model, examples, batches, optimizer and schedule. Prints JSON: tokens (of the examples, unpadded) and examples
per second over the last steps, both loss curves, and what the README claims of them.

    python -m benchmarks.train ../shared/data/train_pools/triples.jsonl --only scifact     # 2 cores: 30 minutes
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np

from zerogr_ray.cluster import cores, ray_cluster
from zerogr_ray.config import DEFAULT_INSTRUCTION, DEFAULT_MODEL, TrainingConfig
from zerogr_ray.models import find_model, hush, load_format, load_model, pick_dtype
from zerogr_ray.training.checkpoints import read_log
from zerogr_ray.training.examples import Example, ExampleStream
from zerogr_ray.training.fit import fit
from zerogr_ray.training.loop import SPEED_STEPS, learning_rate, train
from zerogr_ray.training.tasks import Retrieve
from zerogr_ray.training.triples import learning_rows, read_triples, write_rows

FASTER = 2.0
KEPT_UNDER_RAY = 0.9
SAME_LOSS = 0.05
"""Mean over the steps of the difference between the two losses, as a share of their mean."""


def main() -> None:
    """Run all three and print one JSON object."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", help="jsonl of training triples")
    parser.add_argument("--only", default="scifact", help="the task whose rows are used")
    parser.add_argument("--model", default=DEFAULT_MODEL)
    parser.add_argument("--steps", type=int, default=30)
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--out", type=Path, help="also write the JSON here")
    args = parser.parse_args()
    hush()
    result = measure(args.data, args.only, find_model(args.model), args.model, args.steps, args.batch)
    text = json.dumps(result, indent=1)
    print(text)
    if args.out:
        args.out.write_text(text + "\n")


def measure(data: str, only: str, model: Path, name: str, steps: int, batch: int) -> dict[str, Any]:
    """All figures. Each of the three trains the base model from the start."""
    import torch

    torch.set_num_threads(cores())
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        triples = [row for row in read_triples([data], DEFAULT_INSTRUCTION).kept if row.task == only]
        columns, rows = learning_rows("retriever", triples)
        base = TrainingConfig(batch_examples=batch, checkpoint_seconds=1e9, held_out=0, cpus=1)
        cfg = base.model_copy(update={"epochs": steps * batch / len(rows)})
        # One instruction for all, as when an index is built: the stream renders it into every prompt.
        shards, _ = write_rows(folder / "rows", columns, rows, cfg)
        task = Retrieve(triples[0].instruction, cfg.query_tokens)
        stream = ExampleStream(shards, task, load_format(model), cfg)
        batches = list(stream.step_batches())
        lengths = [len(e.prompt) + len(e.answer) for step in batches for e in step]

        plain = huggingface(model, batches, cfg, stream.steps, folder / "hf")
        ours = our_loop(model, stream, cfg, folder / "ours")
        under_ray = our_loop_under_ray(model, shards, task, cfg, folder / "ray")
    tokens = float(np.mean(lengths))
    for figures in (plain, ours, under_ray):
        figures["tokens_per_second"] = round(figures["examples_per_second"] * tokens, 1)
    difference = np.abs(np.array(plain["losses"]) - np.array(ours["losses"]))
    return {
        "machine": {"cores": cores(), "dtype": str(pick_dtype("auto", ours.pop("device"))), "load": os.getloadavg()[0]},
        "model": name,
        "data": f"{Path(data).name}: {only}",
        "steps": stream.steps,
        "batch_examples": batch,
        "tokens_per_example": round(tokens, 1),
        "huggingface_trainer": plain,
        "our_loop": ours,
        "our_loop_under_ray_train": under_ray,
        "times_faster": round(ours["examples_per_second"] / plain["examples_per_second"], 2),
        "kept_under_ray": round(under_ray["examples_per_second"] / ours["examples_per_second"], 3),
        "loss_difference": {"mean": float(difference.mean()), "most": float(difference.max())},
        "reached": {
            "faster": ours["examples_per_second"] >= FASTER * plain["examples_per_second"],
            "same_loss": bool(difference.mean() <= SAME_LOSS * np.mean(plain["losses"])),
            "under_ray": under_ray["examples_per_second"] >= KEPT_UNDER_RAY * ours["examples_per_second"],
        },
    }


def our_loop(model: Path, stream: ExampleStream, cfg: TrainingConfig, folder: Path) -> dict[str, Any]:
    """The loop in this process."""
    loaded = load_model(model, "float32")
    spent = [time.process_time()]

    def report(row: dict[str, Any]) -> None:
        spent.append(time.process_time())
        tell("our loop", row["step"], row["steps"])

    train(loaded, stream, cfg, folder, report)
    return {**_of_log(folder), "cpu_seconds": _cpu(spent), "device": loaded.device.type}


def our_loop_under_ray(
    model: Path, shards: list[Path], task: Retrieve, cfg: TrainingConfig, folder: Path
) -> dict[str, Any]:
    """The same through Ray Train, one worker."""
    import torch

    with ray_cluster():
        gpus = 1.0 if torch.cuda.is_available() else 0.0
        fit(model, shards, task, cfg.model_copy(update={"gpus": gpus}), folder, lambda row: tell("ray", row["step"], 0))
    return _of_log(folder)


def huggingface(
    model: Path, batches: list[list[Example]], cfg: TrainingConfig, steps: int, folder: Path
) -> dict[str, Any]:
    """A plain Trainer: padded batches, its own loss, our order of the examples and our learning rates."""
    import torch
    from torch.utils.data import SequentialSampler
    from transformers import Trainer, TrainerCallback, TrainingArguments

    loaded = load_model(model, "float32")
    optimizer = torch.optim.AdamW(loaded.parameters(), lr=cfg.learning_rate, weight_decay=cfg.weight_decay, fused=True)
    schedule = torch.optim.lr_scheduler.LambdaLR(
        optimizer, lambda done: learning_rate(done + 1, steps, cfg) / cfg.learning_rate
    )
    ended, spent = [time.perf_counter()], [time.process_time()]
    losses: list[float] = []

    class Watch(TrainerCallback):  # type: ignore[misc]
        def on_step_end(self, *_: Any, **__: Any) -> None:
            ended.append(time.perf_counter())
            spent.append(time.process_time())
            tell("huggingface", len(ended) - 1, steps)

        def on_log(self, _args: Any, _state: Any, _control: Any, logs: dict[str, float], **__: Any) -> None:
            if "loss" in logs:
                losses.append(logs["loss"])

    class InOrder(Trainer):  # type: ignore[misc]
        def _get_train_sampler(self, *_: Any) -> Any:
            return SequentialSampler(self.train_dataset)

    arguments = TrainingArguments(
        output_dir=str(folder),
        per_device_train_batch_size=cfg.batch_examples,
        max_steps=steps,
        max_grad_norm=cfg.clip,
        use_cpu=loaded.device.type == "cpu",
        bf16=pick_dtype("auto", loaded.device.type) is torch.bfloat16,
        logging_steps=1,
        save_strategy="no",
        report_to=[],
        disable_tqdm=True,
        remove_unused_columns=False,
    )
    trainer = InOrder(
        model=loaded,
        args=arguments,
        train_dataset=[e for step in batches for e in step],
        data_collator=padded,
        optimizers=(optimizer, schedule),
        callbacks=[Watch()],
    )
    trainer.remove_callback(_printer())
    trainer.train()
    measured = min(SPEED_STEPS, steps - 1)
    seconds = ended[-1] - ended[-1 - measured]
    examples = sum(len(step) for step in batches[steps - measured :])
    return {
        "examples_per_second": round(examples / seconds, 3),
        "cpu_seconds": _cpu(spent),
        "losses": [round(loss, 4) for loss in losses],
    }


def padded(examples: list[Example]) -> dict[str, Any]:
    """One padded batch with labels on the answers."""
    import torch

    width = max(len(e.prompt) + len(e.answer) for e in examples)
    ids = torch.zeros(len(examples), width, dtype=torch.long)
    mask, labels = torch.zeros_like(ids), torch.full_like(ids, -100)
    for row, e in enumerate(examples):
        whole = torch.tensor(e.prompt + e.answer)
        ids[row, : len(whole)], mask[row, : len(whole)] = whole, 1
        labels[row, len(e.prompt) : len(whole)] = torch.tensor(e.answer)
    return {"input_ids": ids, "attention_mask": mask, "labels": labels}


def _cpu(spent: list[float]) -> float:
    """CPU seconds of a step, all threads, over the steps that speed is measured on. Beside the wall time it says how
    busy the machine was with something else."""
    measured = min(SPEED_STEPS, len(spent) - 2)
    return round((spent[-1] - spent[-1 - measured]) / measured, 2)


def tell(what: str, step: int, steps: int) -> None:
    """Progress, on standard error."""
    print(f"{what}: step {step}" + (f" of {steps}" if steps else ""), file=sys.stderr, flush=True)


def _of_log(folder: Path) -> dict[str, Any]:
    rows = read_log(folder)
    return {"examples_per_second": rows[-1]["examples_per_second"], "losses": [round(r["loss"], 4) for r in rows]}


def _printer() -> Any:
    from transformers.trainer_callback import PrinterCallback

    return PrinterCallback


if __name__ == "__main__":
    main()
