"""Packing: many examples in one row, behind the tokens that all of them begin with, and no padding at all.

All prompts of a task start alike (chat template, instruction), so the shared part is computed once per pack:

    [common prefix][own part of example 1][own part of example 2] ...

Each example sees the prefix and itself, never its neighbours, at the positions it would have alone. Loss and
gradients are those of the examples run one by one.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    import torch

    from zerogr_ray.training.examples import Example


@dataclass(frozen=True, slots=True)
class Pack:
    """One row of T tokens that asks for L labels.

    tokens_T:    token ids
    positions_T: position of each token in its own example; they restart after the prefix
    owner_T:     0 for the prefix, i for the i-th example of the pack, from 1
    places_L:    index into T of the tokens that predict a label, rising
    labels_L:    the token that each of them shall predict
    """

    tokens_T: NDArray[np.int64]
    positions_T: NDArray[np.int64]
    owner_T: NDArray[np.int64]
    places_L: NDArray[np.int64]
    labels_L: NDArray[np.int64]
    queries: tuple[str, ...] = ()

    def mask(self, device: torch.device | str = "cpu") -> torch.Tensor:
        """Additive attention mask, shape (1, 1, T, T): 0 where row may see column, -inf elsewhere."""
        import torch

        owner_T = torch.from_numpy(self.owner_T).to(device)
        at_T = torch.arange(len(owner_T), device=device)
        own_or_prefix = (owner_T[None, :] == 0) | (owner_T[None, :] == owner_T[:, None])
        seen = own_or_prefix & (at_T[None, :] <= at_T[:, None])
        return torch.zeros(seen.shape, device=device).masked_fill(~seen, float("-inf"))[None, None]


def common_prefix(examples: Sequence[Example]) -> int:
    """How many tokens all prompts begin with; at least one token of each prompt stays its own.

    That own token predicts the first token of the answer, so it cannot be shared.
    """
    prompts = [example.prompt for example in examples]
    first, last = min(prompts), max(prompts)  # in dictionary order: what these two share, all share
    shared = next((at for at, (a, b) in enumerate(zip(first, last, strict=False)) if a != b), len(first))
    return min(shared, min(len(prompt) for prompt in prompts) - 1)


def pack(examples: Sequence[Example], pack_tokens: int) -> list[Pack]:
    """Fill packs of at most `pack_tokens` tokens, longest example first, each into the first pack with room.

    An example longer than that gets a pack of its own. Every example is in exactly one pack.
    """
    if not examples:
        return []
    prefix = common_prefix(examples)
    own = [len(example.prompt) - prefix + len(example.answer) - 1 for example in examples]
    bins: list[list[int]] = []
    room: list[int] = []
    for index in sorted(range(len(examples)), key=lambda index: (-own[index], index)):
        chosen = next((b for b, left in enumerate(room) if left >= own[index]), None)
        if chosen is None:
            chosen = len(bins)
            bins.append([])
            room.append(pack_tokens - prefix)
        bins[chosen].append(index)
        room[chosen] -= own[index]
    return [_lay_out([examples[index] for index in chosen], prefix) for chosen in bins]


def _lay_out(examples: Sequence[Example], prefix: int) -> Pack:
    tokens = list(examples[0].prompt[:prefix])
    positions = list(range(prefix))
    owner = [0] * prefix
    places: list[int] = []
    labels: list[int] = []
    for number, example in enumerate(examples, start=1):
        asked = len(tokens) + len(example.prompt) - prefix - 1  # the last token of the prompt
        # The last token of the answer is only ever a label: nothing follows that it would have to predict.
        own = [*example.prompt[prefix:], *example.answer[:-1]]
        tokens += own
        positions += range(prefix, prefix + len(own))
        owner += [number] * len(own)
        places += range(asked, asked + len(example.answer))
        labels += example.answer
    return Pack(
        tokens_T=_ints(tokens),
        positions_T=_ints(positions),
        owner_T=_ints(owner),
        places_L=_ints(places),
        labels_L=_ints(labels),
        queries=tuple(example.query for example in examples),
    )


def _ints(values: list[int]) -> NDArray[np.int64]:
    return np.asarray(values, dtype=np.int64)
