"""Weight averaging: what is published lies between what the LM was before its training and what it has become.

    W = W_before + share · (W_trained − W_before)

A model fine-tuned on a little text forgets some of what it knew of all other text. On the way back it regains that
sooner than it loses what it has learned (WiSE-FT; Wortsman et al., 2022).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch
    from torch.nn import Parameter


def starting_point(parameters: Mapping[str, Parameter]) -> dict[str, torch.Tensor]:
    """A copy of the parameters that training will change, in main memory.

    Of LoRA's two matrices only B is copied: it begins as zero, and the change is in proportion to it.
    """
    lora = any(".lora_B." in name for name in parameters)
    return {
        name: parameter.detach().to("cpu", copy=True)
        for name, parameter in parameters.items()
        if not lora or ".lora_B." in name
    }


def average(parameters: Mapping[str, Parameter], before: Mapping[str, torch.Tensor], share: float) -> None:
    """Set each parameter that `before` holds to before + share * (itself - before)."""
    import torch

    with torch.no_grad():
        for name, start in before.items():
            parameter = parameters[name]
            parameter.lerp_(start.to(parameter.device, parameter.dtype), 1 - share)
