"""Copying head: items of the history get a probability of their own beside the generated codes.

Not part of either paper. Most targets of a behavior log that can be predicted at all are items the user has touched
before, and a decoder over random codes learns slowly, and never quite, to give each of them its due. Here the next
item is, with probability `g`, one of the history's, chosen by attention, and generated code by code otherwise:

    p(item) = (1 - g) * p_gen(c_0) * ... * p_gen(c_{m-1} | c_0..c_{m-2}) + g * sum of the attention to its occurrences

`g` and the attention are read once, at the behavior token of the interaction asked for. The probability of a prefix of
codes is the same mixture of the two probabilities of the prefix, so beam search, the trie and exact search see an
ordinary autoregressive distribution.
"""

from dataclasses import dataclass

import torch
from torch import nn
from transformers import PreTrainedConfig
from transformers import initialization as init

from .interactions import Interactions, happened_with_items, same_item
from .token_space import BEHAVIOR_SLOT, TokenSpace


NUM_DISTANCES = 32
MAX_DISTANCE = 128


@dataclass(frozen=True)
class CopyChoice:
    """Whether to copy, and what.

    Args:
        log_copy, log_generate: `(..., queries)` log-probability of copying, and of not copying.
        log_weights: `(..., queries, n)` log of the attention to each interaction; -inf where it may not be copied.
    """

    log_copy: torch.Tensor
    log_generate: torch.Tensor
    log_weights: torch.Tensor

    def log_prob(self, matches: torch.Tensor) -> torch.Tensor:
        """Log-probability `(..., queries)` of copying one of the interactions that match, `(..., queries, n)` bool."""
        weights = self.log_weights.masked_fill(~matches, -torch.inf)
        return self.log_copy + masked_logsumexp(weights)

    def for_positions(self, positions: int) -> "CopyChoice":
        """The choice of each query for every one of so many positions: `(batch_size * queries, positions)`."""
        width = self.log_weights.shape[-1]
        return CopyChoice(
            self.log_copy.flatten()[:, None].expand(-1, positions),
            self.log_generate.flatten()[:, None].expand(-1, positions),
            self.log_weights.flatten(0, 1)[:, None].expand(-1, positions, width),
        )


class HistoryCopying(nn.Module):
    """Attention from the behavior token of an interaction to the interactions before it, and the gate.

    Args:
        hidden_size: width of the hidden states.
        copy_dim: width of queries and keys.
        num_behaviors: number of behaviors, where attention to an interaction also depends on all that has happened
            with its item by the time of the query (a view that a cart and a purchase followed is hardly worth
            copying, and its own hidden state can not know of them); 0 for none of that.
    """

    def __init__(self, hidden_size: int, copy_dim: int, num_behaviors: int = 0):
        super().__init__()
        self.query = nn.Linear(hidden_size, copy_dim)
        self.key = nn.Linear(hidden_size, copy_dim)
        self.gate = nn.Linear(hidden_size, 1)
        self.distance_bias = nn.Parameter(torch.zeros(NUM_DISTANCES))
        self.happened_bias = nn.Linear(hidden_size, num_behaviors) if num_behaviors else None

    @classmethod
    def of(cls, config: PreTrainedConfig, hidden_size: int) -> "HistoryCopying | None":
        """The head a configuration asks for, if any."""
        if not config.copy_from_history:
            return None
        return cls(hidden_size, config.copy_dim, len(config.behaviors) if config.copy_item_behaviors else 0)

    def reset_parameters(self) -> None:
        """Initialise through the guarded functions of transformers, which leave loaded weights alone."""
        for linear in (self.query, self.key, self.gate):
            # Final states are normalised: scores start at about unit variance, the gate near a half.
            init.normal_(linear.weight, mean=0.0, std=linear.in_features**-0.5)
            init.zeros_(linear.bias)
        init.zeros_(self.distance_bias)
        if self.happened_bias is not None:
            init.zeros_(self.happened_bias.weight)
            init.zeros_(self.happened_bias.bias)

    def forward(
        self,
        query_states: torch.Tensor,
        key_states: torch.Tensor,
        distance: torch.Tensor,
        visible: torch.Tensor,
        history: Interactions,
    ) -> CopyChoice:
        """
        Args:
            query_states: `(batch_size, queries, hidden_size)` at the behavior tokens.
            key_states: `(batch_size, n, hidden_size)` at the last codes of the history's interactions.
            distance: `(batch_size, queries, n)` how many interactions ago, from 1.
            visible: `(batch_size, queries, n)` bool, which interactions may be copied.
            history: the interactions themselves.
        """
        queries, keys = self.query(query_states), self.key(key_states)
        scores = precise(queries @ keys.transpose(-1, -2)) * queries.shape[-1] ** -0.5
        scores = scores + self.distance_bias[distance_bucket(distance)]
        if self.happened_bias is not None:
            weights = precise(self.happened_bias(query_states))
            for behavior, happened in enumerate(happened_with_items(history, visible, weights.shape[-1])):
                scores = scores + weights[..., behavior, None] * happened
        any_visible = visible.any(-1)
        scores = scores.masked_fill(~visible, -torch.inf)
        log_weights = scores - masked_logsumexp(scores)[..., None].masked_fill(~any_visible[..., None], 0.0)
        gate = precise(self.gate(query_states)[..., 0])
        return CopyChoice(
            log_copy=nn.functional.logsigmoid(gate).masked_fill(~any_visible, -torch.inf),
            log_generate=nn.functional.logsigmoid(-gate).masked_fill(~any_visible, 0.0),
            log_weights=log_weights,
        )

    def within_row(
        self,
        states: torch.Tensor,
        columns: torch.LongTensor,
        history: Interactions,
        sequence_ids: torch.LongTensor | None = None,
        session_ids: torch.LongTensor | None = None,
    ) -> CopyChoice:
        """The choice where history and the interactions asked for stand in one row, as in a decoder.

        Args:
            states: `(batch_size, seq_len, hidden_size)` of the whole row.
            columns: `(batch_size, queries)` columns of the behavior tokens.
            history: the interactions of the row.
            sequence_ids: `(batch_size, seq_len)` packed sequence of each token: none copies from another.
            session_ids: `(batch_size, seq_len)` session of each token: none copies from its own, where given.
        """
        earlier = history.whole[:, None] & (history.last[:, None] < columns[..., None])
        place = torch.arange(history.last.shape[1], device=states.device)
        distance = earlier.sum(-1, keepdim=True) - place
        visible = earlier
        if sequence_ids is not None:
            visible = visible & (_at(sequence_ids, columns)[..., None] == _at(sequence_ids, history.last)[:, None])
        if session_ids is not None:
            visible = visible & (_at(session_ids, columns)[..., None] > _at(session_ids, history.last)[:, None])
        return self(_at(states, columns), _at(states, history.last), distance, visible, history)

    def from_encoder(
        self,
        queries: torch.Tensor,
        states: torch.Tensor,
        history: Interactions,
        history_lengths: torch.LongTensor | None = None,
    ) -> CopyChoice:
        """The choice where the history went through an encoder and comes before every query.

        Args:
            queries: `(batch_size, queries, hidden_size)` decoder states at behavior tokens.
            states: `(batch_size, seq_len, hidden_size)` encoder states.
            history: the interactions the encoder read.
            history_lengths: `(batch_size, queries)` how many tokens of it come before each query; all by default.
        """
        visible = history.whole[:, None].expand(-1, queries.shape[1], -1)
        if history_lengths is not None:
            visible = visible & (history.last[:, None] < history_lengths[..., None])
        place = torch.arange(history.last.shape[1], device=states.device)
        distance = visible.sum(-1, keepdim=True) - place
        return self(queries, _at(states, history.last), distance, visible, history)


def _at(values: torch.Tensor, columns: torch.LongTensor) -> torch.Tensor:
    """`values[b, columns[b, i]]` for values of shape `(batch_size, seq_len)` or `(batch_size, seq_len, width)`."""
    if values.ndim == 2:
        return values.gather(1, columns)
    return values.gather(1, columns[..., None].expand(-1, -1, values.shape[-1]))


def distance_bucket(distance: torch.Tensor) -> torch.Tensor:
    """Bucket of a distance from 1: half of them hold one distance each, the others grow up to `MAX_DISTANCE`."""
    exact = NUM_DISTANCES // 2
    steps = (distance.clamp(min=exact).float() / exact).log() / torch.tensor(MAX_DISTANCE / exact).log()
    coarse = exact + (steps * (NUM_DISTANCES - exact)).long()
    return torch.where(distance < exact, distance.clamp(min=0), coarse.clamp(max=NUM_DISTANCES - 1))


def precise(values: torch.Tensor) -> torch.Tensor:
    """In float32, or float64 where the values are."""
    return values.to(torch.promote_types(values.dtype, torch.float32))


def masked_logsumexp(values: torch.Tensor) -> torch.Tensor:
    """`logsumexp` over the last dimension that is -inf, with zero gradient, where all values are -inf."""
    top = values.detach().amax(-1, keepdim=True)
    reachable = top > -torch.inf
    shifted = (values - top.masked_fill(~reachable, 0.0)).exp().sum(-1, keepdim=True)
    # The logarithm of 1, not of 0, where nothing is reachable: its gradient is multiplied by zero, and inf would stay.
    summed = shifted.masked_fill(~reachable, 1.0).log() + top.masked_fill(~reachable, 0.0)
    return summed.masked_fill(~reachable, -torch.inf)[..., 0]


def mix(generated: torch.Tensor, copied: torch.Tensor) -> torch.Tensor:
    """`logaddexp` with zero instead of undefined gradients where one side, or both, are -inf."""
    return masked_logsumexp(torch.stack([generated, copied], dim=-1))


def likelihood_gain(
    choice: CopyChoice, generated: torch.Tensor, codes: torch.LongTensor, history: Interactions
) -> torch.Tensor:
    """What copying adds to the log-probability of whole items, `(batch_size, q)`.

    Args:
        choice: for the `q` interactions.
        generated: `(batch_size, q)` log-probability of their items under the generated codes alone.
        codes: `(batch_size, q, m)` token ids of their items.
        history: the interactions they may copy.
    """
    copied = choice.log_prob(same_item(codes, history.codes))
    return mix(choice.log_generate + generated, copied) - generated


def next_code_log_probs(
    choice: CopyChoice, written: torch.Tensor, generated: torch.Tensor, matches: torch.Tensor, codes: torch.LongTensor
) -> torch.Tensor:
    """Log-probabilities of the next code of an item, `(batch_size, q, width)`: the mixture given the codes so far.

    Not for training: no gradient is defined.

    Args:
        choice: for the `q` positions.
        written: `(batch_size, q)` log-probability of the codes so far under the generated codes alone.
        generated: `(batch_size, q, width)` log-probabilities of the generated code.
        matches: `(batch_size, q, n)` bool, which interactions agree with the codes so far.
        codes: `(batch_size, q or 1, n)` the next code of each interaction, as a column of `generated`.
    """
    weights = (choice.log_copy[..., None] + choice.log_weights).masked_fill(~matches, -torch.inf).exp()
    # An interaction that holds no item has no weight; its code -1 only must not point outside.
    columns = codes.clamp(min=0).expand(weights.shape)
    copied = torch.zeros_like(generated).scatter_add_(2, columns, weights.to(generated.dtype)).log()
    written = choice.log_generate + written
    mixed = torch.logaddexp(written[..., None] + generated, copied)
    return mixed - mix(written, choice.log_prob(matches))[..., None]


def mixed_log_probs(
    choice: CopyChoice,
    generated: torch.Tensor,
    ids: torch.LongTensor,
    history: Interactions,
    space: TokenSpace,
) -> torch.Tensor:
    """Log-probabilities of the token after each position, with copying. Not for training: no gradient is defined.

    Args:
        choice: for every position, read at the behavior token of its interaction.
        generated: `(batch_size, t, vocab_size)` log-probabilities of the generated token.
        ids: `(batch_size, t)` the tokens so far. The interaction that a position belongs to must begin among them.
        history: the interactions that may be copied.
        space: the layout of ids.
    """
    levels = space.num_code_levels
    # How many codes of its interaction are known at each position; nothing is copied after the last one.
    known = space.slots(ids) - BEHAVIOR_SLOT
    columns = torch.arange(ids.shape[1], device=ids.device)
    first_code = (columns - known + 1).clamp(min=0)
    written = generated[:, :-1].gather(2, ids[:, 1:, None])[..., 0]  # of the token that did follow
    prefix = torch.zeros_like(generated[..., 0])
    matches = choice.log_weights > -torch.inf
    for level in range(levels - 1):
        column = (first_code + level).clamp(max=ids.shape[1] - 1)
        applies = known > level
        of_code = nn.functional.pad(written, (1, 0)).gather(1, column)
        prefix = prefix + torch.where(applies, of_code, 0.0)
        code = ids.gather(1, column)
        matches = matches & (~applies[..., None] | (code[..., None] == history.codes[:, None, :, level]))
    following = known.clamp(0, levels - 1)
    tokens = history.codes.transpose(1, 2).gather(1, following[..., None].expand(-1, -1, history.codes.shape[1]))
    mixed = next_code_log_probs(choice, prefix, generated, matches, tokens)
    return torch.where(((known >= 0) & (known < levels))[..., None], mixed, generated)


__all__ = [
    "CopyChoice",
    "HistoryCopying",
    "likelihood_gain",
    "mix",
    "mixed_log_probs",
    "next_code_log_probs",
    "precise",
]
