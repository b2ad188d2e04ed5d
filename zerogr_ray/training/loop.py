"""Fine-tuning as a plain torch loop. It runs on one process without Ray, and on many with torch.distributed."""

from __future__ import annotations

import math
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from zerogr_ray.memory import keep_freed_memory
from zerogr_ray.models import pick_dtype
from zerogr_ray.store import Folder
from zerogr_ray.training.averaging import average, starting_point
from zerogr_ray.training.batches import Pack, pack
from zerogr_ray.training.checkpoints import (
    Product,
    append_log,
    checkpoint_path,
    load_best,
    load_checkpoint,
    publish,
    resume,
    rewind_log,
    save_best,
    save_checkpoint,
    trainable,
)
from zerogr_ray.training.evidence import Evidence
from zerogr_ray.training.lora import prepared
from zerogr_ray.training.losses import pack_losses
from zerogr_ray.training.rerank import rerank_token
from zerogr_ray.training.validation import Validation, due

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedModel

    from zerogr_ray.config import TrainingConfig
    from zerogr_ray.training.copies import Copies
    from zerogr_ray.training.examples import Example, ExampleStream

Report = Callable[[dict[str, Any]], None]

SPEED_STEPS = 20
"""Steps over which the reported speed is averaged."""

WRITING_SHARE = 0.1
"""Share of the time that checkpoints may take; a large model on a slow disk gets them less often."""


@dataclass(frozen=True, slots=True)
class TrainResult:
    """What a finished training leaves.

    product:          folder of the model, or of the adapter
    steps:            steps that were planned
    stopped_at:       steps that were made
    loss:             mean loss per label of the last one
    resumed_at:       step of the checkpoint that this call went on from; 0 for none
    best_step:        step whose state was published; 0 where nothing was held out: the last
    validation_loss:  its mean loss per held-out label
    """

    product: Path
    steps: int
    stopped_at: int
    loss: float
    resumed_at: int
    best_step: int = 0
    validation_loss: float | None = None


def train(
    model: PreTrainedModel,
    stream: ExampleStream,
    cfg: TrainingConfig,
    folder: Path,
    report: Report,
    rank: int = 0,
    world: int = 1,
    fingerprint: str = "",
    held_out: Sequence[Path] = (),
    product: Product = "model",
    copies: Copies | None = None,
) -> TrainResult:
    """Train `model` (loaded in float32) on `stream`; goes on from the newest checkpoint of `fingerprint` in `folder`.

    With `held_out` (shards like the stream's) the loss on them is measured now and then, the state with the lowest is
    taken, and training ends after `cfg.patience` measurements without a new one. What is published lies `cfg.average`
    of the way from the state before training to that (averaging.py).

    Every rank calls it with the same arguments but its own `rank`, after torch.distributed has been initialised. With
    `copies`, `folder` is each rank's own, and what is in it is kept there too.
    Rank 0 writes checkpoints, log.jsonl and the product. Each step is reported, on every rank, as a dict with the keys
    step, steps, epoch, loss, tokens_per_second, examples_per_second, learning_rate, tokens (forwarded), seconds; after
    a measurement also validation_loss, after a rerank step rerank_loss.

    Raises BuildError for an answer without tokens, before the first step, and for a loss or gradient that is no number,
    which leaves its batch behind (evidence.py).
    """
    import torch

    stream.check(rank, world)
    folder.mkdir(parents=True, exist_ok=True)
    evidence = Evidence(Folder(folder) if copies is None else copies.folder, stream.fmt.tokenizer, rank, world)
    if model.device.type == "cpu":
        keep_freed_memory()
    model = prepared(model, cfg)
    named = trainable(model)
    before = starting_point(named) if rank == 0 and cfg.average < 1 else {}
    parameters = list(named.values())
    optimizer = torch.optim.AdamW(parameters, lr=cfg.learning_rate, weight_decay=cfg.weight_decay, fused=True)
    start, validation = _resume_together(folder, model, optimizer, fingerprint, rank, world, copies)
    if rank == 0:
        rewind_log(folder, start)
    loss, step = math.nan, start
    cast = _autocast(model)
    reserved = rerank_token(stream.fmt) if stream.beside and cfg.rerank_every else None
    held = pack(stream.held_out(held_out, rank, world), cfg.pack_tokens)
    speed, clock = Speed(), CheckpointClock(cfg.checkpoint_seconds)
    batches: Iterable[list[Example]] = () if validation.over(cfg.patience) else stream.step_batches(start, rank, world)
    model.train()
    for step, examples in enumerate(batches, start=start + 1):
        torch.manual_seed(cfg.seed + step)  # dropout, where a model has it, is the same after a resume
        packs = pack(examples, cfg.pack_tokens)
        optimizer.param_groups[0]["lr"] = rate = learning_rate(step, stream.steps, cfg)
        made = forward_backward(model, packs, cast, step, cfg, evidence, reserved)
        loss = made.loss
        norm = torch.nn.utils.clip_grad_norm_(parameters, cfg.clip)
        if not torch.isfinite(norm):
            raise evidence.refusal("gradient", float(norm), step, packs, [True] * len(packs))
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)

        done = min(step * cfg.batch_examples, stream.total)
        tokens_s, examples_s = speed.add(made.tokens, done - (step - 1) * cfg.batch_examples)
        row = {
            "step": step,
            "steps": stream.steps,
            "epoch": round(done / stream.size, 4),
            "loss": loss,
            "tokens_per_second": round(tokens_s, 1),
            "examples_per_second": round(examples_s, 2),
            "learning_rate": rate,
            "tokens": made.tokens,
            "seconds": round(speed.last, 4),
        }
        row |= {"rerank_loss": made.ranking} if made.ranking is not None else {}
        improved = False
        if held_out and due(step, stream.steps, cfg):
            with speed.paused():
                row["validation_loss"] = mean_loss(model, held, cast, step, evidence)
            improved = validation.record(step, row["validation_loss"])
        last = step == stream.steps or validation.over(cfg.patience)
        if rank == 0:
            append_log(folder, row)
            if improved:
                save_best(folder, model, step)
            if last or clock.due():
                with clock:
                    save_checkpoint(folder, model, optimizer, step, fingerprint, validation.as_dict())
                    if copies is not None:
                        copies.keep(folder)
        report(row)
        if last:
            break
    model.eval()
    if rank == 0:
        if validation.best_step:
            load_best(folder, model, validation.best_step)
        average(named, before, cfg.average)
        publish(folder, model, stream.fmt.tokenizer, fingerprint, product)
        if copies is not None:
            copies.finish(folder, fingerprint, product)
    return TrainResult(folder / product, stream.steps, step, loss, start, validation.best_step, validation.best)


class StepLosses(NamedTuple):
    """Means over all ranks: `loss` per label, `ranking` per ranked example; None where there is none."""

    loss: float
    ranking: float | None
    tokens: int
    """Tokens forwarded."""


def forward_backward(
    model: PreTrainedModel,
    packs: Sequence[Pack],
    cast: Callable[[], AbstractContextManager[Any]],
    step: int,
    cfg: TrainingConfig,
    evidence: Evidence,
    rerank_token: int | None = None,
) -> StepLosses:
    """Gradient of the mean loss per label over all ranks' packs, plus the weighted mean ranking loss per example.

    Ranks may have different numbers of packs, even none, so that gradients are summed once at the end of the step by
    hand: DistributedDataParallel would want as many backward passes on every rank.
    """
    world = evidence.world
    counts = [sum(n) for n in zip(*((len(p.labels_L), p.ranked) for p in packs), strict=True)]
    labels, ranked = _sum_over_ranks(counts or [0, 0], world)
    sums_by_pack: list[list[float]] = []
    for one in packs:
        with cast():
            losses = pack_losses(model, one, rerank_token)
        total = losses.answers / labels
        if losses.ranking is not None:
            total = total + cfg.rerank_weight * losses.ranking / ranked
        total.backward()  # type: ignore[no-untyped-call]
        sums_by_pack.append([0.0 if loss is None else float(loss.detach()) for loss in losses])
    if world > 1:
        _sum_gradients(model)
    tokens = sum(len(p.tokens_T) for p in packs)
    sums = [sum(column) for column in zip(*sums_by_pack, strict=True)] or [0.0] * 2
    answer, ranking, all_tokens = _sum_over_ranks([*sums, tokens], world)
    if not math.isfinite(answer + ranking):
        suspects = [not math.isfinite(sum(some)) for some in sums_by_pack]
        raise evidence.refusal("loss", answer + ranking, step, packs, suspects)
    return StepLosses(answer / labels, ranking / ranked if ranked else None, int(all_tokens))


def mean_loss(
    model: PreTrainedModel,
    packs: Sequence[Pack],
    cast: Callable[[], AbstractContextManager[Any]],
    step: int,
    evidence: Evidence,
) -> float:
    """Mean loss per label over all ranks' packs, without gradients."""
    import torch

    model.eval()
    with torch.inference_mode(), cast():
        losses = [float(pack_losses(model, one).answers) for one in packs]
    model.train()
    answers, labels = _sum_over_ranks([sum(losses), sum(len(p.labels_L) for p in packs)], evidence.world)
    if not math.isfinite(answers):
        bad = [one for one, loss in zip(packs, losses, strict=True) if not math.isfinite(loss)]
        raise evidence.refusal("held-out loss", answers, step, bad, [True] * len(bad))
    return answers / labels


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

    @property
    def last(self) -> float:
        """Seconds of the step that was counted last."""
        return self._past[-1][0] - self._past[-2][0]

    @contextmanager
    def paused(self) -> Iterator[None]:
        """Leave out the time that the block takes."""
        began = time.perf_counter()
        yield
        spent = time.perf_counter() - began
        self._past = deque(((at + spent, t, e) for at, t, e in self._past), maxlen=self._past.maxlen)


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
    folder: Path,
    model: PreTrainedModel,
    optimizer: torch.optim.Optimizer,
    fingerprint: str,
    rank: int,
    world: int,
    copies: Copies | None,
) -> tuple[int, Validation]:
    """Rank 0 chooses the checkpoint, the others read the same one. Returns its step and what it knows of validation."""
    if copies is not None and rank == 0:
        copies.restore(folder)
    state = resume(folder, model, optimizer, fingerprint) if rank == 0 else None
    if copies is not None and state:
        copies.keep(folder)  # a crash may have come between the checkpoint and its copy, which the others will read
    start = int(_sum_over_ranks([state["step"] if state else 0], world)[0])
    if rank > 0 and start:
        if copies is not None:
            copies.restore(folder)
        state = load_checkpoint(checkpoint_path(folder, start), model, optimizer)
    return start, Validation(**(state or {}).get("validation", {}))


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
