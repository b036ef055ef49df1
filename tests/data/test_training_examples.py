import numpy as np
import pytest
import torch

from mbgen_hf.data.batches import LengthGroupedBatchOrder, PrefixCollator
from mbgen_hf.data.behavior_schema import BehaviorSchema
from mbgen_hf.data.sequence_table import SequenceTable
from mbgen_hf.data.training_examples import training_examples
from mbgen_hf.evaluation.protocols import training_end
from mbgen_hf.item_ids.chunked import chunked_item_ids
from mbgen_hf.models.tokenization_interactions import InteractionTokenizer


@pytest.fixture(scope="module")
def table() -> SequenceTable:
    rng = np.random.default_rng(0)
    lengths = np.array([3, 4, 9, 15])
    count = int(lengths.sum())
    return SequenceTable(
        schema=BehaviorSchema.from_names(["view", "buy"]),
        user_ids=np.array(["a", "b", "c", "d"]),
        item_ids=np.arange(10, 17),
        offsets=np.concatenate([[0], np.cumsum(lengths)]),
        items=rng.integers(0, 7, count).astype(np.int32),
        behaviors=rng.integers(0, 2, count).astype(np.int8),
        timestamps=np.arange(count),
    )


def expected_examples(table, window, longest, cold_start):
    """The rule of the docstring, one user and one interaction at a time."""
    for user in range(table.num_users):
        first, end = int(table.offsets[user]), int(table.offsets[user + 1]) - 2
        window_start = max(first, end - longest) if window == "last_window" else first
        for target in range(window_start, end):
            start = max(window_start, target - longest)
            if target > start or (cold_start and target == first):
                yield user, start, target


@pytest.mark.parametrize("window", ["last_window", "sliding"])
@pytest.mark.parametrize("longest", [1, 4, 50])
@pytest.mark.parametrize("cold_start", [True, False])
def test_examples_follow_the_rule(table, window, longest, cold_start):
    expected = list(expected_examples(table, window, longest, cold_start))
    if not expected:
        with pytest.raises(ValueError, match="found none before the held-out ones"):
            training_examples(table, training_end(table), window, longest, cold_start)
        return
    found = training_examples(table, training_end(table), window, longest, cold_start)
    assert list(zip(found.users.tolist(), found.starts.tolist(), found.targets.tolist(), strict=True)) == expected
    assert found.lengths.max() <= longest


def test_bad_windows_are_refused(table):
    with pytest.raises(ValueError, match="`window`: expected one of"):
        training_examples(table, training_end(table), "all")
    with pytest.raises(ValueError, match="`max_history`: expected at least 1"):
        training_examples(table, training_end(table), max_history=0)
    with pytest.raises(ValueError, match="found none before the held-out ones"):
        training_examples(table, table.offsets[:-1])


@pytest.mark.parametrize("num_user_tokens", [0, 11])
def test_batches_are_what_the_tokenizer_writes_row_by_row(table, num_user_tokens):
    codes, sizes = chunked_item_ids(table.num_items, 3)
    tokenizer = InteractionTokenizer(
        ["view", "buy"], sizes, num_user_tokens, item_codes=codes, item_ids=table.item_ids
    )
    examples = training_examples(table, training_end(table))
    numbers = [3, 0, 17, 8]
    batch = PrefixCollator(table, examples, tokenizer)(numbers)
    pairs = [("view", "buy")[b] for b in table.behaviors], table.item_ids[table.items].tolist()
    for row, number in enumerate(numbers):
        start, target = examples.starts[number], examples.targets[number]
        history = [(pairs[0][i], pairs[1][i]) for i in range(start, target)]
        user = table.user_ids[examples.users[number]].item() if num_user_tokens else None
        alone = tokenizer.encode_history(history, user_id=user)["input_ids"][0]
        assert torch.equal(batch["input_ids"][row, : len(alone)], alone)
        assert int(batch["attention_mask"][row].sum()) == len(alone)
        assert tokenizer.decode(batch["labels"][row]).split()[0] == f"<{pairs[0][target]}>"
        assert tokenizer.decode_items(batch["labels"][row : row + 1, :-1]) == [pairs[1][target]]
        assert batch["labels"][row, -1] == 2


def test_the_order_draws_whole_batches_of_similar_length_and_repeats_itself():
    lengths = np.random.default_rng(0).integers(0, 50, 1003)
    order = LengthGroupedBatchOrder(lengths, 10, seed=1)
    first = list(order)
    assert len(first) == len(order) == 1000 and len(set(first)) == 1000
    spreads = lengths[np.array(first)].reshape(-1, 10)
    assert np.mean(spreads.max(1) - spreads.min(1)) < 5
    assert first == list(LengthGroupedBatchOrder(lengths, 10, seed=1))
    assert first != list(LengthGroupedBatchOrder(lengths, 10, seed=2))
    order.set_epoch(1)
    assert first != list(order)


def test_the_order_serves_fewer_examples_than_a_batch():
    assert sorted(LengthGroupedBatchOrder(np.arange(3), 8, seed=0)) == [0, 1, 2]
