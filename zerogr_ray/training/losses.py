"""What training minimises."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedModel

    from zerogr_ray.training.batches import Pack


def answer_loss(model: PreTrainedModel, pack: Pack) -> tuple[torch.Tensor, int]:
    """Cross-entropy of the answers given their prompts, summed over the pack's labels.

        L = - sum_t log p(answer_t | prompt, answer_<t)

    The model's own forward computes logits at the labels' places only (`logits_to_keep`): a vocabulary of 49,152
    would otherwise cost more than the layers, on every prompt token. Returns (summed loss in float32, labels).
    """
    import torch
    from torch.nn.functional import cross_entropy

    def on_device(values: object) -> torch.Tensor:
        return torch.as_tensor(values, device=model.device)

    output = model(
        input_ids=on_device(pack.tokens_T)[None],
        position_ids=on_device(pack.positions_T)[None],
        attention_mask=pack.mask(model.device),
        logits_to_keep=on_device(pack.places_L),
        use_cache=False,
    )
    labels_L = on_device(pack.labels_L)
    return cross_entropy(output.logits[0].float(), labels_L, reduction="sum"), len(labels_L)
