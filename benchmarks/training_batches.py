"""Generated users for `training.py`, and batches of them as token ids."""

import numpy as np
import torch
from training_models import Batch

from mbgen_hf.models.token_space import BOS, EOS, PAD, TokenSpace


LENGTHS = ("lognormal", "fixed", "shortvideoad")
# GAMER, table 1 and section 4.1.1; training with four augmented copies: table 6 (8 GPUs for about 12 hours).
SHORT_VIDEO_AD = {"users": 48_779, "sessions": 1_874_719, "interactions": 7_877_083, "epochs": 94, "copies": 4}
# Play-throughs, clicks, conversions. The paper only says that a user has fewer than four conversions.
BEHAVIOR_SHARES = (0.85, 0.13, 0.02)
LONGEST_ROW = 101


def lognormal_lengths(generator: np.random.Generator, count: int, longest: int) -> np.ndarray:
    """`(count,)` numbers of interactions from 2 to `longest`; the mean is about a third of it."""
    return np.clip(generator.lognormal(np.log(longest / 4), 0.8, count).astype(int), 2, longest)


def short_video_ad_lengths(seed: int) -> np.ndarray:
    """Interactions in each training row of GAMER on a generated log of ShortVideoAD's size, copies included.

    Users have a log-normal number of interactions that sum to the paper's, without the two held-out sessions of
    average size.
    """
    generator, size = np.random.default_rng(seed), SHORT_VIDEO_AD
    shares = generator.lognormal(0.0, 0.8, size["users"])
    total = size["interactions"] * (1 - 2 * size["users"] / size["sessions"])
    lengths = np.maximum(np.round(shares * total / shares.sum()).astype(int), 1)
    return row_lengths(generator.multinomial(lengths, BEHAVIOR_SHARES), size["copies"])


def row_lengths(counts: np.ndarray, copies: int) -> np.ndarray:
    """Lengths of the rows of users and of their augmented copies (GAMER section 3.3), cut to 101 interactions.

    Copy i of x leaves out the share i / (x + 1) of the lowest behavior's interactions, half of it of the second, a
    third of the next, and none of the highest; a copy of fewer than two interactions is not made.

    Args:
        counts: `(num_users, num_behaviors)` training interactions, the lowest behavior first.
        copies: x.
    """
    levels = np.arange(1, counts.shape[1] + 1)
    rows = [counts.sum(axis=1)]
    for number in range(1, copies + 1):
        dropped = counts * number // ((copies + 1) * levels)
        dropped[:, -1] = 0
        kept = (counts - dropped).sum(axis=1)
        rows.append(kept[kept >= 2])
    return np.minimum(np.concatenate(rows), LONGEST_ROW)


class Users:
    """Users with random interactions as token ids.

    Args:
        space: the layout of ids.
        count: number of users.
        longest: most interactions of one user.
        seed: of everything.
        lengths: `"lognormal"`; `"fixed"`: every user has `longest`; or `"shortvideoad"`: rows drawn from those of
            GAMER's training on a log of that size, up to 101 interactions whatever `longest` is.
    """

    def __init__(self, space: TokenSpace, count: int, longest: int, seed: int, lengths: str = "lognormal"):
        if lengths not in LENGTHS:
            raise ValueError(f"`lengths`: expected one of {list(LENGTHS)}, found {lengths!r}")
        generator = np.random.default_rng(seed)
        if lengths == "lognormal":
            self.lengths = lognormal_lengths(generator, count, longest)
        elif lengths == "fixed":
            self.lengths = np.full(count, longest)
        else:
            self.lengths = np.maximum(generator.choice(short_video_ad_lengths(seed), count), 2)
        shape = (self.lengths.sum(), space.num_code_levels + 1)
        self.tokens = np.empty(shape, dtype=np.int64)
        self.tokens[:, 0] = space.behavior_offset + generator.integers(0, len(space.behaviors), shape[0])
        for level, (offset, size) in enumerate(zip(space.code_offsets, space.code_sizes, strict=True)):
            self.tokens[:, level + 1] = offset + generator.integers(0, size, shape[0])
        self.starts = np.cumsum(self.lengths) - self.lengths
        some = space.num_user_tokens > 0
        self.own_tokens = space.user_token_ids(range(count))[:, None] if some else np.empty((count, 0), dtype=np.int64)
        self.generator = generator

    def interactions(self, user: int, end: int) -> np.ndarray:
        return self.tokens[self.starts[user] : self.starts[user] + end]


def padded(rows: list[np.ndarray], filler: int) -> torch.Tensor:
    width = max(len(row) for row in rows)
    return torch.from_numpy(
        np.stack([np.pad(row, (0, width - len(row)), constant_values=filler) for row in rows]).astype(np.int64)
    )


def gamer_batch(users: Users, numbers: np.ndarray) -> Batch:
    """Rows `[BOS, interactions]`, each token predicted from those before it."""
    rows = [np.append(BOS, users.interactions(user, users.lengths[user])) for user in numbers]
    ids = padded(rows, PAD)
    return {"input_ids": ids, "attention_mask": (ids != PAD).long(), "labels": ids.masked_fill(ids <= BOS, -100)}


def mbgen_batch(users: Users, examples: np.ndarray) -> Batch:
    """Histories `[user?, interactions, EOS]` and the interaction that follows each."""
    rows = [np.concatenate([users.own_tokens[u], users.interactions(u, end).ravel(), [EOS]]) for u, end in examples]
    labels = [np.append(users.tokens[users.starts[user] + end], EOS) for user, end in examples]
    ids = padded(rows, PAD)
    return {"input_ids": ids, "attention_mask": (ids != PAD).long(), "labels": torch.from_numpy(np.stack(labels))}


def causal_batch(users: Users, numbers: np.ndarray) -> Batch:
    """Rows `[BOS, user?, interactions]`, every interaction predicted from those before it by one pass."""
    width, most = users.tokens.shape[1], users.lengths[numbers].max()
    rows = [
        np.concatenate([[BOS], users.own_tokens[u], users.interactions(u, users.lengths[u] - 1).ravel()])
        for u in numbers
    ]
    labels = torch.full((len(numbers), most, width + 1), -100)
    for row, user in enumerate(numbers):
        labels[row, : users.lengths[user], :width] = torch.from_numpy(
            users.interactions(user, users.lengths[user]).copy()
        )
        labels[row, : users.lengths[user], width] = EOS
    before = 1 + users.own_tokens.shape[1]
    lengths = torch.where(labels[..., 0] >= 0, before + torch.arange(most) * width, before)
    ids = padded(rows, PAD)
    return {"input_ids": ids, "attention_mask": (ids != PAD).long(), "labels": labels, "history_lengths": lengths}


def batches(users: Users, kind: str, size: int, grouped: bool, count: int) -> list[Batch]:
    """Batches of similar length, spread over all lengths, or of random users."""
    if kind == "mbgen":
        pairs = [(user, end) for user, length in enumerate(users.lengths) for end in range(length)]
        examples, lengths = np.array(pairs), np.array([end for _, end in pairs])
    else:
        examples, lengths = np.arange(len(users.lengths)), users.lengths
    order = users.generator.permutation(len(examples))[: len(examples) // size * size]
    if grouped:
        order = order[np.argsort(lengths[order], kind="stable")]
    parts = order.reshape(-1, size)
    chosen = parts[users.generator.permutation(len(parts))[:count]]
    make = {"gamer": gamer_batch, "mbgen": mbgen_batch, "causal": causal_batch}[kind]
    return [make(users, examples[part]) for part in chosen]


def real_tokens(batch: Batch) -> int:
    """Tokens that are not padding; the decoder's included."""
    decoder = 0 if batch["labels"].shape == batch["input_ids"].shape else int((batch["labels"] != -100).sum())
    return int(batch["attention_mask"].sum()) + decoder


def predictions(batch: Batch) -> int:
    """Predicted interactions."""
    if batch["labels"].shape == batch["input_ids"].shape:
        return int((batch["labels"] != -100).sum())
    return int((batch["labels"] != -100).any(-1).sum())
