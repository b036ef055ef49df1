"""The items a request may be answered with, as states that decoding carries along.

Without sets that is the catalog's trie. A list of candidates becomes a small trie of its own, with the row of the
batch as its first level; excluded items become another one beside it, in which every prefix is marked whose reachable
items are all excluded. The cost of either follows the length of the lists, not the size of the catalog.
"""

import copy

import numpy as np
import torch

from .item_trie import ItemTrie
from .token_space import TokenSpace


class RequestCatalog:
    """What may follow what, for every row of a batch.

    States have shape `(num_users, num_beams, 1 or 2)`: the node reached among the reachable items and, with excluded
    items, the node reached among those; -1 where there is none.

    Args:
        trie: the catalog.
        token_space: the layout of ids.
        item_codes: `(num_items, m)` codes of the catalog; needed with eligibility and sets.
        eligible: `(num_items, num_behaviors)` bool, which items may follow which behavior; `None` for all.

    Attributes:
        num_users: number of rows it was made for; `None` where all rows are alike.
    """

    def __init__(
        self,
        trie: ItemTrie,
        token_space: TokenSpace,
        item_codes: torch.Tensor | None = None,
        eligible: torch.Tensor | None = None,
    ):
        self.trie, self.space, self._codes = trie, token_space, item_codes
        self.num_users: int | None = None
        self.excluded: ItemTrie | None = None
        self._num_items = trie.num_items
        # Behaviors with the same eligible items share a group, and each group of each row has a root of its own.
        self._label, self._masks = behavior_groups(eligible, len(token_space.behaviors), trie.device)
        self._groups = len(self._masks)
        self._lead = 0  # Levels of the trie before the first code.
        self._rows = 1  # Rows that the trie tells apart.
        self._roots = torch.zeros(1, len(self._label), dtype=torch.long, device=trie.device)
        if eligible is not None:
            items = torch.arange(trie.num_items, device=trie.device)
            self._reach_only(torch.zeros_like(items), items)

    def with_sets(self, candidates, exclude, num_users: int) -> "RequestCatalog":
        """The catalog of a request.

        Args:
            candidates: `None`, or a list of catalog indices for all rows, or one list per row: nothing else is
                reachable.
            exclude: the same: none of these is reachable.
            num_users: number of rows of the batch.

        Raises:
            ValueError: lists that do not fit the batch, or indices that are not in the catalog.
        """
        if candidates is None and exclude is None:
            return self
        request, per_row = copy.copy(self), False
        if candidates is not None:
            row, items, per_row = item_sets("candidates", candidates, num_users, self._num_items, self.trie.device)
            request._rows = num_users if per_row else 1
            request._reach_only(row, items)
        request.num_users = num_users if per_row else None
        if exclude is not None:
            row, items, per_row = item_sets("exclude", exclude, num_users, self._num_items, self.trie.device)
            request.num_users = num_users if per_row else request.num_users
            request._exclude(row, items, per_row)
        return request

    def _reach_only(self, row: torch.Tensor, items: torch.Tensor) -> None:
        """A trie of the given items alone; `row` says whose they are."""
        parts = []
        for group, mask in enumerate(self._masks):
            kept = slice(None) if mask is None else mask[items]
            parts.append(((row * self._groups + group)[kept], items[kept]))
        owner, items = (torch.cat(column) for column in zip(*parts, strict=True))
        first = torch.arange(self._rows, device=row.device)[:, None] * self._groups + self._label
        self._roots = torch.full_like(first, -1)
        if len(items):
            self._lead = 1
            self.trie = ItemTrie(self._grouped(owner, items), (self._rows * self._groups, *self.space.code_sizes))
            self._roots = self._first_nodes(self.trie, first)

    def _exclude(self, row: torch.Tensor, items: torch.Tensor, per_row: bool) -> None:
        """Mark every prefix below which all reachable items are among the given ones."""
        rows = self.num_users or 1
        if rows > 1 and not per_row:
            row, items = torch.arange(rows, device=row.device).repeat_interleave(len(items)), items.repeat(rows)
        groups = torch.arange(self._groups, device=row.device)
        owner, items = (row[:, None] * self._groups + groups).flatten(), items.repeat_interleave(self._groups)
        codes = self._grouped(owner, items)
        nodes = self._nodes_of(owner, codes)
        reachable = nodes[-1] >= 0
        if not bool(reachable.any()):
            return
        codes, nodes = codes[reachable], [node[reachable] for node in nodes]
        self.excluded = ItemTrie(codes, (rows * self._groups, *self.space.code_sizes), rows_only=True)
        self._all_excluded, excluded = [], self.excluded.root(len(codes))
        for depth, node in enumerate(nodes):
            excluded = self.excluded.advance(excluded, codes[:, depth].long(), depth)
            number = torch.arange(self.excluded.num_nodes(depth + 1), device=row.device)
            here = self.excluded.leaf_counts(number, depth + 1)
            there = torch.zeros_like(here).scatter_(0, excluded, self.trie.leaf_counts(node, self._lead + depth))
            self._all_excluded.append(here >= there)
        first = torch.arange(rows, device=row.device)[:, None] * self._groups + self._label
        self._excluded_roots = self._first_nodes(self.excluded, first)
        gone = (self._excluded_roots >= 0) & self._all_excluded[0][self._excluded_roots]
        self._roots = self._roots.expand_as(first).masked_fill(gone, -1)

    def _nodes_of(self, owner: torch.Tensor, codes: torch.Tensor) -> list[torch.Tensor]:
        """Nodes of the trie along grouped codes, at every depth from the group on."""
        node = self.trie.root(len(codes))
        if self._lead:
            node = self.trie.advance(node, owner % (self._rows * self._groups), 0)
        nodes = [node]
        for depth in range(self.space.num_code_levels):
            nodes.append(self.trie.advance(nodes[-1], codes[:, 1 + depth].long(), self._lead + depth))
        return nodes

    def _grouped(self, owner: torch.Tensor, items: torch.Tensor) -> torch.Tensor:
        """`(len(items), 1 + m)`: owner and codes of every entry."""
        codes = self._codes.index_select(0, items)
        return torch.cat([owner[:, None].to(codes.dtype), codes], dim=1)

    @staticmethod
    def _first_nodes(trie: ItemTrie, first: torch.Tensor) -> torch.Tensor:
        return trie.advance(trie.root(first.numel()), first.flatten(), 0).view(first.shape)

    def start(self, ids: torch.LongTensor) -> torch.Tensor:
        """The state behind `(num_users, num_beams, depth)` ids: a behavior and the first codes of an item."""
        behavior = ids[..., 0] - self.space.behavior_offset
        # What is no behavior, such as the padding of an ended row, leads nowhere.
        known = (behavior >= 0) & (behavior < len(self._label))
        behavior = behavior.where(known, 0)
        roots = [self._roots] if self.excluded is None else [self._roots, self._excluded_roots]
        state = [root.expand(len(ids), -1).gather(1, behavior).where(known, -1) for root in roots]
        state = torch.stack(state, dim=-1)
        for level in range(ids.shape[-1] - 1):
            state = self.advance(state, ids[..., 1 + level] - self.space.code_offsets[level], level)
        return state

    def allowed_behaviors(self, num_users: int) -> torch.Tensor:
        """Behaviors with which anything is reachable, `(num_users, num_behaviors)`."""
        return (self._roots >= 0).expand(num_users, -1)

    def allowed(self, state: torch.Tensor, level: int) -> torch.Tensor:
        """Codes that may follow, `(num_users, num_beams, code_sizes[level])`."""
        allowed = self.trie.allowed(state[..., 0].flatten(), self._lead + level)
        if self.excluded is not None:
            gone = self.excluded.marked(state[..., 1].flatten(), 1 + level, self._all_excluded[1 + level])
            allowed = allowed & ~gone
        return allowed.view(*state.shape[:2], -1)

    def bias(self, state: torch.Tensor, level: int) -> torch.Tensor:
        """The same to be added to scores: 0 for codes that may follow, `-inf` elsewhere."""
        bias = self.trie.bias(state[..., 0].flatten(), self._lead + level)
        if self.excluded is not None:
            gone = self.excluded.marked(state[..., 1].flatten(), 1 + level, self._all_excluded[1 + level])
            bias = bias.masked_fill(gone, -torch.inf)
        return bias.view(*state.shape[:2], -1)

    def advance(self, state: torch.Tensor, code: torch.LongTensor, level: int) -> torch.Tensor:
        """The states after one more code each."""
        nodes = [self.trie.advance(state[..., 0].flatten(), code.flatten(), self._lead + level)]
        if self.excluded is not None:
            nodes.append(self.excluded.advance(state[..., 1].flatten(), code.flatten(), 1 + level))
        return torch.stack(nodes, dim=-1).view(state.shape)


def behavior_groups(eligible: torch.Tensor | None, count: int, device) -> tuple[torch.Tensor, list]:
    """Group of every behavior, `(count,)`, and the eligible items of every group, `None` for all."""
    if eligible is None:
        return torch.zeros(count, dtype=torch.long, device=device), [None]
    if eligible.shape[1] != count:
        raise ValueError(f"`eligible`: expected a column for each of {count} behaviors, found {eligible.shape[1]}")
    columns, label = torch.unique(eligible, dim=1, return_inverse=True)
    return label.to(device), list(columns.bool().to(device).unbind(1))


def _indices(name: str, row, device) -> torch.Tensor:
    if isinstance(row, np.ndarray) and not row.flags.writeable:
        row = row.copy()  # Columns of datasets are such; torch would warn.
    try:
        return torch.as_tensor(row, device=device).flatten()
    except (TypeError, ValueError, RuntimeError):
        raise ValueError(
            f"`{name}`: expected catalog indices, which `tokenizer.item_sets` gives for raw ids, found {row!r}"
        ) from None


def item_sets(name: str, sets, num_users: int, num_items: int, device) -> tuple:
    """Rows and catalog indices of sets, each pair once, and whether every row has its own.

    Args:
        name: of the argument, for messages.
        sets: indices for all rows (a list or an array of one dimension), or one list of them per row (a list of
            lists, or an array of two dimensions). -1 stands for no item.
        num_users: number of rows of the batch.
        num_items: size of the catalog.
        device: of the results.
    """
    array = isinstance(sets, (torch.Tensor, np.ndarray))
    if not array and not isinstance(sets, (list, tuple)):
        raise ValueError(f"`{name}`: expected a list of catalog indices, or one list per row, found {sets!r}")
    nested = sets.ndim == 2 if array else any(isinstance(row, (list, tuple, torch.Tensor, np.ndarray)) for row in sets)
    lists = [_indices(name, row, device) for row in (sets if nested else [sets])]
    if nested and len(lists) != num_users:
        raise ValueError(f"`{name}`: expected one list for all rows or {num_users} lists, found {len(lists)} lists")
    row = torch.repeat_interleave(
        torch.arange(len(lists), device=device), torch.tensor([len(part) for part in lists], device=device)
    )
    if any(part.numel() and (part.is_floating_point() or part.dtype == torch.bool) for part in lists):
        raise ValueError(f"`{name}`: expected catalog indices, found {next(p.dtype for p in lists if p.numel())}")
    items = torch.cat([part.long() for part in lists]) if lists else row
    if len(items) and not bool(((items >= -1) & (items < num_items)).all()):
        wrong = items[(items < -1) | (items >= num_items)][0].item()
        raise ValueError(f"`{name}`: expected catalog indices from 0 to {num_items - 1}, found {wrong}")
    pair = torch.unique((row * num_items + items)[items >= 0])
    return pair // num_items, pair % num_items, nested


__all__ = ["RequestCatalog"]
