import pytest
import torch
from model_fixtures import random_codes

from mbgen_hf.models import item_trie
from mbgen_hf.models.item_trie import ItemTrie


SIZES = [(7,), (4, 5), (3, 4, 5), (2, 3, 2, 4)]


@pytest.fixture(params=[0, 1 << 22], ids=["compressed", "dense"])
def dense_cells(request, monkeypatch):
    monkeypatch.setattr(item_trie, "DENSE_CELLS", request.param)


@pytest.mark.parametrize("sizes", SIZES)
def test_every_prefix_allows_what_the_catalog_continues(sizes, dense_cells):
    codes = random_codes(sizes, num_items=6)
    trie = ItemTrie(codes, sizes)
    every = torch.cartesian_prod(*map(torch.arange, sizes)).view(-1, len(sizes))
    rows = [tuple(row) for row in codes.tolist()]
    node = trie.root(len(every))
    for level in range(len(sizes)):
        allowed = trie.allowed(node, level)
        for path, mask in zip(every.tolist(), allowed, strict=True):
            expected = {row[level] for row in rows if row[:level] == tuple(path[:level])}
            assert set(mask.nonzero().flatten().tolist()) == expected
        node = trie.advance(node, every[:, level], level)
    found = trie.item_at(node).tolist()
    assert found == [rows.index(tuple(path)) if tuple(path) in rows else -1 for path in every.tolist()]
    assert trie.items(every).tolist() == found


def test_dead_states_and_foreign_codes_stay_dead(dense_cells):
    trie = ItemTrie(torch.tensor([[0, 1], [2, 0]]), (3, 2))
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
    assert sorted(codes.tolist()) == item_trie._sort_rows(codes, sizes)[0].tolist()
