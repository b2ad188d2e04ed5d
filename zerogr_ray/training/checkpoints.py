"""Checkpoints of a training run: safetensors and JSON, written whole or not at all.

folder/checkpoint-00000120/   model.safetensors      trainable parameters by name, float32
                              optimizer.safetensors  AdamW's two moments of each of them
                              state.json             step, fingerprint, sizes of the two files, validation so far
folder/best-00000100/         model.safetensors      trainable parameters when the held-out loss was lowest
folder/model/                 the trained model, bfloat16, with its tokenizer: the end product
folder/adapter/               or its LoRA adapter alone, where that is the end product
folder/finished.json          its fingerprint; written last
"""

from __future__ import annotations

import json
import logging
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from zerogr_ray.errors import BuildError
from zerogr_ray.training.lora import merged, save_lora

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

KEPT = 2
"""Newest checkpoints that stay; the older one serves when the newer cannot be read."""

LOG = "log.jsonl"

MOMENTS = ("exp_avg", "exp_avg_sq")

Product = Literal["model", "adapter"]
"""What a training publishes: a whole model (a LoRA adapter merged into it), or the adapter alone."""

log = logging.getLogger(__name__)


def save_checkpoint(
    folder: Path,
    model: PreTrainedModel,
    optimizer: torch.optim.Optimizer,
    step: int,
    fingerprint: str,
    validation: dict[str, Any] | None = None,
) -> None:
    """Write `checkpoint-<step>` and drop all but the newest two of this run, and those of any other run.

    `validation` is what resuming needs besides; a best state that no kept checkpoint names is dropped too. Raises
    BuildError when the disk refuses; the checkpoints before stay as they are.
    """
    import torch
    from safetensors.torch import save_file

    named = trainable(model)
    moments = {
        f"{moment}.{name}": optimizer.state[p].get(moment, torch.zeros_like(p))  # no state: it never had a gradient
        for name, p in named.items()
        for moment in MOMENTS
    }
    refused = _or_said(f"the checkpoint of step {step}", folder, kept="the one before")
    with refused, _whole_folder(checkpoint_path(folder, step)) as building:
        save_file({name: p.detach().contiguous() for name, p in named.items()}, building / "model.safetensors")
        save_file(moments, building / "optimizer.safetensors")
        sizes = {file.name: file.stat().st_size for file in building.iterdir()}
        state = {"step": step, "fingerprint": fingerprint, "sizes": sizes, "validation": validation or {}}
        (building / "state.json").write_text(json.dumps(state))
    ours = [path for path in _checkpoints(folder) if _state(path).get("fingerprint") == fingerprint]
    for path in _checkpoints(folder):
        if path not in ours[:KEPT]:
            shutil.rmtree(path, ignore_errors=True)
    named_best = {_state(path).get("validation", {}).get("best_step") for path in ours[:KEPT]}
    for path in folder.glob("best-*"):
        if path.name not in {best_path(folder, best).name for best in named_best if best}:
            shutil.rmtree(path, ignore_errors=True)


def save_best(folder: Path, model: PreTrainedModel, step: int) -> None:
    """Write `best-<step>`. Bests of checkpoints that may still be resumed from stay until those go."""
    from safetensors.torch import save_file

    weights = {name: p.detach().contiguous() for name, p in trainable(model).items()}
    with (
        _or_said(f"the best state so far, of step {step},", folder),
        _whole_folder(best_path(folder, step)) as building,
    ):
        save_file(weights, building / "model.safetensors")


def load_best(folder: Path, model: PreTrainedModel, step: int) -> None:
    """Put the parameters of `best-<step>` in place."""
    import torch
    from safetensors.torch import load_file

    weights = load_file(best_path(folder, step) / "model.safetensors")
    with torch.no_grad():
        for name, parameter in trainable(model).items():
            parameter.copy_(weights[name])


def resume(
    folder: Path, model: PreTrainedModel, optimizer: torch.optim.Optimizer, fingerprint: str
) -> dict[str, Any] | None:
    """Load the newest checkpoint that reads whole and has this fingerprint; returns its state, None for none."""
    for leftover in (*folder.glob(".writing-*"), *folder.glob(".old-*")):
        shutil.rmtree(leftover, ignore_errors=True)  # of a process that was killed while it wrote
    for path in _checkpoints(folder):
        found = _state(path).get("fingerprint", fingerprint)
        if found != fingerprint:
            log.info("checkpoint %s belongs to another training run (%s); not used", path, found)
            continue
        try:
            return load_checkpoint(path, model, optimizer)
        except Exception as error:  # whatever is wrong with it, the one before may serve
            log.warning("checkpoint %s cannot be read (%s); trying the one before", path, error)
    return None


def load_checkpoint(path: Path, model: PreTrainedModel, optimizer: torch.optim.Optimizer) -> dict[str, Any]:
    """Put the checkpoint's parameters and moments in place; returns its state. Raises before it changes anything."""
    import torch
    from safetensors.torch import load_file

    state: dict[str, Any] = json.loads((path / "state.json").read_text())
    if (best := state.get("validation", {}).get("best_step")) and not best_path(path.parent, best).is_dir():
        raise BuildError(f"its best state, {best_path(path.parent, best).name}, is gone")
    for name, size in state["sizes"].items():
        if (path / name).stat().st_size != size:
            raise BuildError(f"{name} is {(path / name).stat().st_size} bytes long, not {size}")
    named = trainable(model)
    weights, moments = load_file(path / "model.safetensors"), load_file(path / "optimizer.safetensors")
    per_parameter = [
        {"step": torch.tensor(float(state["step"])), **{moment: moments[f"{moment}.{name}"] for moment in MOMENTS}}
        for name in named
    ]
    if {name: tensor.shape for name, tensor in weights.items()} != {name: p.shape for name, p in named.items()}:
        raise BuildError("it holds other parameters than this model")
    with torch.no_grad():
        for name, parameter in named.items():
            parameter.copy_(weights[name])
    groups = optimizer.state_dict()["param_groups"]
    optimizer.load_state_dict({"state": dict(enumerate(per_parameter)), "param_groups": groups})
    return state


def trainable(model: PreTrainedModel) -> dict[str, torch.nn.Parameter]:
    """The parameters that training changes, each once (tied ones under their first name)."""
    return {name: parameter for name, parameter in model.named_parameters() if parameter.requires_grad}


def publish(
    folder: Path, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, fingerprint: str, product: Product
) -> Path:
    """Save the product, a whole model with its tokenizer or an adapter, then name its fingerprint in finished.json."""
    target, finished = folder / product, folder / "finished.json"
    with _or_said(f"the trained {product}", target, kept="its last checkpoint"):
        finished.unlink(missing_ok=True)
        with _whole_folder(target) as building:
            if product == "adapter":
                save_lora(model, building)
            else:
                _save_model(building, merged(model), tokenizer)
        with _whole_file(finished) as building:
            building.write_text(json.dumps({"fingerprint": fingerprint, "product": product}))
    for leftover in (*_checkpoints(folder), *folder.glob("best-*")):
        shutil.rmtree(leftover, ignore_errors=True)
    return target


def _save_model(building: Path, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> None:
    import torch

    halves: dict[int, torch.Tensor] = {}  # by address: tied weights stay one tensor
    state = {
        name: halves.setdefault(tensor.data_ptr(), tensor.to(torch.bfloat16) if tensor.is_floating_point() else tensor)
        for name, tensor in model.state_dict().items()
    }
    model.save_pretrained(building, state_dict=state)
    tokenizer.save_pretrained(building)
    # save_pretrained writes the dtype of the model in memory, which is float32.
    config = json.loads((building / "config.json").read_text())
    (building / "config.json").write_text(json.dumps({**config, "dtype": "bfloat16"}, indent=2) + "\n")


def finished(folder: Path, fingerprint: str, product: Product = "model") -> Path | None:
    """The folder of the product if a training run of this fingerprint has finished there."""
    try:
        found = json.loads((folder / "finished.json").read_text())
        done = (found["fingerprint"], found.get("product", "model")) == (fingerprint, product)
    except (OSError, ValueError, KeyError, TypeError):
        return None
    config = folder / product / ("config.json" if product == "model" else "adapter_config.json")
    return folder / product if done and config.is_file() else None


def checkpoint_path(folder: Path, step: int) -> Path:
    """Where the checkpoint of `step` is."""
    return folder / f"checkpoint-{step:08d}"


def best_path(folder: Path, step: int) -> Path:
    """Where the parameters of `step` are, if it is the best so far."""
    return folder / f"best-{step:08d}"


def _state(checkpoint: Path) -> dict[str, Any]:
    """What state.json says; nothing where it cannot be read."""
    try:
        state = json.loads((checkpoint / "state.json").read_text())
    except (OSError, ValueError):
        return {}
    return state if isinstance(state, dict) else {}


def _checkpoints(folder: Path) -> list[Path]:
    """Newest first."""
    return sorted((path for path in folder.glob("checkpoint-*") if path.is_dir()), reverse=True)


@contextmanager
def _whole_folder(target: Path) -> Iterator[Path]:
    """A folder under a temporary name that takes its final name only when the block ends well."""
    building, old = target.with_name(f".writing-{target.name}"), target.with_name(f".old-{target.name}")
    for leftover in (building, old):
        shutil.rmtree(leftover, ignore_errors=True)
    building.mkdir(parents=True)
    try:
        yield building
        for file in building.iterdir():
            _flush(file)
        _flush(building)
        if target.exists():
            target.rename(old)
        building.rename(target)
        _flush(target.parent)
    finally:
        for leftover in (building, old):
            shutil.rmtree(leftover, ignore_errors=True)


@contextmanager
def _whole_file(target: Path) -> Iterator[Path]:
    building = target.with_name(f".writing-{target.name}")
    try:
        yield building
        _flush(building)
        os.replace(building, target)
    finally:
        building.unlink(missing_ok=True)


def _flush(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def read_log(folder: Path) -> list[dict[str, Any]]:
    """The reported steps in `folder/log.jsonl`; a last line cut short by a crash is left out."""
    try:
        lines = (folder / LOG).read_text().splitlines()
    except FileNotFoundError:
        return []
    rows = []
    for line in lines:
        try:
            rows.append(json.loads(line))
        except ValueError:
            continue
    return rows


def rewind_log(folder: Path, step: int) -> None:
    """Keep the log's lines up to `step`: the steps after it are about to be done again."""
    kept = [row for row in read_log(folder) if row["step"] <= step]
    with _whole_file(folder / LOG) as building:
        building.write_text("".join(json.dumps(row) + "\n" for row in kept))


def append_log(folder: Path, row: dict[str, Any]) -> None:
    """One more line. Raises BuildError when the disk refuses; a broken line is dropped when the training goes on."""
    with _or_said(f"the log of step {row['step']}", folder), (folder / LOG).open("a") as log:
        log.write(json.dumps(row) + "\n")


@contextmanager
def _or_said(what: str, folder: Path, kept: str = "the last checkpoint") -> Iterator[None]:
    """Whatever refuses to be written in the block is a BuildError that says so, and what is left."""
    try:
        yield
    except Exception as error:  # safetensors has an error type of its own for a full disk
        raise BuildError(
            f"{what} cannot be written to {folder}: {error}; {kept} is kept: make room and run the same command again"
        ) from error
