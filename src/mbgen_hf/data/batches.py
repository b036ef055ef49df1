"""Batches: examples to padded token ids, and the order in which examples are drawn."""

from collections.abc import Iterator

import numpy as np
import torch
from torch.utils.data import Dataset, Sampler

from mbgen_hf.data.batch_shapes import PADDING, few_lengths, next_length, rounded_rows, widen
from mbgen_hf.data.sequence_table import SequenceTable
from mbgen_hf.data.training_examples import PrefixExamples
from mbgen_hf.data.user_rows import TrainingRows, UserRows
from mbgen_hf.models.token_space import EOS
from mbgen_hf.models.tokenization_interactions import InteractionTokenizer


# Batches of similar length are cut from pools of this many batches: enough to leave less than 5% of padding on logs
# whose lengths differ as much as a power law lets them, few enough to keep the order random.
POOL_BATCHES = 200
# With fewer batches than these, the rows of the longest differ so much that they waste more than 5%, and are still too
# long for two of them to be packed into one: rows that are packed are better off in random order.
FEWEST_GROUPED = 100


class ExampleIndices(Dataset):
    """The numbers of examples: a batch is assembled as a whole by the collator, not row by row.

    Args:
        numbers: the example numbers this dataset yields.
    """

    def __init__(self, numbers: range):
        self.numbers = numbers

    def __len__(self) -> int:
        return len(self.numbers)

    def __getitem__(self, index: int) -> int:
        return self.numbers[index]


class PrefixCollator:
    """Builds encoder-decoder batches for a list of example numbers, without a loop over examples.

    Args:
        table: the sequences.
        examples: the examples numbered.
        tokenizer: lays histories out; needs its catalog.
        few_shapes: whether batches are padded up to a few lengths (`few_lengths`), for what is compiled.

    Calling it returns `input_ids` and `attention_mask` of shape `(batch_size, seq_len)` and `labels` of shape
    `(batch_size, m + 2)`: `[b, c0..c_{m-1}, EOS]`; `whole_rows` is true.
    """

    def __init__(
        self,
        table: SequenceTable,
        examples: PrefixExamples,
        tokenizer: InteractionTokenizer,
        few_shapes: bool = False,
    ):
        self.table, self.examples, self.tokenizer = table, examples, tokenizer
        self.user_tokens = user_tokens(table, tokenizer)
        self.few_lengths = few_lengths(examples.lengths) if few_shapes else None

    def set_epoch(self, epoch: int) -> None:
        """Examples are the same in every epoch."""

    def __call__(self, numbers: list[int]) -> dict[str, torch.Tensor]:
        numbers = np.asarray(numbers)
        starts, targets = self.examples.starts[numbers], self.examples.targets[numbers]
        users = None if self.user_tokens is None else self.user_tokens[self.examples.users[numbers]]
        items, behaviors = self.table.items, self.table.behaviors
        batch = self.tokenizer.encode_interactions(items, behaviors, starts, targets, users, max_history=len(items))
        if self.few_lengths is not None:
            longest = int((targets - starts).max())
            batch = lengthened(batch, longest, next_length(longest, self.few_lengths), self.tokenizer)
        labels = self.tokenizer.interaction_token_ids(items, behaviors, targets)
        batch["labels"] = np.concatenate([labels, np.full((len(labels), 1), EOS)], axis=1)
        return {name: torch.from_numpy(values) for name, values in batch.items()} | {"whole_rows": True}


class RowCollator:
    """Builds decoder-only batches for a list of row numbers, without a loop over rows.

    Args:
        rows: the rows numbered.
        tokenizer: lays histories out; needs its catalog.
        with_sessions: whether batches carry `session_ids`, for session-wise attention.
        packing: whether several rows share a row of the batch, none longer than the longest alone.
        loss_on_behaviors: whether behavior tokens count in the loss. The model leaves them out by itself; the labels
            do so as well, since `Trainer` divides by their number.
        few_shapes: whether batches are padded up to a few lengths (`few_lengths`), and packed ones to a few numbers
            of rows (`rounded_rows`), for what is compiled.

    Calling it returns `input_ids`, `attention_mask` and `labels`, each of shape `(batch_size, seq_len)`, padded on the
    right, and `session_ids` and `sequence_ids` where asked for. Labels are the ids, with -100 for padding, BOS and
    whatever the row's loss leaves out. `whole_rows` says that no row was packed.

    Raises:
        ValueError: sessions asked for, and the rows have none.
    """

    def __init__(
        self,
        rows: UserRows | TrainingRows,
        tokenizer: InteractionTokenizer,
        with_sessions: bool = False,
        packing: bool = False,
        loss_on_behaviors: bool = True,
        few_shapes: bool = False,
    ):
        if with_sessions and not rows.has_sessions:
            raise ValueError("`rows`: expected sessions for session-wise attention, found none; prepare with sessions")
        self.rows, self.tokenizer = rows, tokenizer
        self.with_sessions, self.packing, self.loss_on_behaviors = with_sessions, packing, loss_on_behaviors
        self.few_lengths = few_lengths(rows.lengths) if few_shapes else None
        # Shared memory, so that data loader workers started earlier hear of a new epoch as well.
        self._epoch = torch.zeros((), dtype=torch.int64).share_memory_()

    def set_epoch(self, epoch: int) -> None:
        """Draw augmented copies anew from here on."""
        self._epoch.fill_(epoch)

    def __call__(self, numbers: list[int]) -> dict[str, torch.Tensor]:
        rows = self.rows.draw(np.asarray(numbers), int(self._epoch))
        starts, ends, longest = rows.starts, rows.ends, int(rows.lengths.max())
        sessions = rows.sessions if self.with_sessions else None
        batch = self.tokenizer.encode_interactions(
            rows.items, rows.behaviors, starts, ends, max_history=longest, sessions=sessions
        )
        if self.few_lengths is not None:
            batch = lengthened(batch, longest, next_length(longest, self.few_lengths), self.tokenizer)
        width = self.tokenizer.token_space.num_code_levels + 1
        first = (self.tokenizer.history_prefix is not None) + (rows.loss_from - starts) * width
        column = np.arange(batch["input_ids"].shape[1])
        # The first token of a row is never predicted; packed behind another row it would be counted all the same.
        counts = column >= np.maximum(first, 1)[:, None]
        if not self.loss_on_behaviors:
            counts &= (column - (self.tokenizer.history_prefix is not None)) % width != 0
        batch["labels"] = np.where(counts & (batch["attention_mask"] == 1), batch["input_ids"], -100)
        if self.packing:
            batch = pack_rows(batch)
            if self.few_lengths is not None:
                packed = len(batch["input_ids"])
                batch = widen(batch, 0, rounded_rows(packed, len(numbers)) - packed)
        return {name: torch.from_numpy(values) for name, values in batch.items()} | {"whole_rows": not self.packing}


def lengthened(
    batch: dict[str, np.ndarray], length: int, wanted: int, tokenizer: InteractionTokenizer
) -> dict[str, np.ndarray]:
    """Pad a batch whose longest row has `length` interactions as if it had the wanted number."""
    return widen(batch, (wanted - length) * (tokenizer.token_space.num_code_levels + 1))


def pack_rows(batch: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Put the rows of a batch, padded on the right, into as few rows of the same width as first-fit finds.

    Args:
        batch: arrays of shape `(batch_size, seq_len)`, among them `attention_mask`.

    Returns:
        The same arrays with fewer rows, and `sequence_ids`: the number of each token's row within its new row, from 0,
        ascending; padding continues the last number.
    """
    sizes, width = batch["attention_mask"].sum(axis=1), batch["attention_mask"].shape[1]
    free, count = np.full(len(sizes), width), 0
    places = []
    for row in np.argsort(-sizes, kind="stable"):
        bin_ = int(np.argmax(free >= sizes[row]))
        places.append((row, bin_, int(width - free[bin_])))
        free[bin_] -= sizes[row]
        count = max(count, bin_ + 1)
    packed = {name: np.full((count, width), PADDING[name], dtype=np.int64) for name in batch}
    sequence_ids = np.zeros((count, width), dtype=np.int64)
    for row, bin_, start in places:
        here = slice(start, start + sizes[row])
        for name, values in batch.items():
            packed[name][bin_, here] = values[row, : sizes[row]]
        if start:
            sequence_ids[bin_, start:] += 1
    return packed | {"sequence_ids": sequence_ids}


def user_tokens(table: SequenceTable, tokenizer: InteractionTokenizer) -> np.ndarray | None:
    """`(num_users,)` token ids of the table's users, or `None` where the model has no user tokens."""
    if not tokenizer.token_space.num_user_tokens:
        return None
    return tokenizer.token_space.user_token_ids(table.user_ids.tolist())


class LengthGroupedBatchOrder(Sampler[int]):
    """Draws whole batches of examples of similar length, in an order that follows from seed and epoch alone.

    The order depends on the total batch, over all processes and accumulation steps, and not on how it is split: two
    processes see together what one process with twice the batch sees. It is the same whether a run starts at an epoch
    or is resumed in it. The few examples beyond the last whole batch sit out one epoch, others in each.

    Args:
        lengths: `(num_examples,)` history lengths.
        total_batch_size: examples of one optimizer step.
        seed: of the order.
        packed: whether the rows of a batch will be packed; in an epoch of few batches they are then of any length.
    """

    def __init__(self, lengths: np.ndarray, total_batch_size: int, seed: int, packed: bool = False):
        self.lengths, self.seed, self.epoch = lengths, seed, 0
        self.total_batch_size = min(total_batch_size, len(lengths))
        self.grouped = not packed or len(self) >= FEWEST_GROUPED * self.total_batch_size

    def set_epoch(self, epoch: int) -> None:
        self.epoch = epoch

    def __len__(self) -> int:
        return len(self.lengths) // self.total_batch_size * self.total_batch_size

    def __iter__(self) -> Iterator[int]:
        generator = np.random.default_rng([self.seed, self.epoch])
        order = generator.permutation(len(self.lengths))[: len(self)]
        if not self.grouped:
            return iter(order.tolist())
        pool = POOL_BATCHES * self.total_batch_size
        pools = [order[start : start + pool] for start in range(0, len(order), pool)]
        order = np.concatenate([part[np.argsort(self.lengths[part], kind="stable")] for part in pools])
        batches = order.reshape(-1, self.total_batch_size)
        # Within a batch the order is random again, so that each process gets its share of short and long rows.
        batches = generator.permuted(batches[generator.permutation(len(batches))], axis=1)
        return iter(batches.reshape(-1).tolist())


__all__ = [
    "ExampleIndices",
    "LengthGroupedBatchOrder",
    "PrefixCollator",
    "RowCollator",
    "lengthened",
    "pack_rows",
    "user_tokens",
]
