import pytest
import torch
from model_fixtures import random_codes

from mbgen_hf.models import item_trie
from mbgen_hf.models.item_trie import ItemTrie


SIZES = [(7,), (4, 5), (3, 4, 5), (2, 3, 2, 4), (1, 40), (40, 3)]


@pytest.fixture(params=[True, False], ids=["rows", "bits"])
def rows_only(request):
    return request.param


@pytest.mark.parametrize("sizes", SIZES)
def test_every_prefix_allows_what_the_catalog_continues(sizes, rows_only):
    codes = random_codes(sizes, num_items=6)
    trie = ItemTrie(codes, sizes, rows_only=rows_only)
    every = torch.cartesian_prod(*map(torch.arange, sizes)).view(-1, len(sizes))
    rows = [tuple(row) for row in codes.tolist()]
    node = trie.root(len(every))
    for level in range(len(sizes)):
        allowed = trie.allowed(node, level)
        assert torch.equal(trie.bias(node, level) == 0, allowed)
        assert torch.equal(trie.bias(node, level) == -torch.inf, ~allowed)
        for path, mask in zip(every.tolist(), allowed, strict=True):
            expected = {row[level] for row in rows if row[:level] == tuple(path[:level])}
            assert set(mask.nonzero().flatten().tolist()) == expected
        node = trie.advance(node, every[:, level], level)
    found = trie.item_at(node).tolist()
    assert found == [rows.index(tuple(path)) if tuple(path) in rows else -1 for path in every.tolist()]
    assert trie.items(every).tolist() == found


def test_dead_states_and_foreign_codes_stay_dead(rows_only):
    trie = ItemTrie(torch.tensor([[0, 1], [2, 0]]), (3, 2), rows_only=rows_only)
    node = trie.advance(trie.root(5), torch.tensor([0, 1, 2, -1, 9]), 0)
    assert node.tolist() == [0, -1, 1, -1, -1]
    assert trie.allowed(node, 1).tolist() == [[False, True], [False, False], [True, False], [False] * 2, [False] * 2]
    assert trie.advance(node, torch.tensor([2, 1, 0, 0, 0]), 1).tolist() == [-1, -1, 1, -1, -1]


@pytest.mark.parametrize(
    ("codes", "message"),
    [
        ([[0, 1], [2, 0], [0, 1]], "the same ones for items 0 and 2"),
        ([[0, 2]], "codes from 0 to 1 at level 1, found 2 for item 0"),
        ([[0, 0], [-1, 0]], "found -1 for item 1"),
    ],
)
def test_bad_codes_are_refused(codes, message):
    with pytest.raises(ValueError, match=message):
        ItemTrie(torch.tensor(codes), (3, 2))


def test_an_empty_catalog_is_refused():
    with pytest.raises(ValueError, match="at least one item"):
        ItemTrie(torch.empty(0, 2, dtype=torch.int32), (3, 2))


def test_rows_sort_without_overflow_when_keys_exceed_63_bits():
    sizes = (2**20,) * 4
    generator = torch.Generator().manual_seed(0)
    codes = torch.randint(0, 2**20, (50, 4), generator=generator)
    codes[25:, :3] = codes[:25, :3]
    trie = ItemTrie(codes, sizes)
    assert trie.items(codes).tolist() == list(range(50))
    assert sorted(codes.tolist()) == codes[item_trie.sorting_order(codes, sizes)].tolist()


@pytest.mark.parametrize("sizes", SIZES)
def test_leaves_are_counted_and_marks_filter_children(sizes):
    codes = random_codes(sizes, num_items=6)
    trie = ItemTrie(codes, sizes, rows_only=True)
    for depth in range(len(sizes) + 1):
        prefixes = sorted({tuple(row[:depth]) for row in codes.tolist()})
        assert trie.num_nodes(depth) == len(prefixes)
        node = trie.walk(torch.tensor(prefixes, dtype=torch.long).view(len(prefixes), depth))
        assert node.tolist() == list(range(len(prefixes)))
        expected = [sum(tuple(row[:depth]) == prefix for row in codes.tolist()) for prefix in prefixes]
        assert trie.leaf_counts(torch.cat([node, torch.tensor([-1])]), depth).tolist() == [*expected, 0]
        if depth:
            marks = torch.arange(len(prefixes)) % 2 == 0
            parents = trie.walk(torch.tensor([prefix[:-1] for prefix in prefixes]).view(len(prefixes), depth - 1))
            marked = trie.marked(parents, depth - 1, marks)
            for row, prefix in enumerate(prefixes):
                same = {p[-1] for n, p in enumerate(prefixes) if p[:-1] == prefix[:-1] and marks[n]}
                assert set(marked[row].nonzero().flatten().tolist()) == same


def test_an_automaton_takes_a_few_bytes_an_item():
    number = torch.randperm(256**3, generator=torch.Generator().manual_seed(0))[: 10**6]
    codes = torch.stack([number // 65536, number // 256 % 256, number % 256, number % 7], dim=1).int()
    assert ItemTrie(codes, (256, 256, 256, 7)).num_bytes < 24 * 10**6
