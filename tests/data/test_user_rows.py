import numpy as np
import pytest
import torch

from mbgen_hf.data.augmentation import Augmentation
from mbgen_hf.data.batches import RowCollator
from mbgen_hf.data.sessions import SessionRule, with_sessions
from mbgen_hf.data.user_rows import TrainingRows, held_out_rows
from mbgen_hf.evaluation.protocols import leave_one_out_cases, training_end
from mbgen_hf.item_ids.chunked import chunked_item_ids
from mbgen_hf.models.configuration_gamer import GamerConfig
from mbgen_hf.models.modeling_gamer import GamerForCausalLM
from mbgen_hf.models.tokenization_interactions import InteractionTokenizer
from mbgen_hf.simulation import simulate_shop


@pytest.fixture(scope="module")
def table():
    shop = simulate_shop(num_users=40, num_items=24, seed=2).table()
    return with_sessions(shop, SessionRule("gap", gap_seconds=20_000))


@pytest.fixture(scope="module")
def tokenizer(table):
    codes, sizes = chunked_item_ids(table.num_items, None, 2)
    return InteractionTokenizer(
        table.schema.names,
        sizes,
        history_prefix="<bos>",
        history_suffix=None,
        item_codes=codes,
        item_ids=table.item_ids,
    )


def names(table, start, end):
    behaviors = [table.schema.names[label] for label in table.behaviors[start:end]]
    return list(zip(behaviors, table.item_ids[table.items[start:end]].tolist(), strict=True))


def test_a_row_is_the_end_of_a_users_training_part(table, tokenizer):
    rows = TrainingRows(table, training_end(table), max_interactions=8)
    assert len(rows) == table.num_users and rows.lengths.max() == 8
    batch = RowCollator(rows, tokenizer)([3, 7])
    for line, user in enumerate((3, 7)):
        end = table.offsets[user + 1] - 2
        alone = tokenizer.encode_history(names(table, max(table.offsets[user], end - 8), end))["input_ids"][0]
        ids, labels = batch["input_ids"][line], batch["labels"][line]
        assert torch.equal(ids[: len(alone)], alone) and (ids[len(alone) :] == 0).all()
        assert torch.equal(labels[1 : len(alone)], alone[1:])
        assert labels[0] == -100 and (labels[len(alone) :] == -100).all()


def test_held_out_rows_count_the_held_out_interaction_alone(table, tokenizer):
    cases = leave_one_out_cases(table, "validation", max_history=5)
    rows = held_out_rows(table, cases.history_start, cases.history_end)
    batch = RowCollator(rows, tokenizer)(list(range(table.num_users)))
    counted = batch["labels"] != -100
    assert (counted.sum(1) == 3).all()
    for user in range(table.num_users):
        tokens = batch["labels"][user][counted[user]][None]
        target = table.offsets[user + 1] - 2
        assert tokenizer.decode_interactions(tokens) == names(table, target, target + 1)


def drawn(rows, number: int, epoch: int = 0) -> tuple:
    row = rows.draw([number], epoch)
    kept = slice(row.starts[0], row.ends[0])
    return row.items[kept].tolist(), row.behaviors[kept].tolist()


def test_augmented_rows_follow_the_plain_ones_and_are_drawn_anew_in_every_epoch(table, tokenizer):
    ends = training_end(table)
    rows, plain = TrainingRows(table, ends, 100, Augmentation(copies=3)), TrainingRows(table, ends, 100)
    assert rows.num_training == len(rows) > 3 * table.num_users and plain.num_training == table.num_users
    purchases = {(table.behaviors[table.offsets[u] : ends[u]] == 2).sum() for u in range(table.num_users)}
    for number in range(len(rows)):
        items, behaviors = drawn(rows, number)
        assert len(items) == rows.lengths[number] == len(drawn(rows, number, epoch=1)[0])
        if number < table.num_users:
            assert (items, behaviors) == drawn(plain, number) == drawn(rows, number, epoch=1)
        # Purchases, the highest level, are never dropped.
        assert behaviors.count(2) in purchases
    copies = range(table.num_users, len(rows))
    assert sum(drawn(rows, n) != drawn(rows, n, epoch=1) for n in copies) > len(copies) / 2
    # A row is the same whatever is drawn beside it.
    numbers = np.array([50, 3, 49, 50, 0])
    together = rows.draw(numbers, epoch=4)
    for place, number in enumerate(numbers):
        kept = slice(together.starts[place], together.ends[place])
        assert (together.items[kept].tolist(), together.behaviors[kept].tolist()) == drawn(rows, number, epoch=4)
    collator = RowCollator(rows, tokenizer)
    first = collator(list(copies))["input_ids"]
    collator.set_epoch(1)
    assert not torch.equal(collator(list(copies))["input_ids"], first)
    collator.set_epoch(0)
    assert torch.equal(collator(list(copies))["input_ids"], first)


def test_copies_drawn_once_are_those_of_the_first_epoch_in_every_epoch(table):
    ends = training_end(table)
    lazy = TrainingRows(table, ends, 8, Augmentation(copies=3, seed=5))
    once = TrainingRows(table, ends, 8, Augmentation(copies=3, seed=5), augmentation_draw="once")
    np.testing.assert_array_equal(once.lengths, lazy.lengths)
    others = 0
    for number in range(len(once)):
        assert drawn(once, number) == drawn(lazy, number) == drawn(once, number, epoch=7)
        others += drawn(once, number) != drawn(lazy, number, epoch=7)
    assert others > (len(once) - table.num_users) / 4
    # Sessions stay with their interactions, whole rows and copies side by side.
    numbers = np.array([len(once) - 1, 0, table.num_users, 3, table.num_users])
    for one, two in zip(vars(once.draw(numbers, 4)).values(), vars(lazy.draw(numbers, 0)).values(), strict=True):
        np.testing.assert_array_equal(one, two)
    seeded = TrainingRows(table, ends, 8, Augmentation(copies=3, seed=6), augmentation_draw="once")
    assert any(drawn(seeded, number) != drawn(once, number) for number in range(len(once)))
    with pytest.raises(ValueError, match="`augmentation_draw`: expected one of .*found 'daily'"):
        TrainingRows(table, ends, 8, augmentation_draw="daily")


@pytest.mark.parametrize("session_wise", [False, True])
def test_packed_batches_give_the_same_loss_with_fewer_rows(table, tokenizer, session_wise):
    torch.manual_seed(0)
    config = GamerConfig(
        behaviors=list(table.schema.names),
        code_sizes=list(tokenizer.token_space.code_sizes),
        hidden_size=16,
        intermediate_size=16,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=1,
        head_dim=8,
        behavior_embedding_dim=8,
        initializer_range=0.3,
        session_wise_attention=session_wise,
    )
    model = GamerForCausalLM(config).eval()
    cases = leave_one_out_cases(table, "validation", max_history=4)
    held_out = held_out_rows(table, cases.history_start, cases.history_end)
    rows = TrainingRows(table, training_end(table), 30, others=held_out)
    numbers = [0, 1, *range(40, 52)]
    single = RowCollator(rows, tokenizer, session_wise)(numbers)
    packed = RowCollator(rows, tokenizer, session_wise, packing=True)(numbers)
    assert len(packed["input_ids"]) < len(single["input_ids"]) / 2
    assert (packed["labels"] != -100).sum() == (single["labels"] != -100).sum()
    with torch.no_grad():
        torch.testing.assert_close(model(**packed).loss, model(**single).loss, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("bos", ["<bos>", None])
@pytest.mark.parametrize("packing", [False, True])
def test_labels_are_exactly_what_the_loss_counts(table, tokenizer, bos, packing):
    """`Trainer` divides by the labels after the first column; the model must leave out no more and no less."""
    space = tokenizer.token_space
    plain = InteractionTokenizer(
        table.schema.names, space.code_sizes, history_prefix=bos, history_suffix=None,
        item_codes=tokenizer.item_codes, item_ids=table.item_ids,
    )  # fmt: skip
    rows = TrainingRows(table, training_end(table), 6)
    batch = RowCollator(rows, plain, packing=packing, loss_on_behaviors=False)(list(range(9)))
    labels = batch["labels"]
    assert not ((labels >= space.behavior_offset) & (labels < space.code_offsets[0])).any()
    predicted = (labels != -100)[:, 1:].sum()
    assert predicted == 2 * rows.lengths[:9].sum() and (labels[:, 0] == -100).all()


def test_session_ids_start_at_zero_and_leave_the_rest_out(table, tokenizer):
    rows = TrainingRows(table, training_end(table), 6)
    batch = RowCollator(rows, tokenizer, with_sessions=True)([5])
    row = rows.draw([5])
    start, end = row.starts[0], row.ends[0]
    expected = np.repeat(table.session_ids[start:end] - table.session_ids[start], 3)
    assert batch["session_ids"][0].tolist() == [-1, *expected.tolist()]


def test_bad_calls_are_refused(table, tokenizer):
    with pytest.raises(ValueError, match="`max_interactions`: expected at least 2"):
        TrainingRows(table, training_end(table), 1)
    with pytest.raises(ValueError, match="found no interaction before the held-out ones"):
        TrainingRows(table, table.offsets[:-1])
    with pytest.raises(ValueError, match="expected sessions for session-wise attention, found none"):
        RowCollator(TrainingRows(simulate_shop(num_users=20, num_items=12).table(), np.full(20, 5)), tokenizer, True)
