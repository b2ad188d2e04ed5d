"""Fine-tuning as a plain torch loop. It runs on one process without Ray, and on many with torch.distributed."""

from __future__ import annotations

import json
import math
import time
from collections import deque
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from zerogr_ray.errors import BuildError
from zerogr_ray.models import pick_dtype
from zerogr_ray.training.batches import Pack, pack
from zerogr_ray.training.checkpoints import (
    checkpoint_path,
    load_checkpoint,
    publish_model,
    resume,
    rewind_log,
    save_checkpoint,
    trainable,
)
from zerogr_ray.training.losses import answer_loss

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedModel

    from zerogr_ray.config import TrainingConfig
    from zerogr_ray.training.examples import ExampleStream

Report = Callable[[dict[str, Any]], None]

SPEED_STEPS = 20
"""Steps over which the reported speed is averaged."""

WRITING_SHARE = 0.1
"""Share of the time that checkpoints may take; a large model on a slow disk gets them less often."""


@dataclass(frozen=True, slots=True)
class TrainResult:
    """What a finished training leaves: the model's folder, its steps, the loss of the last one, where it resumed."""

    model: Path
    steps: int
    loss: float
    resumed_at: int


def train(
    model: PreTrainedModel,
    stream: ExampleStream,
    cfg: TrainingConfig,
    folder: Path,
    report: Report,
    rank: int = 0,
    world: int = 1,
    fingerprint: str = "",
) -> TrainResult:
    """Train `model` (loaded in float32) on `stream`; goes on from the newest checkpoint of `fingerprint` in `folder`.

    Every rank calls it with the same arguments but its own `rank`, after torch.distributed has been initialised.
    Rank 0 writes checkpoints, log.jsonl and the model. Each step is reported, on every rank, as a dict with the keys
    step, steps, epoch, loss, tokens_per_second, examples_per_second, learning_rate.
    """
    import torch

    folder.mkdir(parents=True, exist_ok=True)
    parameters = list(trainable(model).values())
    optimizer = torch.optim.AdamW(parameters, lr=cfg.learning_rate, weight_decay=cfg.weight_decay, fused=True)
    start = _resume_together(folder, model, optimizer, fingerprint, rank, world)
    if rank == 0:
        rewind_log(folder, start)
    loss = math.nan
    cast = _autocast(model)
    speed, clock = Speed(), CheckpointClock(cfg.checkpoint_seconds)
    model.train()
    for step, examples in enumerate(stream.step_batches(start, rank, world), start=start + 1):
        torch.manual_seed(cfg.seed + step)  # dropout, where a model has it, is the same after a resume
        packs = pack(examples, cfg.pack_tokens)
        optimizer.param_groups[0]["lr"] = rate = learning_rate(step, stream.steps, cfg)
        loss, tokens = forward_backward(model, packs, cast, world, step)
        norm = torch.nn.utils.clip_grad_norm_(parameters, cfg.clip)
        if not torch.isfinite(norm):
            raise BuildError(_diverged("gradient", float(norm), step, packs))
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)

        done = min(step * cfg.batch_examples, stream.total)
        tokens_s, examples_s = speed.add(tokens, done - (step - 1) * cfg.batch_examples)
        row = {
            "step": step,
            "steps": stream.steps,
            "epoch": round(done / stream.size, 4),
            "loss": loss,
            "tokens_per_second": round(tokens_s, 1),
            "examples_per_second": round(examples_s, 2),
            "learning_rate": rate,
        }
        if rank == 0:
            with (folder / "log.jsonl").open("a") as log:
                log.write(json.dumps(row) + "\n")
            if step == stream.steps or clock.due():
                with clock:
                    save_checkpoint(folder, model, optimizer, step, fingerprint)
        report(row)
    model.eval()
    if rank == 0:
        publish_model(folder, model, stream.fmt.tokenizer, fingerprint)
    return TrainResult(folder / "model", stream.steps, loss, start)


def forward_backward(
    model: PreTrainedModel,
    packs: Sequence[Pack],
    cast: Callable[[], AbstractContextManager[Any]],
    world: int,
    step: int,
) -> tuple[float, int]:
    """Gradient of the mean loss per label over all ranks' packs; returns (that mean, tokens forwarded by all ranks).

    Ranks may have different numbers of packs, even none, so that gradients are summed once at the end of the step by
    hand: DistributedDataParallel would want as many backward passes on every rank.
    """
    labels = _sum_over_ranks([sum(len(p.labels_L) for p in packs)], world)[0]
    losses = []
    for one in packs:
        with cast():
            loss, _ = answer_loss(model, one)
        (loss / labels).backward()  # type: ignore[no-untyped-call]
        losses.append(float(loss.detach()))
    if world > 1:
        _sum_gradients(model)
    total, tokens = _sum_over_ranks([sum(losses), sum(len(p.tokens_T) for p in packs)], world)
    if not math.isfinite(total):
        bad = [one for one, loss in zip(packs, losses, strict=True) if not math.isfinite(loss)]
        raise BuildError(_diverged("loss", total, step, bad))
    return total / labels, int(tokens)


def learning_rate(step: int, steps: int, cfg: TrainingConfig) -> float:
    """Rate of step 1 ... steps: a straight line up to the peak, then a cosine down to a tenth of it.

    rising:   peak * step / warm
    falling:  peak * (0.1 + 0.9 * (1 + cos(pi * (step - warm) / (steps - warm))) / 2)
    """
    warm = round(cfg.warmup * steps)
    if step <= warm:
        return cfg.learning_rate * step / warm
    fallen = (step - warm) / (steps - warm)
    return cfg.learning_rate * (0.1 + 0.45 * (1 + math.cos(math.pi * fallen)))


class Speed:
    """Tokens and examples per second over the last steps."""

    def __init__(self) -> None:
        self._past: deque[tuple[float, int, int]] = deque([(time.perf_counter(), 0, 0)], maxlen=SPEED_STEPS + 1)

    def add(self, tokens: int, examples: int) -> tuple[float, float]:
        """Count one step; returns (tokens per second, examples per second)."""
        _, tokens_so_far, examples_so_far = self._past[-1]
        self._past.append((time.perf_counter(), tokens_so_far + tokens, examples_so_far + examples))
        first, last = self._past[0], self._past[-1]
        seconds = max(last[0] - first[0], 1e-9)
        return (last[1] - first[1]) / seconds, (last[2] - first[2]) / seconds


class CheckpointClock:
    """Says when the next checkpoint is due; used as a context it times the writing of one."""

    def __init__(self, seconds: float) -> None:
        self.seconds = seconds
        self._last = time.monotonic()
        self._writing = 0.0

    def due(self) -> bool:
        return time.monotonic() - self._last >= max(self.seconds, self._writing / WRITING_SHARE)

    def __enter__(self) -> None:
        self._began = time.monotonic()

    def __exit__(self, *_: object) -> None:
        self._last = time.monotonic()
        self._writing = self._last - self._began


def _autocast(model: PreTrainedModel) -> Callable[[], AbstractContextManager[Any]]:
    """bfloat16 products where the hardware multiplies them; the weights themselves stay float32."""
    import torch

    device = model.device.type
    if pick_dtype("auto", device) is torch.bfloat16:
        return lambda: torch.autocast(device, dtype=torch.bfloat16)
    return nullcontext


def _resume_together(
    folder: Path, model: PreTrainedModel, optimizer: torch.optim.Optimizer, fingerprint: str, rank: int, world: int
) -> int:
    """Rank 0 chooses the checkpoint, the others read the same one."""
    chosen = resume(folder, model, optimizer, fingerprint) if rank == 0 else 0
    start = int(_sum_over_ranks([chosen], world)[0])
    if rank > 0 and start:
        load_checkpoint(checkpoint_path(folder, start), model, optimizer)
    return start


def _sum_over_ranks(values: list[float], world: int) -> list[float]:
    if world == 1:
        return values
    import torch
    import torch.distributed as dist

    device = "cuda" if dist.get_backend() == "nccl" else "cpu"
    tensor = torch.tensor(values, dtype=torch.float64, device=device)
    dist.all_reduce(tensor)
    return list(tensor.tolist())


def _sum_gradients(model: PreTrainedModel) -> None:
    import torch
    import torch.distributed as dist

    waiting = []
    for parameter in trainable(model).values():
        if parameter.grad is None:
            parameter.grad = torch.zeros_like(parameter)
        waiting.append(dist.all_reduce(parameter.grad, async_op=True))
    for handle in waiting:
        handle.wait()


def _diverged(what: str, value: float, step: int, packs: Sequence[Pack]) -> str:
    queries = [query[:60] for one in packs for query in one.queries][:3]
    where = f" on examples such as {', '.join(map(repr, queries))}" if queries else " on another worker's examples"
    return (
        f"training diverged: the {what} of step {step} is {value}{where}; "
        "lower training.learning_rate or training.clip and run again"
    )
