import itertools

import numpy as np
import pytest
import torch

from mbgen_hf.data.batch_shapes import FEW, few_lengths, next_length, rounded_rows
from mbgen_hf.data.batches import LengthGroupedBatchOrder
from mbgen_hf.evaluation.protocols import leave_one_out_cases, training_end
from mbgen_hf.simulation import simulate_shop
from mbgen_hf.training.architectures import ARCHITECTURES
from mbgen_hf.training.settings import load_settings
from mbgen_hf.training.train import build_model


LONGEST, BATCH = 30, 8
MBGEN = "d_model=16 d_kv=8 d_ff=16 num_heads=2 num_layers=1 num_decoder_layers=1 behavior_embedding_dim=8"
GAMER = (
    "hidden_size=16 intermediate_size=16 num_hidden_layers=2 num_attention_heads=2 head_dim=8 initializer_range=0.3"
)
# Preset, sizes, data settings, and how many shapes there may be: of histories, times those of predictions or of rows.
CASES = {
    "mbgen": ("mbgen-small", MBGEN, {"window": "sliding", "cold_start": True}, FEW),
    "causal": ("mbgen-causal-small", MBGEN, {"window": "last_window", "cold_start": True}, 2 * FEW),
    "gamer": ("gamer-small", GAMER, {"augmentation": 0, "ratios": "paper", "packing": False}, FEW),
    "packed": ("gamer-small", GAMER, {"augmentation": 1, "ratios": "paper", "packing": True}, FEW * BATCH),
}


@pytest.fixture(scope="module")
def table():
    return simulate_shop(num_users=220, num_items=24, seed=2, min_length=4, max_length=45).table()


def batches(table, name: str):
    """The model, and an epoch of pairs of batches: as long as their longest row, and in few shapes."""
    preset, sizes, options, _ = CASES[name]
    fields = {f"model.{field}": float(value) if "." in value else int(value)
              for field, value in (pair.split("=") for pair in sizes.split())}  # fmt: skip
    settings = load_settings(preset, fields | {"data.max_history": LONGEST})
    torch.manual_seed(0)
    model, tokenizer = build_model(table, settings)
    if name == "causal":
        options = options | {"causal_encoder": True}
    cases = leave_one_out_cases(table, "validation", LONGEST)
    plain, few = (
        ARCHITECTURES[settings["architecture"]].data(
            table, training_end(table), cases, tokenizer, max_history=LONGEST, few_shapes=few_shapes, **options
        )
        for few_shapes in (False, True)
    )
    count = len(plain.lengths)
    order = list(LengthGroupedBatchOrder(plain.lengths, BATCH, seed=0))
    numbers = [order[i : i + BATCH] for i in range(0, len(order), BATCH)]
    numbers.append(list(range(count, count + BATCH)))  # Of the validation split.
    return model.eval(), [(plain.collator(rows), few.collator(rows)) for rows in numbers]


@pytest.mark.parametrize("name", CASES)
def test_an_epoch_has_few_shapes_and_the_same_losses(table, name):
    model, pairs = batches(table, name)
    plain, few = ({tuple((key, getattr(values, "shape", values)) for key, values in batch.items()) for batch in side}
                  for side in zip(*pairs, strict=True))  # fmt: skip
    assert len(few) <= CASES[name][3] and len(few) < len(plain) / 2
    longest = max(batch["input_ids"].shape[1] for batch, _ in pairs)
    assert max(batch["input_ids"].shape[1] for _, batch in pairs) == longest
    with torch.no_grad():
        for one, two in pairs[:: len(pairs) // 12] + pairs[-1:]:
            assert torch.equal(one["labels"][one["labels"] != -100], two["labels"][two["labels"] != -100])
            torch.testing.assert_close(model(**one).loss, model(**two).loss, atol=1e-6, rtol=1e-6)


@pytest.mark.parametrize("seed", range(6))
def test_few_lengths_are_those_that_add_least(seed):
    rng = np.random.default_rng(seed)
    lengths = rng.geometric(0.2, 40).clip(max=9)
    values = np.unique(lengths)
    for count in (1, 2, 3, 20):
        found = few_lengths(lengths, count)
        assert len(found) <= count and (np.diff(found) > 0).all() and found[-1] == lengths.max()
        added = sum(next_length(length, found) - length for length in lengths)
        others = itertools.combinations(values[:-1], min(count, len(values)) - 1)
        assert added == min(
            sum(next_length(length, np.array([*other, values[-1]])) - length for length in lengths) for other in others
        )


def test_numbers_of_rows_round_up_to_a_few():
    count = np.arange(1, 301)
    rows = np.array([rounded_rows(int(number), 300) for number in count])
    assert (rows >= count).all() and (rows <= 1.25 * count).all() and rows.max() == 300
    assert len(set(rows[count > 128])) == 5 and (np.diff(rows) >= 0).all()
