"""The interactions in rows of token ids: where each is, what it is of, and what has happened with its item."""

from collections.abc import Iterator
from dataclasses import dataclass

import torch

from .token_space import BEHAVIOR_SLOT, TokenSpace


@dataclass(frozen=True)
class Interactions:
    """The whole interactions of rows of token ids, in their order, on a grid.

    Args:
        last: `(batch_size, n)` column of each interaction's last code.
        whole: `(batch_size, n)` which places of the grid hold an interaction.
        codes: `(batch_size, n, m)` token ids of its item; -1 where there is none.
        behaviors: `(batch_size, n)` class label of its behavior; -1 where there is none.
    """

    last: torch.LongTensor
    whole: torch.Tensor
    codes: torch.LongTensor
    behaviors: torch.LongTensor

    @classmethod
    def of(cls, ids: torch.LongTensor, space: TokenSpace) -> "Interactions":
        """Find the interactions of `(batch_size, seq_len)` ids; codes that were not all written yet are none."""
        levels, width = space.num_code_levels, space.num_code_levels + 1
        ends = space.slots(ids) == BEHAVIOR_SLOT + levels
        # As many places as could be there: their number follows from the shape, not from a look at the ids.
        places = max(ids.shape[1] // width, 1)
        last = (~ends).to(torch.int8).argsort(dim=1, stable=True)[:, :places]
        whole = ends.gather(1, last)
        columns = last[..., None] + torch.arange(1 - levels, 1, device=ids.device)
        codes = ids.gather(1, columns.clamp(min=0).flatten(1)).view(columns.shape)
        behaviors = ids.gather(1, (last - levels).clamp(min=0)) - space.behavior_offset
        return cls(last, whole, codes.masked_fill(~whole[..., None], -1), behaviors.masked_fill(~whole, -1))

    def repeated(self, rows: int) -> "Interactions":
        """Each row as often as gives so many rows."""
        times = rows // len(self.last)
        parts = self.last, self.whole, self.codes, self.behaviors
        return Interactions(*(part.repeat_interleave(times, dim=0) for part in parts))


def same_item(codes: torch.LongTensor, others: torch.LongTensor) -> torch.Tensor:
    """Which codes agree: `(batch_size, q, depth)` and `(batch_size, n, depth)` to `(batch_size, q, n)`."""
    return (codes[:, :, None] == others[:, None]).all(-1)


def happened_with_items(history: Interactions, visible: torch.Tensor, num_behaviors: int) -> Iterator[torch.Tensor]:
    """For each behavior, which interactions have an item that a visible interaction of the behavior has as well.

    Args:
        history: the interactions.
        visible: `(batch_size, queries, n)` bool, which of them each query sees.
        num_behaviors: number of behaviors.

    Yields:
        `(batch_size, queries, n)` bool.
    """
    same = same_item(history.codes, history.codes).float()
    for behavior in range(num_behaviors):
        seen = visible & (history.behaviors == behavior)[:, None]
        yield seen.float() @ same > 0


__all__ = ["Interactions", "happened_with_items", "same_item"]
