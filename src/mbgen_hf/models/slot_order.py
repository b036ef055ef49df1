"""Tokens in slot order: where each goes, and how hidden states get there and back.

A token's expert is its slot. Once per forward pass it is found which tokens belong to which slot; a layer brings its
tokens into that order, where the experts are one grouped matrix product per weight, and puts the results back. All of
it stays on the device: no boolean indexing, no host synchronisation.

On the CPU, where looking at the data costs nothing, rows of whole interactions behind common special tokens (BOS) are
recognised: slots then repeat along the columns, tokens of a slot are a strided view, and no index is needed.
"""

from dataclasses import dataclass
from itertools import groupby

import torch

from .by_hand import fuses_by_hand
from .token_space import SPECIAL_SLOT


# Neighbouring groups of one size: how many groups, and how many rows in each.
Run = tuple[int, int]


@dataclass(frozen=True)
class Routing:
    """Where the tokens of one forward pass go; made once by a stack and read by each of its layers.

    Args:
        order: `(num_tokens,)` flat positions in slot order, stable.
        restore: `(num_tokens,)` the inverse permutation.
        ends: `(num_slots,)` `int32`, where each slot's tokens end in slot order.
        behaviors: `(batch_size, seq_len)` row of the behavior embedding of every token, 0 = padding.
        slot: the slot of all tokens where they have the same one; the three before `behaviors` are then `None`.
        runs: slots with the same number of tokens; where products are made by hand.
        grid: how many special columns every row begins with, and how many interactions follow; where that is so.
    """

    order: torch.Tensor | None
    restore: torch.Tensor | None
    ends: torch.Tensor | None
    behaviors: torch.Tensor
    slot: int | None = None
    runs: tuple[Run, ...] | None = None
    grid: tuple[int, int] | None = None

    @classmethod
    def of_slot(cls, slot: int, behaviors: torch.Tensor) -> "Routing":
        """Tokens that are all of one slot, as in a step of decoding."""
        return cls(None, None, None, behaviors, slot)

    @classmethod
    def from_slots(
        cls, slots: torch.Tensor, behaviors: torch.Tensor, num_slots: int, padding: torch.Tensor | None = None
    ) -> "Routing":
        """Sort tokens by slot.

        Args:
            slots (`torch.LongTensor` of shape `(batch_size, seq_len)`): from 0 to `num_slots - 1`.
            behaviors (`torch.LongTensor` of shape `(batch_size, seq_len)`): rows of the behavior embedding.
            num_slots: number of experts.
            padding (`torch.BoolTensor` of shape `(batch_size, seq_len)`, *optional*): tokens whose states nobody
                reads. At the end of a row they may go to any expert, and go where the columns go.
        """
        grid = runs = None
        if fuses_by_hand(behaviors):
            grid = _grid(slots, num_slots, padding)
            if grid is not None:
                slots = _slots_of_columns(*grid, num_slots).expand_as(slots)
        flat = slots.reshape(-1)
        order = flat.argsort(stable=True)
        restore = torch.empty_like(order).scatter_(0, order, torch.arange(flat.numel(), device=flat.device))
        ends = (flat[:, None] <= torch.arange(num_slots, device=flat.device)).sum(0, dtype=torch.int32)
        if fuses_by_hand(behaviors):
            runs = runs_of_one_size(ends)
        return cls(order, restore, ends, behaviors, runs=runs, grid=grid)

    @property
    def special_columns(self) -> int:
        """Special columns that are a group of their own size; 0 where there is no grid."""
        return self.grid[0] if self.grid is not None and len(self.runs) == 2 and self.runs[0][0] == 1 else 0


def _slots_of_columns(num_special: int, num_interactions: int, num_slots: int) -> torch.Tensor:
    columns = torch.arange(1, num_slots, device="cpu").repeat(num_interactions)
    return torch.cat([torch.full((num_special,), SPECIAL_SLOT, device="cpu"), columns])


def _grid(slots: torch.Tensor, num_slots: int, padding: torch.Tensor | None) -> tuple[int, int] | None:
    """Special columns and interactions of rows that all have the same, padding at the end aside."""
    if not slots.numel():
        return None
    special = next((column for column, slot in enumerate(slots[0].tolist()) if slot != SPECIAL_SLOT), slots.shape[1])
    interactions, rest = divmod(slots.shape[1] - special, max(num_slots - 1, 1))
    if rest or not interactions:
        return None
    agree = slots == _slots_of_columns(special, interactions, num_slots)
    if padding is not None and bool((padding[:, :-1] <= padding[:, 1:]).all()):
        agree |= padding
    return (special, interactions) if bool(agree.all()) else None


def runs_of_one_size(ends: torch.Tensor) -> tuple[Run, ...]:
    """Neighbouring groups of one size, of `(num_groups,)` end rows; the empty ones as well."""
    ends = ends.tolist()
    sizes = [end - start for start, end in zip([0, *ends], ends, strict=False)]
    return tuple((len(list(members)), size) for size, members in groupby(sizes))


def by_group(rows: torch.Tensor, runs: tuple[Run, ...]) -> list[torch.Tensor]:
    """Views of `(num_tokens, width)` in slot order: `(groups, tokens of a group, width)` for each run."""
    if len(runs) == 1:
        return [rows.view(*runs[0], rows.shape[1])]
    parts = rows.split([groups * size for groups, size in runs])
    return [part.view(*run, rows.shape[1]) for part, run in zip(parts, runs, strict=True)]


def _views(
    rows: torch.Tensor, columns: torch.Tensor, grid: tuple[int, int]
) -> list[tuple[torch.Tensor, torch.Tensor]]:
    """Pairs of views of `(num_tokens, width)` in slot order and `(batch_size, seq_len, width)` that correspond.

    Columns are contiguous; rows may be a part of wider ones, and may leave out the special tokens.
    """
    special, interactions = grid
    batch, length, width = columns.shape
    period, step, start = (length - special) // interactions, rows.stride(0), rows.storage_offset()
    in_front = batch * special if len(rows) == batch * length else 0
    row_steps = (batch * interactions * step, interactions * step, step, 1)
    column_steps = (width, length * width, period * width, 1)
    shape = (period, batch, interactions, width)
    first, second = start + in_front * step, columns.storage_offset() + special * width
    pairs = [(rows.as_strided(shape, row_steps, first), columns.as_strided(shape, column_steps, second))]
    if in_front:
        shape, row_steps = (batch, special, width), (special * step, step, 1)
        pairs.append((rows.as_strided(shape, row_steps, start), columns[:, :special]))
    return pairs


def to_rows(rows: torch.Tensor, columns: torch.Tensor, routing: Routing) -> None:
    """Write `(batch_size, seq_len, width)` to `(num_tokens, width)` in slot order, whatever the types."""
    if routing.grid is None:
        rows.copy_(columns.reshape(-1, columns.shape[-1]).index_select(0, routing.order))
        return
    for row, column in _views(rows, columns.contiguous(), routing.grid):
        row.copy_(column)


def to_columns(columns: torch.Tensor, rows: torch.Tensor, routing: Routing) -> None:
    """Write `(num_tokens, width)` in slot order to contiguous `(batch_size, seq_len, width)`, whatever the types."""
    if routing.grid is None:
        columns.copy_(rows.index_select(0, routing.restore).view(columns.shape))
        return
    for row, column in _views(rows, columns, routing.grid):
        column.copy_(row)


__all__ = ["Routing", "Run", "by_group", "runs_of_one_size", "to_columns", "to_rows"]
