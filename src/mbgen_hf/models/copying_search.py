"""The copying head in the shared-history search: the mixture of generating and copying for all beams of a user."""

import torch
from transformers import PreTrainedModel

from .history_copying import next_code_log_probs, precise
from .interactions import Interactions, same_item
from .shared_history import DecodingContext
from .token_space import FIRST_CODE_SLOT


def copied_log_probs(
    model: PreTrainedModel, hidden_states: torch.Tensor, slot: int, context: DecodingContext
) -> torch.Tensor:
    """Log-probabilities of the ids of one code level, what can be copied from the history included.

    All of the history comes before the interaction that is being generated, so each beam may copy every whole
    interaction of its user that agrees with the codes it has so far.

    Args:
        model: has `copying`, `lm_logits` and a token space.
        hidden_states: `(num_users, num_beams, d_model)` last hidden states of the last tokens.
        slot: slot of the code level.
        context: histories, the ids of the interaction so far and their last hidden states.

    Returns:
        `(num_users, num_beams, code_sizes[level])`, `float32`.
    """
    space, level = model.config.token_space, slot - FIRST_CODE_SLOT
    first, width = space.slot_range(slot)
    history = Interactions.of(context.history.ids, space)
    choice = model.copying.from_encoder(context.states[:, :, 0], context.history.hidden_states, history)
    generated = precise(model.lm_logits(hidden_states))
    generated = generated[..., first : first + width] - generated.logsumexp(-1, keepdim=True)
    matches = same_item(context.ids[..., 1:], history.codes[..., :level])
    codes = history.codes[:, None, :, level] - first
    return next_code_log_probs(choice, _written_log_prob(model, context), generated, matches, codes)


def _written_log_prob(model: PreTrainedModel, context: DecodingContext) -> torch.Tensor:
    """What the softmax alone gives to the codes so far, `(num_users, num_beams)`."""
    if context.ids.shape[-1] == 1:
        return torch.zeros(context.ids.shape[:2], device=context.ids.device)
    log_probs = precise(model.lm_logits(context.states[:, :, :-1])).log_softmax(-1)
    return log_probs.gather(-1, context.ids[..., 1:, None])[..., 0].sum(-1)


__all__ = ["copied_log_probs"]
