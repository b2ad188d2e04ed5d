"""LoRA: two thin matrices A (r, in) and B (out, r) beside every linear layer W, y = (W + alpha / r * B A) x.

Only A and B are trained. B begins as zero, so that training begins with the base model.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

from zerogr_ray.errors import ModelError

if TYPE_CHECKING:
    from transformers import PreTrainedModel

    from zerogr_ray.config import TrainingConfig


def prepared(model: PreTrainedModel, cfg: TrainingConfig) -> Any:
    """`model` with what `cfg.method` trains, and nothing else, set to require gradients. LoRA changes it in place.

    All linear layers but the output layer get an adapter, whatever the architecture. A is drawn with `cfg.seed`.
    """
    if cfg.method == "full":
        return model
    try:
        from peft import LoraConfig, get_peft_model
    except ModuleNotFoundError:
        raise ModelError(
            "training.method is lora, but peft is not installed: pip install 'zerogr-ray[train]'"
        ) from None
    import torch

    config = LoraConfig(
        task_type="CAUSAL_LM",
        r=cfg.lora_rank,
        lora_alpha=cfg.lora_alpha,
        target_modules="all-linear",
        lora_dropout=0.0,
    )
    with torch.random.fork_rng(devices=[model.device] if model.device.type == "cuda" else []):
        torch.manual_seed(cfg.seed)
        return get_peft_model(model, config)


def merged(model: Any) -> PreTrainedModel:
    """The plain model that computes the same; a LoRA model is taken apart for it."""
    whole: PreTrainedModel = model.merge_and_unload() if hasattr(model, "merge_and_unload") else model
    return whole


def save_lora(model: Any, folder: Path) -> None:
    """Write adapter_model.safetensors (float16) and adapter_config.json, which peft and vLLM read, into `folder`.

    float16 keeps eleven bits of each of A and B: the error in their product is far below that of a bfloat16 model.
    """
    import torch
    from peft import get_peft_model_state_dict
    from safetensors.torch import save_file

    tensors = {name: t.detach().to(torch.float16).cpu() for name, t in get_peft_model_state_dict(model).items()}
    save_file({name: tensors[name].contiguous() for name in sorted(tensors)}, folder / "adapter_model.safetensors")
    config = model.peft_config["default"].to_dict()
    # A folder on this machine means nothing elsewhere; zerogr.json names the base by what it holds.
    config = {**config, "base_model_name_or_path": None, "inference_mode": True}
    config["target_modules"] = sorted(config["target_modules"])
    (folder / "adapter_config.json").write_text(json.dumps(config, indent=2, sort_keys=True, default=str) + "\n")
