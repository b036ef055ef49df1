"""User-level training of an encoder-decoder: every prefix of a user's interactions in one row.

With a causal encoder one pass over the row serves the prediction of each of its interactions; `PrefixCollator` makes
the same examples one by one, with a pass over each prefix.
"""

from dataclasses import dataclass

import numpy as np
import torch

from mbgen_hf.data.batch_shapes import few_lengths, next_length
from mbgen_hf.data.batches import lengthened, user_tokens
from mbgen_hf.data.sequence_table import SequenceTable
from mbgen_hf.data.training_examples import PrefixExamples
from mbgen_hf.models.token_space import EOS
from mbgen_hf.models.tokenization_interactions import InteractionTokenizer


@dataclass(frozen=True)
class PrefixRows:
    """Windows of interactions of which the last ones are predicted, each from those before it in the window.

    Args:
        users: `(num_rows,)` rows of the table.
        starts, ends: `(num_rows,)` the window; its last interaction is predicted and not read.
        targets_from: `(num_rows,)` first position that is predicted.
    """

    users: np.ndarray
    starts: np.ndarray
    ends: np.ndarray
    targets_from: np.ndarray

    def __len__(self) -> int:
        return len(self.starts)

    @property
    def lengths(self) -> np.ndarray:
        """`(num_rows,)` number of interactions in each window."""
        return self.ends - self.starts

    def __add__(self, other: "PrefixRows") -> "PrefixRows":
        """The rows of both, one after the other."""
        names = ("users", "starts", "ends", "targets_from")
        return PrefixRows(*(np.concatenate([getattr(self, name), getattr(other, name)]) for name in names))

    @classmethod
    def of_examples(cls, examples: PrefixExamples) -> "PrefixRows":
        """Join examples that are neighbours: same user, same start of the history, targets in a row.

        Examples of `window="last_window"` become one row per user; of `"sliding"`, whose histories start anew for
        every target behind the longest history, one per target there.
        """
        users, starts, targets = examples.users, examples.starts, examples.targets
        opens = np.ones(len(users), dtype=bool)
        opens[1:] = (users[1:] != users[:-1]) | (starts[1:] != starts[:-1]) | (targets[1:] != targets[:-1] + 1)
        first = np.flatnonzero(opens)
        last = np.append(first[1:], len(users)) - 1
        return cls(users[first], starts[first], targets[last] + 1, targets[first])


class PrefixRowCollator:
    """Builds batches of rows for a causal encoder, without a loop over rows.

    Args:
        table: the sequences.
        rows: the rows numbered.
        tokenizer: lays histories out, `[BOS, user?, interactions]`; needs its catalog.
        few_shapes: whether histories are padded up to a few lengths (`few_lengths`), and predictions to as many, for
            what is compiled.

    Calling it returns `input_ids` and `attention_mask` of shape `(batch_size, seq_len)`, padded on the right, `labels`
    of shape `(batch_size, n, m + 2)`, `[b, c0..c_{m-1}, EOS]` of up to n predicted interactions, -100 where a row has
    fewer, and `history_lengths` of shape `(batch_size, n)`: how many tokens each is predicted from.

    Raises:
        ValueError: a tokenizer whose histories end in a special token, which no prefix of a row would.
    """

    def __init__(
        self, table: SequenceTable, rows: PrefixRows, tokenizer: InteractionTokenizer, few_shapes: bool = False
    ):
        if tokenizer.history_prefix is None or tokenizer.history_suffix is not None:
            raise ValueError(
                "`tokenizer`: expected a special token before a history and none behind it, found "
                f"{tokenizer.history_prefix!r} and {tokenizer.history_suffix!r}"
            )
        self.table, self.rows, self.tokenizer = table, rows, tokenizer
        self.user_tokens = user_tokens(table, tokenizer)
        self.few_lengths = few_lengths(rows.lengths - 1) if few_shapes else None

    def set_epoch(self, epoch: int) -> None:
        """Rows are the same in every epoch."""

    def __call__(self, numbers: list[int]) -> dict[str, torch.Tensor]:
        numbers = np.asarray(numbers)
        starts, ends, first = (
            values[numbers] for values in (self.rows.starts, self.rows.ends, self.rows.targets_from)
        )
        users = None if self.user_tokens is None else self.user_tokens[self.rows.users[numbers]]
        items, behaviors = self.table.items, self.table.behaviors
        batch = self.tokenizer.encode_interactions(items, behaviors, starts, ends - 1, users, max_history=len(items))
        predicted = int((ends - first).max())
        if self.few_lengths is not None:
            longest = int((ends - 1 - starts).max())
            wanted = next_length(longest, self.few_lengths)
            batch = lengthened(batch, longest, wanted, self.tokenizer)
            # As many as that history can hold, or one, as in the validation split.
            predicted = 1 if predicted == 1 else wanted + 1
        targets = first[:, None] + np.arange(predicted)
        counts = targets < ends[:, None]
        width = self.tokenizer.token_space.num_code_levels + 1
        labels = np.full((*targets.shape, width + 1), -100, dtype=np.int64)
        labels[counts, :width] = self.tokenizer.interaction_token_ids(items, behaviors, targets[counts])
        labels[counts, width] = EOS
        before = 1 + (users is not None)
        # Where nothing is predicted the decoder still runs, on what every history has.
        lengths = before + np.where(counts, targets - starts[:, None], 0) * width
        batch |= {"labels": labels, "history_lengths": lengths}
        return {name: torch.from_numpy(values) for name, values in batch.items()} | {"whole_rows": True}


__all__ = ["PrefixRowCollator", "PrefixRows"]
