"""What training minimises."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedModel

    from zerogr_ray.training.batches import Pack


class Losses(NamedTuple):
    """Sums over one pack, float32.

    answers:  cross-entropy over the pack's labels
    ranking:  RankNet loss over its ranked examples; None where it has none
    """

    answers: torch.Tensor
    ranking: torch.Tensor | None = None


def pack_losses(model: PreTrainedModel, pack: Pack, rerank_token: int | None = None) -> Losses:
    """Cross-entropy of the answers given their prompts, and the ranking of right above wrong answers.

        L_answers = - sum_t log p(answer_t | prompt, answer_<t)
        L_ranking = mean over wrong answers w of log(1 + exp(s_w - s_right))        (RankNet; Burges et al., 2005)

    with s the logit of `rerank_token` after an answer's end.
    """
    import torch
    from torch.nn.functional import cross_entropy

    def on_device(values: object) -> torch.Tensor:
        return torch.as_tensor(values, device=model.device)

    logits, labels = pack_logits(model, pack), len(pack.labels_L)
    answers = cross_entropy(logits[:labels], on_device(pack.labels_L), reduction="sum")
    if not pack.ranked or rerank_token is None:
        return Losses(answers)
    scores_R, query_R, right_R = logits[labels:, rerank_token], on_device(pack.query_R), on_device(pack.right_R)
    return Losses(answers, ranknet(scores_R, query_R, right_R))


def pack_logits(model: PreTrainedModel, pack: Pack) -> torch.Tensor:
    """Logits at the places of the pack's labels, then at those that are scored: (L + R, vocabulary), float32.

    The model's own forward computes no others (`logits_to_keep`): a vocabulary of 49,152 would otherwise cost more than
    the layers, on every prompt token.
    """
    import numpy as np
    import torch

    from zerogr_ray.training.attention import Layout, by_example, laid_out

    def on_device(values: object) -> torch.Tensor:
        return torch.as_tensor(values, device=model.device)

    by_example(model)
    with laid_out(Layout.of(pack, model.device)):
        output = model(
            input_ids=on_device(pack.tokens_T)[None],
            position_ids=on_device(pack.positions_T)[None],
            logits_to_keep=on_device(np.concatenate([pack.places_L, pack.scored_R])),
            use_cache=False,
        )
    logits: torch.Tensor = output.logits[0].float()
    return logits


def ranknet(scores_R: torch.Tensor, query_R: torch.Tensor, right_R: torch.Tensor) -> torch.Tensor:
    """RankNet loss summed over queries: for each the mean, over its wrong candidates, of log(1 + exp(s_w - s_right)).

    query_R numbers each candidate's query from 0 up; right_R marks one candidate of each, in the queries' order.
    """
    import torch
    from torch.nn.functional import softplus

    right_Q, wrong = scores_R[right_R], ~right_R
    of = query_R[wrong]
    return (softplus(scores_R[wrong] - right_Q[of]) / torch.bincount(of)[of]).sum()
