"""Prompts of `generate`: behaviors and first codes as ids, tokens or names."""

import numpy as np
import torch

from .token_space import BEHAVIOR_SLOT, BOS, TokenSpace


def resolve_prompt(prompt, behavior, token_space: TokenSpace) -> torch.LongTensor:
    """Turn `prompt` or `behavior` into token ids, without BOS.

    Args:
        prompt: `None`, or one prompt for all rows, or a list or tensor with one prompt per row. A prompt is BOS (may
            be left out), then optionally a behavior, then optionally the first codes of an item; each as an id, a
            token or a behavior name.
        behavior: `None`, or the name of a behavior, or one name per row; short for the prompt `[BOS, behavior]`.
        token_space: the layout of ids.

    Returns:
        `torch.LongTensor` of shape `(1 or batch_size, prompt_len)`, on the CPU.

    Raises:
        ValueError: both arguments at once, unknown tokens, prompts of different lengths, or tokens out of order.
    """
    if prompt is not None and behavior is not None:
        raise ValueError("`prompt`: expected either `prompt` or `behavior`, found both")
    if behavior is not None:
        names = [behavior] if isinstance(behavior, str) else behavior
        if not isinstance(names, (list, tuple)) or not all(isinstance(name, str) for name in names):
            raise ValueError(f"`behavior`: expected a name or a list of names, found {behavior!r}")
        return torch.tensor([[token_space.behavior_id(name)] for name in names], dtype=torch.long)
    if prompt is None:
        return torch.empty(1, 0, dtype=torch.long)
    rows = list(prompt.tolist() if isinstance(prompt, (torch.Tensor, np.ndarray)) else prompt)
    if not rows or not isinstance(rows[0], (list, tuple)):
        rows = [rows]
    rows = [token_space.resolve(row) for row in rows]
    rows = [row[1:] if row[:1] == [BOS] else row for row in rows]
    if len({len(row) for row in rows}) != 1:
        raise ValueError(f"`prompt`: expected prompts of one length, found lengths {[len(row) for row in rows]}")
    ids = torch.tensor(rows, dtype=torch.long).view(len(rows), -1)
    if ids.shape[1] > token_space.num_code_levels:
        raise ValueError(
            f"`prompt`: expected at most a behavior and {token_space.num_code_levels - 1} codes, "
            f"found {ids.shape[1]} tokens after BOS"
        )
    expected = torch.arange(BEHAVIOR_SLOT, BEHAVIOR_SLOT + ids.shape[1]).expand_as(ids)
    if not torch.equal(token_space.slots(ids), expected):
        raise ValueError(f"`prompt`: expected BOS, a behavior, then codes in order, found {rows}")
    return ids


def match_rows(prompt_ids: torch.LongTensor, input_ids: torch.LongTensor | None) -> torch.LongTensor:
    """One prompt per row of the histories."""
    if input_ids is None:
        return prompt_ids
    if input_ids.ndim != 2:
        raise ValueError(f"`input_ids`: expected shape (batch_size, seq_len), found {tuple(input_ids.shape)}")
    if len(prompt_ids) not in (1, len(input_ids)):
        raise ValueError(f"`prompt`: expected 1 or {len(input_ids)} prompts, found {len(prompt_ids)}")
    return prompt_ids.expand(len(input_ids), -1)


__all__ = ["match_rows", "resolve_prompt"]
