"""Packing: many examples in one row, behind the tokens that all of them begin with, and no padding at all.

All prompts of a task start alike (chat template, instruction), so the shared part is computed once per pack:

    [common prefix][own part of example 1][own part of example 2] ...

Each example sees the prefix and itself, never its neighbours, at the positions it would have alone. Loss and
gradients are those of the examples run one by one. An example with wrong answers beside the right one is a tree: all
its answers are behind its own prompt, which is behind the prefix.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    from zerogr_ray.training.examples import Example


@dataclass(frozen=True, slots=True)
class Pack:
    """One row of T tokens in S segments that asks for L labels and R scores.

    tokens_T:    token ids
    positions_T: position of each token in its own example; they restart after the prefix
    owner_T:     segment of each token: 0 for the prefix; without wrong answers, i for the i-th example, from 1
    places_L:    index into T of the tokens that predict a label
    labels_L:    the token that each of them shall predict
    above_S:     the segment that each segment continues; the prefix continues itself
    examples:    what it was made of, in their order
    scored_R:    index into T of the last token of every answer that is ranked
    query_R:     the example that it answers, numbered from 0 among those with wrong answers
    right_R:     whether it is the right one; each example has one
    """

    tokens_T: NDArray[np.int64]
    positions_T: NDArray[np.int64]
    owner_T: NDArray[np.int64]
    places_L: NDArray[np.int64]
    labels_L: NDArray[np.int64]
    above_S: NDArray[np.int64]
    examples: tuple[Example, ...] = ()
    scored_R: NDArray[np.int64] = field(default_factory=lambda: _ints([]))
    query_R: NDArray[np.int64] = field(default_factory=lambda: _ints([]))
    right_R: NDArray[np.bool_] = field(default_factory=lambda: np.zeros(0, bool))

    @property
    def ranked(self) -> int:
        """Examples whose answers are ranked."""
        return int(self.right_R.sum())

    def rows(self) -> tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.bool_]]:
        """The tokens behind the prefix on a grid of shape (E examples, P places), one row an example.

        Returns row and place of each, and which places see which, (E, P, P). All of them see the whole prefix.
        """
        root_S, sees_SS = np.arange(len(self.above_S)), np.eye(len(self.above_S), dtype=bool)
        for segment, above in enumerate(self.above_S):  # a segment comes after the one it continues
            sees_SS[segment] |= sees_SS[above]
            root_S[segment] = root_S[above] if above else segment
        owner_T = self.owner_T[self.owner_T > 0]
        starts, row_T = np.unique(root_S[owner_T], return_index=True, return_inverse=True)[1:]
        place_T = np.arange(len(row_T)) - starts[row_T]
        owner_EP = np.zeros((len(starts), int(place_T.max(initial=0)) + 1), dtype=np.int64)  # 0: no token lies there
        owner_EP[row_T, place_T] = owner_T
        seen = sees_SS[owner_EP[:, :, None], owner_EP[:, None, :]] & np.tri(owner_EP.shape[1], dtype=bool)
        return row_T, place_T, seen & (owner_EP > 0)[:, None, :]


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
    own = [len(e.prompt) - prefix + len(e.answer) + (sum(map(len, e.wrong)) if e.wrong else -1) for e in examples]
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
    row = _Row(examples[0].prompt[:prefix])
    for example in examples:
        asked = len(row.tokens) + len(example.prompt) - prefix - 1  # the last token of the prompt
        row.labels += example.answer
        if not example.wrong:
            # The last token of the answer is only ever a label: nothing follows that it would have to predict.
            row.add([*example.prompt[prefix:], *example.answer[:-1]], above=0, at=prefix)
            row.places += range(asked, asked + len(example.answer))
            continue
        prompt = row.add(example.prompt[prefix:], above=0, at=prefix)
        row.places += [asked, *range(len(row.tokens), len(row.tokens) + len(example.answer) - 1)]
        for answer in (example.answer, *example.wrong):
            row.add(answer, above=prompt, at=len(example.prompt))
            row.scored.append(len(row.tokens) - 1)
            row.query.append(row.ranked)
            row.right.append(answer is example.answer)
        row.ranked += 1
    return Pack(
        tokens_T=_ints(row.tokens),
        positions_T=_ints(row.positions),
        owner_T=_ints(row.owner),
        places_L=_ints(row.places),
        labels_L=_ints(row.labels),
        above_S=_ints(row.above),
        examples=tuple(examples),
        scored_R=_ints(row.scored),
        query_R=_ints(row.query),
        right_R=np.asarray(row.right, dtype=bool),
    )


class _Row:
    """A pack while it grows."""

    def __init__(self, prefix: list[int]) -> None:
        self.tokens = list(prefix)
        self.positions = list(range(len(prefix)))
        self.owner = [0] * len(prefix)
        self.above = [0]
        self.places: list[int] = []
        self.labels: list[int] = []
        self.scored: list[int] = []
        self.query: list[int] = []
        self.right: list[bool] = []
        self.ranked = 0

    def add(self, tokens: list[int], above: int, at: int) -> int:
        """Append a segment that continues segment `above` from position `at` on; returns its number."""
        self.tokens += tokens
        self.positions += range(at, at + len(tokens))
        self.owner += [len(self.above)] * len(tokens)
        self.above.append(above)
        return len(self.above) - 1


def _ints(values: list[int]) -> NDArray[np.int64]:
    return np.asarray(values, dtype=np.int64)
