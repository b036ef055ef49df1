"""Requests with sets of their own: answers are the unrestricted ranking without what is ruled out."""

from functools import lru_cache

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from model_fixtures import HISTORIES, gamer_tokenizer, random_codes, tiny_gamer, tiny_model, tokenizer_of

from mbgen_hf.models.item_trie import ItemTrie
from mbgen_hf.models.request_catalog import RequestCatalog, item_sets
from mbgen_hf.models.token_space import TokenSpace


NUM_ITEMS, USERS = 30, len(HISTORIES)
ITEMS = st.integers(min_value=0, max_value=NUM_ITEMS - 1)
LISTS = st.lists(ITEMS, max_size=40)
SETS = st.none() | LISTS | st.lists(LISTS, min_size=USERS, max_size=USERS)
PROPERTY = settings(max_examples=15, deadline=None, derandomize=True)


@lru_cache
def answers(kind: str):
    """A model, its inputs, and its unrestricted ranking of all pairs of behavior and item for every user."""
    model = tiny_model() if kind == "mbgen" else tiny_gamer()
    tokenizer = tokenizer_of(model) if kind == "mbgen" else gamer_tokenizer(model)
    encoded = dict(tokenizer.encode_history(HISTORIES))
    pairs = NUM_ITEMS * len(model.config.behaviors)
    output = model.generate(**encoded, num_beams=pairs, num_return_sequences=pairs, return_dict_in_generate=True)
    scores = output.sequences_scores.view(USERS, pairs).tolist()
    behaviors, items = output.behavior_indices.tolist(), output.item_indices.tolist()
    ranked = [list(zip(behaviors[u], items[u], scores[u], strict=True)) for u in range(USERS)]
    return model, encoded, ranked


def row_of(sets, user: int) -> set[int] | None:
    if sets is None:
        return None
    return set(sets[user] if any(isinstance(row, list) for row in sets) else sets)


def expected(ranked, candidates, exclude, eligible=None) -> list[list[tuple]]:
    kept = []
    for user, ranking in enumerate(ranked):
        wanted, unwanted = row_of(candidates, user), row_of(exclude, user) or set()
        kept.append([
            (behavior, item, score) for behavior, item, score in ranking
            if (wanted is None or item in wanted) and item not in unwanted
            and (eligible is None or eligible[item, behavior])
        ])  # fmt: skip
    return kept


def assert_answers(output, kept, results: int) -> None:
    """Items and behaviors in order, scores, and explicit blanks behind the last one."""
    for user, ranking in enumerate(kept):
        ranking = ranking[:results]
        blank = results - len(ranking)
        assert output.item_indices[user].tolist() == [item for _, item, _ in ranking] + [-1] * blank
        assert output.behavior_indices[user].tolist() == [behavior for behavior, _, _ in ranking] + [-1] * blank
        scores = output.sequences_scores.view(len(kept), results)[user]
        torch.testing.assert_close(
            scores[: len(ranking)], torch.tensor([score for _, _, score in ranking]), atol=2e-5, rtol=2e-6
        )
        assert (scores[len(ranking) :] == -torch.inf).all()


@pytest.mark.parametrize("kind", ["mbgen", "gamer"])
@PROPERTY
@given(candidates=SETS, exclude=SETS, results=st.integers(min_value=1, max_value=40))
def test_a_wide_beam_gives_the_filtered_ranking(kind, candidates, exclude, results):
    model, encoded, ranked = answers(kind)
    output = model.generate(
        **encoded, candidates=candidates, exclude=exclude, num_beams=120, num_return_sequences=results,
        return_dict_in_generate=True,
    )  # fmt: skip
    assert_answers(output, expected(ranked, candidates, exclude), results)


@pytest.mark.parametrize("kind", ["mbgen", "gamer"])
@settings(PROPERTY, max_examples=6)
@given(
    candidates=SETS, exclude=SETS, beams=st.integers(min_value=2, max_value=12), behavior=st.none() | st.just("buy")
)
def test_narrow_beams_never_leave_the_sets_and_equal_stock(kind, candidates, exclude, beams, behavior):
    model, encoded, ranked = answers(kind)
    prompt = ["<bos>"] if behavior is None else [behavior]
    options = {
        **encoded, "prompt": prompt, "candidates": candidates, "exclude": exclude, "num_beams": beams,
        "num_return_sequences": beams, "return_dict_in_generate": True,
    }  # fmt: skip
    output = model.generate(**options)
    for user, allowed in enumerate(expected(ranked, candidates, exclude)):
        items, scores = output.item_indices[user].tolist(), output.sequences_scores.view(USERS, -1)[user]
        found = [pair for pair in zip(output.behavior_indices[user].tolist(), items, strict=True) if pair[1] >= 0]
        assert len(set(found)) == len(found) and set(found) <= {pair[:2] for pair in allowed}
        assert items[len(found) :] == [-1] * (beams - len(found))
        assert (scores[:-1] >= scores[1:]).all()
    model.__class__.supports_shared_history = False
    try:
        stock = model.generate(**options)
    finally:
        del model.__class__.supports_shared_history
    assert stock.item_indices.tolist() == output.item_indices.tolist()
    torch.testing.assert_close(stock.sequences_scores, output.sequences_scores, atol=2e-5, rtol=2e-6)


@st.composite
def catalogs(draw):
    """A catalog of any shape, an eligibility or none, and sets for a few rows."""
    sizes = draw(st.lists(st.integers(min_value=1, max_value=5), min_size=1, max_size=3))
    every = torch.cartesian_prod(*map(torch.arange, sizes)).view(-1, len(sizes))
    chosen = draw(st.lists(st.integers(0, len(every) - 1), min_size=1, unique=True))
    codes, users = every[chosen].int(), draw(st.integers(min_value=1, max_value=3))
    lists = st.lists(st.integers(-1, len(chosen) - 1), max_size=12)
    sets = st.none() | lists | st.lists(lists, min_size=users, max_size=users)
    eligible = draw(st.none() | st.lists(st.booleans(), min_size=2 * len(codes), max_size=2 * len(codes)))
    eligible = None if eligible is None else torch.tensor(eligible).view(-1, 2)
    return sizes, codes, eligible, users, draw(sets), draw(sets)


@settings(PROPERTY, max_examples=100)
@given(case=catalogs())
def test_states_allow_exactly_what_leads_to_a_reachable_item(case):
    sizes, codes, eligible, users, candidates, exclude = case
    space = TokenSpace(("view", "buy"), tuple(sizes))
    catalog = RequestCatalog(ItemTrie(codes, sizes), space, codes, eligible).with_sets(candidates, exclude, users)
    tuples = [tuple(row) for row in codes.tolist()]
    for user in range(users):
        wanted, unwanted = row_of(candidates, user), row_of(exclude, user) or set()
        for behavior in range(2):
            reachable = {
                tuples[item] for item in range(len(tuples))
                if (wanted is None or item in wanted) and item not in unwanted
                and (eligible is None or eligible[item, behavior])
            }  # fmt: skip
            assert bool(catalog.allowed_behaviors(users)[user, behavior]) == bool(reachable)
            for depth in range(len(sizes)):
                for prefix in {row[:depth] for row in tuples}:
                    ids = [behavior + 4, *(code + space.code_offsets[level] for level, code in enumerate(prefix))]
                    state = catalog.start(torch.tensor(ids).expand(users, 1, -1))
                    found = catalog.allowed(state, depth)[user, 0].nonzero().flatten().tolist()
                    assert found == sorted({row[depth] for row in reachable if row[:depth] == prefix})


@pytest.mark.parametrize("kind", ["mbgen", "gamer"])
def test_a_checkpoint_knows_which_items_may_follow_which_behavior(kind, tmp_path):
    model, encoded, ranked = answers(kind)
    behaviors = len(model.config.behaviors)
    eligible = torch.rand(NUM_ITEMS, behaviors, generator=torch.Generator().manual_seed(2)) < 0.4
    eligible[:, 1] = False
    restricted = tiny_model() if kind == "mbgen" else tiny_gamer()
    restricted.set_catalog(restricted.item_codes, eligible)
    restricted.save_pretrained(tmp_path)
    loaded = type(restricted).from_pretrained(tmp_path)
    assert torch.equal(loaded.item_eligibility, eligible)
    options = {"num_beams": 120, "num_return_sequences": 40, "return_dict_in_generate": True}
    for exclude in (None, [[0, 1, 2], [], list(range(0, 30, 2))]):
        kept = expected(ranked, None, exclude, eligible)
        assert_answers(loaded.generate(**encoded, exclude=exclude, **options), kept, 40)
        assert_answers(loaded.generate(**encoded, exclude=exclude, use_cache=False, **options), kept, 40)
    kept = expected(ranked, [3, 4, 5, 6], None, eligible)
    assert_answers(loaded.generate(**encoded, candidates=[3, 4, 5, 6], **options), kept, 40)
    loaded.set_catalog(loaded.item_codes)
    assert_answers(loaded.generate(**encoded, **options), ranked, 40)
    with pytest.raises(ValueError, match="`eligible`: expected bool of shape"):
        loaded.set_catalog(loaded.item_codes, torch.ones(3, 3, dtype=torch.bool))


@pytest.mark.parametrize("options", [{"do_sample": True}, {}, {"do_sample": True, "num_beams": 2}])
def test_sampling_and_greedy_search_obey_the_sets_too(options):
    model, encoded, _ = answers("mbgen")
    torch.manual_seed(0)
    sets = [[3, 4], [], [7]]
    output = model.generate(**encoded, behavior="buy", candidates=sets, **options, return_dict_in_generate=True)
    items = output.item_indices[:, 0].tolist()
    assert items[0] in (3, 4) and items[1:] == [-1, 7]
    assert (output.sequences[1, 1:] == 0).all()
    excluded = [[item for item in range(30) if item not in row] for row in sets]
    output = model.generate(**encoded, behavior="buy", exclude=excluded, **options, return_dict_in_generate=True)
    items = output.item_indices[:, 0].tolist()
    assert items[0] in (3, 4) and items[1:] == [-1, 7]


def test_sets_come_as_lists_arrays_and_raw_ids():
    model, encoded, _ = answers("mbgen")
    tokenizer = tokenizer_of(model)
    options = {"behavior": "buy", "num_beams": 8, "num_return_sequences": 8, "return_dict_in_generate": True}
    plain = model.generate(**encoded, candidates=[[1, 2], [3], []], **options).item_indices
    for sets in (
        torch.tensor([[1, 2], [3, -1], [-1, -1]]),
        np.array([[2, 1], [3, 3], [-1, -1]]),
        [np.array([1, 2]), torch.tensor([3]), []],
        tokenizer.item_sets([["item-01", "item-02"], ["item-03"], []]),
    ):
        assert torch.equal(model.generate(**encoded, candidates=sets, **options).item_indices, plain)
    shared = model.generate(**encoded, exclude=tokenizer.item_sets(["item-05", "item-06"]), **options).item_indices
    assert not {5, 6} & set(shared.flatten().tolist())


@pytest.mark.parametrize(
    ("sets", "message"),
    [
        ([[1], [2]], "expected one list for all rows or 3 lists, found 2 lists"),
        ([30], "expected catalog indices from 0 to 29, found 30"),
        ([[1], [-2], []], "expected catalog indices from 0 to 29, found -2"),
        ([0.5], "expected catalog indices, found torch.float32"),
        ("item-01", "expected a list of catalog indices, or one list per row, found 'item-01'"),
    ],
)
@pytest.mark.parametrize("name", ["candidates", "exclude"])
def test_bad_sets_are_refused(name, sets, message):
    model, encoded, _ = answers("mbgen")
    with pytest.raises(ValueError, match=f"`{name}`: {message}"):
        model.generate(**encoded, **{name: sets})


def test_cost_follows_the_list_and_not_the_catalog():
    codes = random_codes([40, 50, 50], num_items=50_000).int()
    catalog = RequestCatalog(ItemTrie(codes, (40, 50, 50)), TokenSpace(("buy",), (40, 50, 50)), codes)
    request = catalog.with_sets(None, [[1, 2, 3], [4]], 2)
    assert request.trie is catalog.trie and request.excluded.num_items == 4
    assert catalog.with_sets([1, 2, 3], None, 2).trie.num_items == 3
    assert catalog.with_sets(None, None, 2) is catalog


@pytest.mark.parametrize("sets", [["item-01"], [[1, 2], None]])
def test_raw_ids_as_sets_are_refused_in_one_line(sets):
    with pytest.raises(ValueError, match="`exclude`: expected catalog indices"):
        item_sets("exclude", sets, 2, 5, "cpu")
