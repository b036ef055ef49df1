import numpy as np
import pytest
import torch

from mbgen_hf.data.batches import PrefixCollator
from mbgen_hf.data.training_examples import PrefixExamples, training_examples
from mbgen_hf.data.user_prefixes import PrefixRowCollator, PrefixRows
from mbgen_hf.item_ids.chunked import chunked_item_ids
from mbgen_hf.models.tokenization_interactions import InteractionTokenizer
from mbgen_hf.simulation import simulate_shop


@pytest.fixture(scope="module")
def table():
    return simulate_shop(num_users=40, num_items=24, seed=3).table()


def tokenizer_of(table, users: int = 0, **layout) -> InteractionTokenizer:
    codes, sizes = chunked_item_ids(table.num_items, base=None, num_levels=2, seed=0)
    return InteractionTokenizer(
        behaviors=table.schema.names,
        code_sizes=sizes,
        num_user_tokens=users,
        item_codes=codes,
        item_ids=table.item_ids,
        **{"history_prefix": "<bos>", "history_suffix": None, **layout},
    )


@pytest.mark.parametrize("cold_start", [True, False])
@pytest.mark.parametrize("users", [0, 9])
def test_a_row_holds_every_prefix_that_examples_hold_one_by_one(table, cold_start, users):
    tokenizer = tokenizer_of(table, users)
    examples = training_examples(table, table.offsets[1:] - 2, "last_window", 7, cold_start)
    rows = PrefixRows.of_examples(examples)
    assert len(rows) == len(np.unique(examples.users)) and rows.lengths.max() == 7
    batch = PrefixRowCollator(table, rows, tokenizer)(list(range(len(rows))))
    single = PrefixCollator(table, examples, tokenizer)(list(range(len(examples))))
    counts = (batch["labels"] != -100).all(-1)
    assert torch.equal((batch["labels"] != -100).any(-1), counts) and counts.sum() == len(examples)
    assert torch.equal(batch["labels"][counts], single["labels"])
    assert torch.equal(batch["history_lengths"][counts], single["attention_mask"].sum(1))
    for example, (row, place) in enumerate(counts.nonzero().tolist()):
        length = int(batch["history_lengths"][row, place])
        assert torch.equal(batch["input_ids"][row, :length], single["input_ids"][example, :length])
    assert (batch["history_lengths"][~counts] == 1 + (users > 0)).all()
    # The last interaction of a row is predicted and not read.
    assert torch.equal(batch["attention_mask"].sum(1), 1 + (users > 0) + 3 * torch.from_numpy(rows.lengths - 1))


def test_sliding_examples_join_while_their_history_starts_alike(table):
    examples = training_examples(table, table.offsets[1:], "sliding", 4, cold_start=True)
    rows = PrefixRows.of_examples(examples)
    assert (rows.ends - rows.targets_from).sum() == len(examples)
    assert rows.lengths.max() == 5 and len(rows) > len(np.unique(examples.users))


def test_rows_for_validation_follow_those_for_training(table):
    first, last = table.offsets[:-1], table.offsets[1:] - 1
    users = np.arange(table.num_users)
    held_out = PrefixRows.of_examples(PrefixExamples(users, first, last))
    assert len(held_out) == table.num_users and (held_out.ends - held_out.targets_from == 1).all()
    both = PrefixRows.of_examples(training_examples(table, last, "last_window", 7)) + held_out
    batch = PrefixRowCollator(table, both, tokenizer_of(table))([len(both) - 1])
    assert batch["labels"].shape[:2] == (1, 1)
    assert batch["history_lengths"][0, 0] == batch["attention_mask"].sum() == 1 + 3 * (last[-1] - first[-1])


def test_histories_that_end_in_a_special_token_are_refused(table):
    rows = PrefixRows.of_examples(training_examples(table, table.offsets[1:]))
    with pytest.raises(ValueError, match="found None and '<eos>'"):
        PrefixRowCollator(table, rows, tokenizer_of(table, history_prefix=None, history_suffix="<eos>"))
