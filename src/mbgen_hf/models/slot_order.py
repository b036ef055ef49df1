"""Tokens in slot order: where each goes, and how hidden states get there and back.

A token's expert is its slot. Once per forward pass it is found which tokens belong to which slot; a layer brings its
tokens into that order, where the experts are one product per weight, and puts the results back.

In rows of whole interactions behind common special tokens (BOS) slots repeat along the columns: tokens of a slot are
a strided view, and no index is needed. Collators announce such rows; on the CPU, where looking at the data costs
nothing, they are recognised. Other rows (packed, padded on the left, with EOS at different ends) are counted into
order, without a sort, boolean indexing or waiting for the device.
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
        order: `(num_tokens,)` flat positions in slot order, stable; `None` where there is a grid.
        restore: `(num_tokens,)` the inverse permutation; likewise.
        ends: `(num_slots,)` `int32`, where each slot's tokens end in slot order; likewise.
        behaviors: `(batch_size, seq_len)` row of the behavior embedding of every token, 0 = padding.
        slot: the slot of all tokens where they have the same one; all others but `behaviors` are then `None`.
        runs: neighbouring slots with the same number of tokens: of a grid the special tokens and all others, else
            where products are made by hand.
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
        cls,
        slots: torch.Tensor,
        behaviors: torch.Tensor,
        num_slots: int,
        padding: torch.Tensor | None = None,
        num_special: int | None = None,
    ) -> "Routing":
        """Bring tokens into the order of their slots.

        Args:
            slots (`torch.LongTensor` of shape `(batch_size, seq_len)`): from 0 to `num_slots - 1`.
            behaviors (`torch.LongTensor` of shape `(batch_size, seq_len)`): rows of the behavior embedding.
            num_slots: number of experts.
            padding (`torch.BoolTensor` of shape `(batch_size, seq_len)`, *optional*): tokens whose states nobody
                reads. At the end of a row they may go to any expert, and go where the columns go.
            num_special: how many special tokens every row begins with, if it is known that whole interactions and
                padding follow them.

        Raises:
            ValueError: `num_special` is given for other rows; found by the length alone except on the CPU.
        """
        by_hand = fuses_by_hand(behaviors)
        if num_special is not None:
            grid = _announced_grid(slots, num_slots, num_special, padding, look=by_hand)
        else:
            grid = _grid(slots, num_slots, padding) if by_hand else None
        if grid is not None:
            runs = ((1, len(slots) * grid[0]), (num_slots - 1, len(slots) * grid[1]))
            return cls(None, None, None, behaviors, runs=runs, grid=grid)
        order, restore, ends = _counted(slots.reshape(-1), num_slots)
        return cls(order, restore, ends, behaviors, runs=runs_of_one_size(ends) if by_hand else None)

    def slots(self) -> torch.Tensor:
        """`(batch_size, seq_len)` the slot that each token goes to."""
        if self.slot is not None:
            return torch.full_like(self.behaviors, self.slot)
        if self.grid is None:
            return torch.bucketize(self.restore, self.ends, right=True).view(self.behaviors.shape)
        columns = _slots_of_columns(*self.grid, self.runs[1][0] + 1)
        return columns.to(self.behaviors.device).expand_as(self.behaviors)


def _counted(slots: torch.Tensor, num_slots: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Order, inverse and ends of `(num_tokens,)` slots, by counting: stable, and without a sort."""
    places = torch.arange(slots.numel(), device=slots.device)
    belongs = slots == torch.arange(num_slots, device=slots.device)[:, None]
    sizes = belongs.sum(1)
    ends = sizes.cumsum(0)
    restore = belongs.cumsum(1).gather(0, slots[None])[0] - 1 + (ends - sizes)[slots]
    order = torch.empty_like(restore).scatter_(0, restore, places)
    return order, restore, ends.to(torch.int32)


def _slots_of_columns(num_special: int, num_interactions: int, num_slots: int) -> torch.Tensor:
    columns = torch.arange(1, num_slots, device="cpu").repeat(num_interactions)
    return torch.cat([torch.full((num_special,), SPECIAL_SLOT, device="cpu"), columns])


def _grid(slots: torch.Tensor, num_slots: int, padding: torch.Tensor | None) -> tuple[int, int] | None:
    """Special columns and interactions of rows that all have the same, padding at the end aside."""
    if not slots.numel():
        return None
    special = next((column for column, slot in enumerate(slots[0].tolist()) if slot != SPECIAL_SLOT), slots.shape[1])
    interactions, rest = divmod(slots.shape[1] - special, max(num_slots - 1, 1))
    if rest or not interactions or not _fits(slots, (special, interactions), num_slots, padding):
        return None
    return special, interactions


def _announced_grid(slots, num_slots: int, num_special: int, padding, look: bool) -> tuple[int, int] | None:
    """The grid that rows are said to have; `None` where they hold no interaction."""
    interactions, rest = divmod(slots.shape[1] - num_special, num_slots - 1)
    wrong = rest or interactions < 0
    if wrong or (look and not _fits(slots, (num_special, interactions), num_slots, padding)):
        raise ValueError(
            f"`whole_rows`: expected rows of {num_special} special tokens and interactions of {num_slots - 1} tokens, "
            f"padded on the right, found {slots.shape[1]} tokens in another order"
        )
    return (num_special, interactions) if interactions else None


def _fits(slots: torch.Tensor, grid: tuple[int, int], num_slots: int, padding: torch.Tensor | None) -> bool:
    """Whether all rows have this grid, padding at their end aside."""
    agree = slots == _slots_of_columns(*grid, num_slots)
    if padding is not None and bool((padding[:, :-1] <= padding[:, 1:]).all()):
        agree |= padding
    return bool(agree.all())


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


@dataclass(frozen=True)
class Blocks:
    """Tokens in slot order: `(groups, tokens of a group, width)` for each run.

    Args:
        of_runs: the blocks.
        rows: `(num_tokens, width)` that the blocks are views of; where they are of one type.
    """

    of_runs: list[torch.Tensor]
    rows: torch.Tensor | None

    @classmethod
    def empty(cls, like: torch.Tensor, routing: Routing, width: int, dtypes: list[torch.dtype]) -> "Blocks":
        """Memory for blocks of these types, one for each run, on the device of `like`."""
        if len(set(dtypes)) > 1:
            pairs = zip(routing.runs, dtypes, strict=True)
            return cls([like.new_empty(*run, width, dtype=dtype) for run, dtype in pairs], None)
        rows = like.new_empty(routing.behaviors.numel(), width, dtype=dtypes[0])
        return cls(by_group(rows, routing.runs), rows)

    @classmethod
    def of_columns(cls, parts: list[torch.Tensor], routing: Routing, dtypes: list[torch.dtype]) -> "Blocks":
        """Bring tokens into slot order.

        Args:
            parts: `(batch_size, seq_len, width)` each; side by side they are what a token holds.
            routing: of these tokens, with `runs`.
            dtypes: the type of each block.
        """
        widths = [part.shape[-1] for part in parts]
        if routing.grid is None:
            columns = torch.cat(parts, dim=-1) if len(parts) > 1 else parts[0]
            rows = columns.reshape(-1, columns.shape[-1]).index_select(0, routing.order)
            blocks = by_group(rows, routing.runs)
            return cls([block.to(dtype) for block, dtype in zip(blocks, dtypes, strict=True)], None)
        blocks, parts = cls.empty(parts[0], routing, sum(widths), dtypes), [part.contiguous() for part in parts]
        for number, block in enumerate(blocks.of_runs):
            for piece, part in zip(block.split(widths, dim=-1), parts, strict=True):
                of_block, of_columns = _views(piece, part, routing, number)
                of_block.copy_(of_columns)
        return blocks

    def to_columns(self, routing: Routing, parts: list[tuple[int, torch.dtype]]) -> list[torch.Tensor]:
        """The way back: `(batch_size, seq_len, width)` for the width and type of each part."""
        shape, widths = routing.behaviors.shape, [width for width, _ in parts]
        if routing.grid is None:
            rows = self.rows
            if rows is None:
                rows = torch.cat([block.flatten(0, 1) for block in self.of_runs])
            pieces = rows.index_select(0, routing.restore).split(widths, dim=-1)
            pairs = zip(pieces, parts, strict=True)
            return [piece.to(dtype).reshape(*shape, width) for piece, (width, dtype) in pairs]
        columns = [self.of_runs[-1].new_empty(*shape, width, dtype=dtype) for width, dtype in parts]
        for number, block in enumerate(self.of_runs):
            for piece, part in zip(block.split(widths, dim=-1), columns, strict=True):
                of_block, of_columns = _views(piece, part, routing, number)
                of_columns.copy_(of_block)
        return columns


def _views(
    block: torch.Tensor, columns: torch.Tensor, routing: Routing, number: int
) -> tuple[torch.Tensor, torch.Tensor]:
    """Views of a run of a grid and of contiguous `(batch_size, seq_len, width)` that correspond."""
    (special, interactions), (batch, _, width) = routing.grid, columns.shape
    if number == 0:
        return block.view(batch, special, width), columns[:, :special]
    columns = columns[:, special:].view(batch, interactions, len(block), width)
    return block.view(len(block), batch, interactions, width), columns.permute(2, 0, 1, 3)


__all__ = ["Blocks", "Routing", "Run", "by_group", "runs_of_one_size"]
