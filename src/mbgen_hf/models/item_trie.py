"""The catalog as a prefix automaton in tensors.

A node at depth j stands for the first j codes of at least one item. Nodes of a depth are numbered in the order of
their codes, so a node's children, and the items below it, are a contiguous range. Where a level is small enough, what
may follow a node is a row of bits: one gather gives it, and the number of set bits before a code gives the child.
Elsewhere the codes of the children lie in compressed rows. Neither depends on the size of the catalog.
"""

import torch


# A level keeps bits for every (node, code) up to this many bytes, and beyond it where compressed rows take as much.
BITMAP_BYTES = 1 << 22


class ItemTrie:
    """Prefix automaton over the `(num_items, m)` code array, on that array's device.

    Args:
        item_codes (`torch.Tensor` of shape `(num_items, m)`): integer codes; column j is below `code_sizes[j]`.
        code_sizes: number of ids of each code level.
        rows_only: whether every level keeps compressed rows, as `marked` needs them.

    Raises:
        ValueError: no items, a code out of its range, or two items with the same codes.
    """

    def __init__(self, item_codes: torch.Tensor, code_sizes: list[int] | tuple[int, ...], rows_only: bool = False):
        self._check(item_codes, code_sizes)
        self.code_sizes = tuple(code_sizes)
        self.num_items, self.num_levels = item_codes.shape
        order = sorting_order(item_codes, self.code_sizes)
        self._item_of_leaf = order.int()
        self._levels: list[_Level] = []
        # Whether a row, in the order of codes, is the first with its codes up to a level; the parents' first rows.
        first = torch.zeros(self.num_items, dtype=torch.bool, device=order.device)
        first[0] = True
        parents = torch.zeros(1, dtype=torch.long, device=order.device)
        for level, size in enumerate(self.code_sizes):
            codes = item_codes[:, level].index_select(0, order)
            first[1:] |= codes[1:] != codes[:-1]
            children = first.nonzero()[:, 0]
            self._levels.append(_Level(codes[children], torch.searchsorted(children, parents), size, rows_only))
            parents = children
        if len(parents) != self.num_items:
            self._raise_shared_codes(first)

    @staticmethod
    def _check(item_codes: torch.Tensor, code_sizes) -> None:
        if item_codes.ndim != 2 or item_codes.shape[0] == 0 or item_codes.shape[1] != len(code_sizes):
            raise ValueError(
                f"`item_codes`: expected shape (num_items, {len(code_sizes)}) with at least one item, "
                f"found {tuple(item_codes.shape)}"
            )
        limits = torch.as_tensor(code_sizes, device=item_codes.device)
        if bool((item_codes.amin(0) < 0).any() | (item_codes.amax(0) >= limits).any()):
            item, level = ((item_codes < 0) | (item_codes >= limits)).nonzero()[0].tolist()
            raise ValueError(
                f"`item_codes`: expected codes from 0 to {code_sizes[level] - 1} at level {level}, "
                f"found {item_codes[item, level].item()} for item {item}"
            )

    def _raise_shared_codes(self, first: torch.Tensor) -> None:
        row = int((~first).nonzero()[0])
        former, latter = sorted(self._item_of_leaf[row - 1 : row + 1].tolist())
        raise ValueError(
            f"`item_codes`: expected different codes for every item, found the same ones for items {former} and "
            f"{latter}; add a last code level that tells them apart"
        )

    @property
    def device(self) -> torch.device:
        return self._item_of_leaf.device

    @property
    def num_bytes(self) -> int:
        """Memory of the automaton."""
        tensors = [self._item_of_leaf, *(tensor for level in self._levels for tensor in level.tensors)]
        return sum(tensor.numel() * tensor.element_size() for tensor in tensors)

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
        return self._levels[level].child(node, code)

    def allowed(self, node: torch.Tensor, level: int) -> torch.Tensor:
        """Codes that may follow: `(num_rows, code_sizes[level])` bool, all false for -1."""
        return self._levels[level].allowed(node)

    def bias(self, node: torch.Tensor, level: int) -> torch.Tensor:
        """The same to be added to scores, which is faster than masking: 0 for what may follow, `-inf` elsewhere."""
        return self._levels[level].bias(node)

    def marked(self, node: torch.Tensor, level: int, marks: torch.Tensor) -> torch.Tensor:
        """As `allowed`, for children with a mark only: `marks` has a bool per node at depth `level + 1`."""
        return self._levels[level].marked(node, marks)

    def num_nodes(self, depth: int) -> int:
        """Number of different code tuples of length `depth`."""
        return 1 if depth == 0 else self._levels[depth - 1].num_children

    def leaf_counts(self, node: torch.Tensor, depth: int) -> torch.Tensor:
        """Number of items below nodes of one depth; 0 for -1."""
        start, end = node.clamp(min=0), node + 1
        for level in self._levels[depth:]:
            start, end = level.first_child[start].long(), level.first_child[end].long()
        return torch.where(node >= 0, end - start, 0)

    def item_at(self, leaf: torch.Tensor) -> torch.Tensor:
        """Catalog index of leaves, -1 for -1."""
        return torch.where(leaf >= 0, self._item_of_leaf[leaf].long(), -1)

    def walk(self, codes: torch.Tensor) -> torch.Tensor:
        """The nodes that the first codes of items lead to, `(num_rows, depth)` to `(num_rows,)`; -1 for none."""
        node = self.root(codes.shape[0])
        for level in range(codes.shape[1]):
            node = self.advance(node, codes[:, level], level)
        return node

    def items(self, codes: torch.Tensor) -> torch.Tensor:
        """Catalog index of full code tuples, `(..., m)` to `(...)`; -1 where no item has them."""
        return self.item_at(self.walk(codes.reshape(-1, self.num_levels))).view(codes.shape[:-1])


class _Level:
    """The edges from the nodes of one depth to those of the next.

    Args:
        codes: `(num_children,)` code of every child, in the order of parents and codes.
        starts: `(num_nodes,)` number of each node's first child.
        size: number of ids of the level.
        rows_only: whether to keep compressed rows in any case.
    """

    def __init__(self, codes: torch.Tensor, starts: torch.Tensor, size: int, rows_only: bool):
        self.size, self.num_children = size, codes.numel()
        # One more entry than nodes: the end of the last one.
        self.first_child = torch.cat([starts, starts.new_tensor([codes.numel()])]).int()
        counts = self.first_child.diff()
        self.max_children = int(counts.max())
        row = (size + 7) // 8
        compressed = codes.to(torch.int16 if size <= 2**15 else torch.int32)
        self.bits = self.codes = None
        limit = max(BITMAP_BYTES, compressed.numel() * compressed.element_size())
        if not rows_only and starts.numel() * row <= limit:
            self._keep_bits(codes, torch.repeat_interleave(counts), row)
        else:
            self.codes = compressed
            self.search_steps = self.max_children.bit_length()

    def _keep_bits(self, codes: torch.Tensor, parents: torch.Tensor, row: int) -> None:
        device, codes = codes.device, codes.long()
        # The last row, that of node -1, has no bit.
        bits = torch.zeros(self.first_child.numel() * row, dtype=torch.uint8, device=device)
        bits.index_add_(0, parents * row + codes // 8, (1 << (codes % 8)).to(torch.uint8))
        self.bits = bits.view(-1, row)
        byte = torch.arange(256, device=device)[:, None] >> torch.arange(8, device=device) & 1
        # Eight values at once, so that bytes become a mask by a single look-up.
        self._bools = byte.bool()
        self._bias = torch.zeros(256, 8, device=device).masked_fill(~self._bools, -torch.inf)
        self._count = byte.sum(1)

    @property
    def tensors(self) -> list[torch.Tensor]:
        return [self.first_child, self.codes if self.bits is None else self.bits]

    def allowed(self, node: torch.Tensor) -> torch.Tensor:
        if self.bits is None:
            return self.marked(node, None)
        return self._look_up(self._bools, node)

    def bias(self, node: torch.Tensor) -> torch.Tensor:
        if self.bits is None:
            return torch.zeros(1, device=node.device).masked_fill(~self.marked(node, None), -torch.inf)
        return self._look_up(self._bias, node)

    def _look_up(self, table: torch.Tensor, node: torch.Tensor) -> torch.Tensor:
        """The entries of a `(256, 8)` table for the bytes of nodes, `(num_rows, size)`."""
        values = table.index_select(0, self._bytes(node).flatten())
        return values.view(node.numel(), -1)[:, : self.size]

    def _bytes(self, node: torch.Tensor) -> torch.Tensor:
        # -1 counts from the end, as it does in an index.
        return self.bits.index_select(0, node % len(self.bits)).int()

    def marked(self, node: torch.Tensor, marks: torch.Tensor | None) -> torch.Tensor:
        start, end = self._children(node)
        child = start[:, None] + torch.arange(self.max_children, device=node.device)
        exists = child < end[:, None]
        child = child.clamp(max=self.num_children - 1)
        if marks is not None:
            exists = exists & marks[child]
        # Places without a child write into a spare last column, which is cut off.
        code = torch.where(exists, self.codes[child].long(), self.size)
        found = torch.zeros(node.numel(), self.size + 1, dtype=torch.bool, device=node.device)
        return found.scatter_(1, code, True)[:, : self.size]

    def child(self, node: torch.Tensor, code: torch.Tensor) -> torch.Tensor:
        inside = (code >= 0) & (code < self.size)
        code = torch.where(inside, code, 0)
        return torch.where(inside, self._ranked(node, code) if self.bits is not None else self._found(node, code), -1)

    def _ranked(self, node: torch.Tensor, code: torch.Tensor) -> torch.Tensor:
        """The child by the number of bits set before the code's."""
        rows, byte, bit = self._bytes(node), code >> 3, code & 7
        own = rows.gather(1, byte[:, None])[:, 0]
        count = self._count.index_select(0, rows.flatten()).view(rows.shape)
        before = count.cumsum(1).gather(1, byte[:, None])[:, 0]
        after = self._count.index_select(0, own >> bit)
        # All bits up to the byte's end, without the code's own and those behind it.
        first = self.first_child.index_select(0, node % len(self.first_child))
        return torch.where((own >> bit & 1).bool(), first + before - after, -1)

    def _found(self, node: torch.Tensor, code: torch.Tensor) -> torch.Tensor:
        """The child by binary search among the parent's."""
        low, end = self._children(node)
        high = end
        for _ in range(self.search_steps):
            middle = (low + high) >> 1
            less = (self.codes[middle.clamp(max=self.num_children - 1)] < code) & (middle < high)
            low, high = torch.where(less, middle + 1, low), torch.where(less, high, middle)
        found = (low < end) & (self.codes[low.clamp(max=self.num_children - 1)] == code)
        return torch.where(found, low, -1)

    def _children(self, node: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """First child and the one after the last; none for -1."""
        start = self.first_child[node].long()
        return start, torch.where(node >= 0, self.first_child[node + 1].long(), start)


def sorting_order(codes: torch.Tensor, code_sizes: tuple[int, ...]) -> torch.Tensor:
    """The order that sorts `(num_items, m)` codes lexicographically, `(num_items,)`."""
    order = None
    # From the last column to the first, each time keeping the order found so far; columns are packed into one key as
    # long as the key fits 63 bits, so that a catalog of any practical size needs a single sort.
    level = len(code_sizes) - 1
    while level >= 0:
        key, span = codes[:, level].long(), code_sizes[level]
        level -= 1
        while level >= 0 and span * code_sizes[level] < 2**63:
            key = key + codes[:, level].long() * span
            span *= code_sizes[level]
            level -= 1
        step = (key if order is None else key[order]).argsort(stable=True)
        order = step if order is None else order[step]
    return order


__all__ = ["ItemTrie"]
