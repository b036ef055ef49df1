"""The catalog as a prefix automaton in tensors.

A node at depth j stands for the first j codes of at least one item. Nodes of a depth are numbered in the order of
their codes, so a node's children, and the items below it, are a contiguous range. One step of decoding is a binary
search for the child and one gather for what may follow; neither depends on the catalog beyond its logarithm.
"""

import torch


# Up to this many (node, code) cells a level keeps a dense table of what may follow; above it, compressed rows.
DENSE_CELLS = 1 << 22


class ItemTrie:
    """Prefix automaton over the `(num_items, m)` code array, on that array's device.

    Args:
        item_codes (`torch.Tensor` of shape `(num_items, m)`): integer codes; column j is below `code_sizes[j]`.
        code_sizes: number of ids of each code level.

    Raises:
        ValueError: no items, a code out of its range, or two items with the same codes.
    """

    def __init__(self, item_codes: torch.Tensor, code_sizes: list[int] | tuple[int, ...]):
        self._check(item_codes, code_sizes)
        self.code_sizes = tuple(code_sizes)
        self.num_items, self.num_levels = item_codes.shape
        codes, self._item_of_leaf = _sort_rows(item_codes.long(), self.code_sizes)
        self._child_keys: list[torch.Tensor] = []
        self._child_ends: list[torch.Tensor] = []
        self._allowed: list[torch.Tensor | None] = []
        self._max_children: list[int] = []
        node = torch.zeros(self.num_items, dtype=torch.long, device=codes.device)
        num_nodes = 1
        for level, size in enumerate(self.code_sizes):
            keys, node = torch.unique_consecutive(node * size + codes[:, level], return_inverse=True)
            self._add_level(keys, size, num_nodes)
            num_nodes = keys.numel()
        if num_nodes != self.num_items:
            self._raise_shared_codes(node)

    @staticmethod
    def _check(item_codes: torch.Tensor, code_sizes) -> None:
        if item_codes.ndim != 2 or item_codes.shape[0] == 0 or item_codes.shape[1] != len(code_sizes):
            raise ValueError(
                f"`item_codes`: expected shape (num_items, {len(code_sizes)}) with at least one item, "
                f"found {tuple(item_codes.shape)}"
            )
        limits = torch.as_tensor(code_sizes, device=item_codes.device)
        wrong = ((item_codes < 0) | (item_codes >= limits)).nonzero()
        if len(wrong):
            item, level = wrong[0].tolist()
            raise ValueError(
                f"`item_codes`: expected codes from 0 to {code_sizes[level] - 1} at level {level}, "
                f"found {item_codes[item, level].item()} for item {item}"
            )

    def _add_level(self, keys: torch.Tensor, size: int, num_nodes: int) -> None:
        """Record the edges of one level: `keys = parent * size + code`, ascending."""
        parents = keys // size
        counts = torch.bincount(parents, minlength=num_nodes)
        self._child_keys.append(keys)
        self._child_ends.append(counts.cumsum(0))
        self._max_children.append(int(counts.max()))
        if num_nodes * size <= DENSE_CELLS:
            allowed = torch.zeros(num_nodes * size, dtype=torch.bool, device=keys.device)
            allowed[keys] = True
            self._allowed.append(allowed.view(num_nodes, size))
        else:
            self._allowed.append(None)

    def _raise_shared_codes(self, leaf_of_row: torch.Tensor) -> None:
        row = int((leaf_of_row[1:] == leaf_of_row[:-1]).nonzero()[0])
        first, second = sorted(self._item_of_leaf[row : row + 2].tolist())
        raise ValueError(
            f"`item_codes`: expected different codes for every item, found the same ones for items {first} and "
            f"{second}; add a last code level that tells them apart"
        )

    @property
    def device(self) -> torch.device:
        return self._item_of_leaf.device

    def root(self, num_rows: int) -> torch.Tensor:
        """The state before the first code, `(num_rows,)`."""
        return torch.zeros(num_rows, dtype=torch.long, device=self.device)

    def advance(self, node: torch.Tensor, code: torch.Tensor, level: int) -> torch.Tensor:
        """Follow one code.

        Args:
            node (`torch.LongTensor` of shape `(num_rows,)`): nodes at depth `level`, -1 where no item is left.
            code (`torch.LongTensor` of shape `(num_rows,)`): any integers; those that no item has lead to -1.
            level: the code level, 0-based.

        Returns:
            `(num_rows,)` nodes at depth `level + 1`, -1 where no item has these codes.
        """
        size, keys = self.code_sizes[level], self._child_keys[level]
        key = node * size + code
        child = torch.searchsorted(keys, key).clamp(max=keys.numel() - 1)
        found = (keys[child] == key) & (node >= 0) & (code >= 0) & (code < size)
        return torch.where(found, child, -1)

    def allowed(self, node: torch.Tensor, level: int) -> torch.Tensor:
        """Codes that may follow: `(num_rows, code_sizes[level])` bool, all false for -1."""
        alive = (node >= 0)[:, None]
        node = node.clamp(min=0)
        table = self._allowed[level]
        if table is not None:
            return table[node] & alive
        size, ends, keys = self.code_sizes[level], self._child_ends[level], self._child_keys[level]
        end = ends[node]
        start = torch.where(node > 0, ends[node - 1], 0)
        child = start[:, None] + torch.arange(self._max_children[level], device=self.device)
        exists = (child < end[:, None]) & alive
        # Slots beyond the range write into a spare last column, which is cut off.
        code = torch.where(exists, keys[child.clamp(max=keys.numel() - 1)] % size, size)
        allowed = torch.zeros(node.numel(), size + 1, dtype=torch.bool, device=self.device)
        return allowed.scatter_(1, code, True)[:, :size]

    def item_at(self, leaf: torch.Tensor) -> torch.Tensor:
        """Catalog index of leaves, -1 for -1."""
        return torch.where(leaf >= 0, self._item_of_leaf[leaf.clamp(min=0)], -1)

    def walk(self, codes: torch.Tensor) -> torch.Tensor:
        """The nodes that the first codes of items lead to, `(num_rows, depth)` to `(num_rows,)`; -1 for none."""
        node = self.root(codes.shape[0])
        for level in range(codes.shape[1]):
            node = self.advance(node, codes[:, level], level)
        return node

    def items(self, codes: torch.Tensor) -> torch.Tensor:
        """Catalog index of full code tuples, `(..., m)` to `(...)`; -1 where no item has them."""
        return self.item_at(self.walk(codes.reshape(-1, self.num_levels))).view(codes.shape[:-1])


def _sort_rows(codes: torch.Tensor, code_sizes: tuple[int, ...]) -> tuple[torch.Tensor, torch.Tensor]:
    """Rows in lexicographic order, and the row each came from."""
    order = torch.arange(codes.shape[0], device=codes.device)
    # From the last column to the first, each time keeping the order found so far; columns are packed into one key as
    # long as the key fits 63 bits, so that a catalog of any practical size needs a single sort.
    level = len(code_sizes) - 1
    while level >= 0:
        key, span = codes[:, level][order], code_sizes[level]
        level -= 1
        while level >= 0 and span * code_sizes[level] < 2**63:
            key = key + codes[:, level][order] * span
            span *= code_sizes[level]
            level -= 1
        order = order[key.argsort(stable=True)]
    return codes[order], order


__all__ = ["ItemTrie"]
