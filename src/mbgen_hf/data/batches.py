"""Batches: examples to padded token ids, and the order in which examples are drawn."""

from collections.abc import Iterator

import numpy as np
import torch
from torch.utils.data import Dataset, Sampler

from mbgen_hf.data.sequence_table import SequenceTable
from mbgen_hf.data.training_examples import PrefixExamples
from mbgen_hf.models.token_space import EOS
from mbgen_hf.models.tokenization_interactions import InteractionTokenizer


# Batches of similar length are cut from pools of this many batches: enough to leave little padding, few enough to
# keep the order random.
POOL_BATCHES = 50


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

    Calling it returns `input_ids` and `attention_mask` of shape `(batch_size, seq_len)` and `labels` of shape
    `(batch_size, m + 2)`: `[b, c0..c_{m-1}, EOS]`.
    """

    def __init__(self, table: SequenceTable, examples: PrefixExamples, tokenizer: InteractionTokenizer):
        self.table, self.examples, self.tokenizer = table, examples, tokenizer
        self.user_tokens = user_tokens(table, tokenizer)

    def __call__(self, numbers: list[int]) -> dict[str, torch.Tensor]:
        numbers = np.asarray(numbers)
        starts, targets = self.examples.starts[numbers], self.examples.targets[numbers]
        users = None if self.user_tokens is None else self.user_tokens[self.examples.users[numbers]]
        items, behaviors = self.table.items, self.table.behaviors
        batch = self.tokenizer.encode_interactions(items, behaviors, starts, targets, users, max_history=len(items))
        labels = self.tokenizer.interaction_token_ids(items, behaviors, targets)
        batch["labels"] = np.concatenate([labels, np.full((len(labels), 1), EOS)], axis=1)
        return {name: torch.from_numpy(values) for name, values in batch.items()}


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
    """

    def __init__(self, lengths: np.ndarray, total_batch_size: int, seed: int):
        self.lengths, self.seed, self.epoch = lengths, seed, 0
        self.total_batch_size = min(total_batch_size, len(lengths))

    def set_epoch(self, epoch: int) -> None:
        self.epoch = epoch

    def __len__(self) -> int:
        return len(self.lengths) // self.total_batch_size * self.total_batch_size

    def __iter__(self) -> Iterator[int]:
        generator = np.random.default_rng([self.seed, self.epoch])
        order = generator.permutation(len(self.lengths))[: len(self)]
        pool = POOL_BATCHES * self.total_batch_size
        pools = [order[start : start + pool] for start in range(0, len(order), pool)]
        order = np.concatenate([part[np.argsort(self.lengths[part], kind="stable")] for part in pools])
        batches = order.reshape(-1, self.total_batch_size)
        # Within a batch the order is random again, so that each process gets its share of short and long rows.
        batches = generator.permuted(batches[generator.permutation(len(batches))], axis=1)
        return iter(batches.reshape(-1).tolist())


__all__ = ["ExampleIndices", "LengthGroupedBatchOrder", "PrefixCollator", "user_tokens"]
