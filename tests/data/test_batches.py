"""Little of a batch is padding, on a log whose users differ as much as real ones do."""

import numpy as np
import pytest

from mbgen_hf.data.batches import LengthGroupedBatchOrder, PrefixCollator, RowCollator, pack_rows
from mbgen_hf.data.behavior_schema import BehaviorSchema
from mbgen_hf.data.sequence_table import SequenceTable
from mbgen_hf.data.training_examples import training_examples
from mbgen_hf.data.user_prefixes import PrefixRowCollator, PrefixRows
from mbgen_hf.data.user_rows import TrainingRows
from mbgen_hf.models.tokenization_interactions import InteractionTokenizer


MOST_BATCHES = 200


@pytest.fixture(scope="module")
def table() -> SequenceTable:
    """20,000 users with a log-normal number of interactions, 1 to 300."""
    generator = np.random.default_rng(0)
    lengths = np.clip(generator.lognormal(np.log(20), 0.9, 20_000).astype(int), 1, 300)
    offsets = np.concatenate([[0], np.cumsum(lengths)])
    return SequenceTable(
        schema=BehaviorSchema.from_names(["click", "buy"]),
        user_ids=np.arange(len(lengths)),
        item_ids=np.arange(64),
        offsets=offsets,
        items=generator.integers(0, 64, offsets[-1]).astype(np.int32),
        behaviors=generator.integers(0, 2, offsets[-1]).astype(np.int8),
        timestamps=np.arange(offsets[-1]),
    )


def tokenizer(prefix: str | None, suffix: str | None, max_history: int) -> InteractionTokenizer:
    return InteractionTokenizer(
        behaviors=["click", "buy"],
        code_sizes=[8, 8],
        target_behavior="buy",
        max_history=max_history,
        history_prefix=prefix,
        history_suffix=suffix,
        item_codes=np.stack(np.unravel_index(np.arange(64), (8, 8)), axis=1),
        item_ids=np.arange(64),
    )


def pipeline(table: SequenceTable, model: str):
    """A collator and the lengths of its examples."""
    end = table.offsets[1:]
    if model.startswith("gamer"):
        rows = TrainingRows(table, end, max_interactions=101)
        return RowCollator(rows, tokenizer("<bos>", None, 100), packing=model == "gamer packed"), rows.lengths
    examples = training_examples(table, end, "last_window", 50)
    if model == "mbgen":
        return PrefixCollator(table, examples, tokenizer(None, "<eos>", 50)), examples.lengths
    rows = PrefixRows.of_examples(examples)
    return PrefixRowCollator(table, rows, tokenizer("<bos>", None, 50)), rows.lengths


def padding(collator, numbers: list[int], rows: int) -> float:
    """The share of padding in the first batches; they come in random order."""
    batches = [numbers[start : start + rows] for start in range(0, len(numbers), rows)]
    masks = [collator(batch)["attention_mask"] for batch in batches[:MOST_BATCHES]]
    return 1 - sum(int(mask.sum()) for mask in masks) / sum(mask.numel() for mask in masks)


@pytest.mark.parametrize(
    ("model", "rows"), [("gamer", 64), ("gamer packed", 64), ("gamer packed", 4096), ("mbgen", 256), ("causal", 32)]
)
def test_at_most_a_twentieth_of_grouped_batches_is_padding(table, model, rows):
    collator, lengths = pipeline(table, model)
    order = LengthGroupedBatchOrder(lengths, rows, seed=0, packed=model == "gamer packed")
    assert padding(collator, list(order), rows) <= 0.05


@pytest.mark.parametrize(("model", "rows", "share"), [("gamer", 64, 0.5), ("mbgen", 256, 0.5), ("causal", 32, 0.4)])
def test_batches_in_random_order_would_be_half_padding(table, model, rows, share):
    collator, lengths = pipeline(table, model)
    order = np.random.default_rng(0).permutation(len(lengths)).tolist()
    assert padding(collator, order[: 20 * rows], rows) > share


def test_few_large_batches_are_grouped_unless_they_are_packed():
    lengths = np.random.default_rng(0).integers(1, 100, 1000)
    spreads = []
    for packed, rows in ((False, 100), (True, 100), (True, 10)):
        order = list(LengthGroupedBatchOrder(lengths, rows, seed=0, packed=packed))
        assert sorted(order) == list(range(1000))
        batches = lengths[order].reshape(-1, rows)
        spreads.append(np.mean(batches.max(axis=1) - batches.min(axis=1)))
    assert spreads[0] < 15 and spreads[1] > 90 and spreads[2] < 5


def test_rows_are_packed_where_they_first_fit():
    generator = np.random.default_rng(0)
    sizes, width = generator.integers(1, 20, 50), 19
    mask = (np.arange(width) < sizes[:, None]).astype(np.int64)
    packed = pack_rows({"input_ids": mask * np.arange(1, 51)[:, None], "attention_mask": mask})
    free: list[int] = []
    for row in sorted(range(50), key=lambda row: -sizes[row]):
        place = next((number for number, left in enumerate(free) if left >= sizes[row]), len(free))
        free = free if place < len(free) else [*free, width]
        start = width - free[place]
        assert (packed["input_ids"][place, start : start + sizes[row]] == row + 1).all()
        free[place] -= int(sizes[row])
    assert len(packed["input_ids"]) == len(free) and packed["attention_mask"].sum() == sizes.sum()
