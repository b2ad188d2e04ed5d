"""Tokens of many rows end to end, as attention wants them: each row beside its own keys."""

from __future__ import annotations

from dataclasses import dataclass, field

import torch


@dataclass(frozen=True, eq=False)
class Grid:
    """Where each of T tokens lies: row `rows[t]` and place `places[t]` of a grid of shape (rows, places).

    A row is a query and its cells when decoding, an example when training.
    """

    rows: torch.Tensor
    places: torch.Tensor
    shape: tuple[int, int]
    repeated: dict[tuple[int, int], torch.Tensor] = field(default_factory=dict)
    """Masks by (identity, groups), each repeated for the heads of a group: the same for all layers."""

    def for_groups(self, mask: torch.Tensor, groups: int) -> torch.Tensor:
        """`mask`, (rows, 1, places, columns), for `groups` heads that share their keys and come as places of one."""
        if (known := self.repeated.get((id(mask), groups))) is None:
            known = self.repeated[id(mask), groups] = mask.repeat(1, 1, groups, 1)
        return known

    def spread(self, states: torch.Tensor) -> torch.Tensor:
        """(1, heads, T, width) of the tokens as (rows, heads, places, width) of the grid, zeros where none lies."""
        if self.shape[0] == 1:
            return states
        _, heads, _, width = states.shape
        grid = states.new_zeros(*self.shape, heads, width)
        grid[self.rows, self.places] = states[0].transpose(0, 1)
        return grid.transpose(1, 2)

    def gather(self, states: torch.Tensor) -> torch.Tensor:
        """(rows, places, heads, width) of the grid as (1, T, heads, width) of the tokens."""
        return states if self.shape[0] == 1 else states[self.rows, self.places][None]
