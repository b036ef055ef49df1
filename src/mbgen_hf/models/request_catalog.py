"""The items a request may be answered with, as states that decoding carries along."""

import torch

from .item_trie import ItemTrie
from .token_space import TokenSpace


class RequestCatalog:
    """What may follow what, for every row of a batch.

    Args:
        trie: the catalog.
        token_space: the layout of ids.

    Attributes:
        num_users: number of rows it was made for; `None` where all rows are alike.
    """

    num_users: int | None = None

    def __init__(self, trie: ItemTrie, token_space: TokenSpace):
        self.trie, self.space = trie, token_space

    def start(self, ids: torch.LongTensor) -> torch.Tensor:
        """The state behind `(num_users, num_beams, depth)` ids: a behavior and the first codes of an item."""
        state = self.trie.root(ids.shape[0] * ids.shape[1]).view(ids.shape[:2])
        for level in range(ids.shape[-1] - 1):
            state = self.advance(state, ids[..., 1 + level] - self.space.code_offsets[level], level)
        return state

    def allowed_behaviors(self, num_users: int) -> torch.Tensor:
        """Behaviors with which anything is reachable, `(num_users, num_behaviors)`."""
        return torch.ones(num_users, len(self.space.behaviors), dtype=torch.bool, device=self.trie.device)

    def allowed(self, state: torch.Tensor, level: int) -> torch.Tensor:
        """Codes that may follow, `(num_users, num_beams, code_sizes[level])`."""
        return self.trie.allowed(state.flatten(), level).view(*state.shape, -1)

    def advance(self, state: torch.Tensor, code: torch.LongTensor, level: int) -> torch.Tensor:
        """The states after one more code each."""
        return self.trie.advance(state.flatten(), code.flatten(), level).view(state.shape)

    def items(self, state: torch.Tensor) -> torch.LongTensor:
        """Catalog indices of the states behind the last code, -1 for none."""
        return self.trie.item_at(state)


__all__ = ["RequestCatalog"]
