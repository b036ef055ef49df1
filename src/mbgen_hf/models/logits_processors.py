"""Logits processors that keep stock `generate` inside the catalog."""

from collections.abc import Sequence

import torch
from transformers import LogitsProcessor

from .item_trie import ItemTrie
from .request_catalog import RequestCatalog
from .shared_history_search import normalized
from .token_space import BEHAVIOR_SLOT, PAD, TokenSpace


class CatalogConstraint(LogitsProcessor):
    """Lets only what leads to an item of the catalog follow: a behavior first, then codes along the trie.

    Works under stock `generate`: greedy, sampling and beam search.

    Args:
        catalog: the trie, or the catalog of a request with sets of its own for every row.
        token_space: the layout of ids.
        start: column of the ids at which the generated interaction begins, that is of its behavior token.
        normalize: whether each step is normalised over what may follow, so that the scores of all items (given the
            behavior) sum to 1 as probabilities; by default log-probabilities over the whole vocabulary are kept.
    """

    def __init__(
        self, catalog: ItemTrie | RequestCatalog, token_space: TokenSpace, start: int, normalize: bool = False
    ):
        self.catalog = RequestCatalog(catalog, token_space) if isinstance(catalog, ItemTrie) else catalog
        self.token_space, self.start, self.normalize = token_space, start, normalize

    def __call__(self, input_ids: torch.LongTensor, scores: torch.FloatTensor) -> torch.FloatTensor:
        # The rows of a user, one per beam or sample, follow one another.
        users = self.catalog.num_users or 1
        ids = input_ids[:, self.start :].unflatten(0, (users, len(input_ids) // users))
        level = ids.shape[-1] - 1
        first, width = self.token_space.slot_range(BEHAVIOR_SLOT + ids.shape[-1])
        if level < 0:
            allowed = self.catalog.allowed_behaviors(ids.shape[0])[:, None].expand(-1, ids.shape[1], -1)
        else:
            allowed = self.catalog.allowed(self.catalog.start(ids), level)
        kept = scores[:, first : first + width].masked_fill(~allowed.flatten(0, 1), -torch.inf)
        if self.normalize:
            kept = normalized(kept.float()).to(scores.dtype)
        constrained = torch.full_like(scores, -torch.inf)
        constrained[:, first : first + width] = kept
        # A row with nothing to reach has to go somewhere, or sampling fails; PAD marks it.
        constrained[:, PAD] = torch.where(allowed.any(-1).flatten(), -torch.inf, 0.0).to(scores.dtype)
        return constrained


class BehaviorConstraint(LogitsProcessor):
    """Lets only the given behaviors be generated where a behavior comes next; leaves every other step alone.

    Args:
        behaviors: names of the behaviors that may be generated.
        token_space: the layout of ids.
        start: column of the ids at which the generated interaction begins.
    """

    def __init__(self, behaviors: Sequence[str], token_space: TokenSpace, start: int):
        if not behaviors:
            raise ValueError("`behaviors`: expected at least one behavior that may be generated, found none")
        self.ids = [token_space.behavior_id(name) for name in behaviors]
        self.start = start

    def __call__(self, input_ids: torch.LongTensor, scores: torch.FloatTensor) -> torch.FloatTensor:
        if input_ids.shape[1] != self.start:
            return scores
        constrained = torch.full_like(scores, -torch.inf)
        constrained[:, self.ids] = scores[:, self.ids]
        return constrained


__all__ = ["BehaviorConstraint", "CatalogConstraint"]
