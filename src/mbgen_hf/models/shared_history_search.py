"""Beam search in which all beams of a user share one history.

An item has a fixed number of codes, so the loop has a fixed number of steps and no end-of-sequence step. The first
step is taken once per user, not once per beam; nothing in the loop waits for the device.
"""

from dataclasses import dataclass

import torch

from .request_catalog import RequestCatalog
from .shared_history import BeamCache, DecodingContext
from .token_space import BEHAVIOR_SLOT, FIRST_CODE_SLOT, TokenSpace


@dataclass(frozen=True)
class Beams:
    """Ranked continuations of every user, best first.

    Args:
        ids: `(num_users, num_beams, depth)` prompt and generated ids, from the behavior token on.
        scores: `(num_users, num_beams)` sums of the log-probabilities of the generated tokens; `-inf` where fewer
            are reachable.
        state: `(num_users, num_beams, ...)` where each has come to in the catalog; `None` before the behavior.
        parents: `(num_users, num_beams)` the beam of the step before that each continues.
        behavior_log_probs: `(num_users, num_behaviors)` log-probability of every behavior where the behavior was
            generated, `None` where it was given.
    """

    ids: torch.LongTensor
    scores: torch.Tensor
    state: torch.Tensor | None
    parents: torch.LongTensor
    behavior_log_probs: torch.Tensor | None = None

    def select(self, chosen: torch.LongTensor) -> "Beams":
        """Some of the beams, `(num_users, new_num_beams)` beam numbers; each then is its own parent."""
        users = torch.arange(len(chosen), device=chosen.device)[:, None]
        state = None if self.state is None else self.state[users, chosen]
        return Beams(self.ids[users, chosen], self.scores[users, chosen], state, chosen, self.behavior_log_probs)


class Expansion:
    """One step of decoding for any number of beams: hidden states, log-probabilities, and what may follow.

    Args:
        model: gives log-probabilities through `next_log_probs`.
        decoder: the model's decoder on the histories and prompts of a batch.
        catalog: the items that may be generated.
        token_space: the layout of ids.
        over_catalog: whether log-probabilities are normalised over what may follow instead of the vocabulary.
    """

    def __init__(self, model, decoder, catalog: RequestCatalog, token_space: TokenSpace, over_catalog: bool):
        self.model, self.decoder, self.catalog, self.space = model, decoder, catalog, token_space
        self.over_catalog = over_catalog

    def start(self, prompt_ids: torch.LongTensor) -> Beams:
        """One beam per user, which has generated nothing yet."""
        scores = torch.zeros(len(prompt_ids), 1, dtype=torch.float32, device=prompt_ids.device)
        parents = torch.zeros_like(scores, dtype=torch.long)
        state = self.catalog.start(prompt_ids[:, None]) if prompt_ids.shape[1] else None
        return Beams(prompt_ids[:, None], scores, state, parents)

    def hidden(self, beams: Beams, cache: BeamCache) -> tuple[torch.Tensor, BeamCache]:
        """Last hidden states of the beams' last tokens."""
        return self.decoder.step(cache, beams.ids[..., -1], beams.parents, BEHAVIOR_SLOT + beams.ids.shape[-1] - 1)

    def log_probs(self, hidden: torch.Tensor, beams: Beams, cache: BeamCache) -> torch.Tensor:
        """Log-probabilities of what may follow each beam, `-inf` for what may not: `(num_users, num_beams, width)`.

        `width` is the number of behaviors, or the size of the code level.
        """
        slot = BEHAVIOR_SLOT + beams.ids.shape[-1]
        context = DecodingContext(self.decoder.history, beams.ids, cache.states)
        log_probs = self.model.next_log_probs(hidden, slot, context, over_vocabulary=not self.over_catalog)
        if slot == BEHAVIOR_SLOT:
            allowed = self.catalog.allowed_behaviors(len(beams.ids))[:, None]
            log_probs = log_probs.masked_fill(~allowed, -torch.inf)
        else:
            log_probs = log_probs + self.catalog.bias(beams.state, slot - FIRST_CODE_SLOT)
        return normalized(log_probs) if self.over_catalog else log_probs

    def follow(self, beams: Beams, parents: torch.LongTensor, choice: torch.LongTensor, scores) -> Beams:
        """The beams that continue `parents` with `choice`: behavior labels or codes, `(num_users, new_num_beams)`."""
        slot = BEHAVIOR_SLOT + beams.ids.shape[-1]
        kept = beams.select(parents)
        ids = torch.cat([kept.ids, (choice + self.space.slot_range(slot)[0])[..., None]], dim=-1)
        if slot == BEHAVIOR_SLOT:
            state = self.catalog.start(ids)
        else:
            state = self.catalog.advance(kept.state, choice, slot - FIRST_CODE_SLOT)
        return Beams(ids, scores, state, parents, beams.behavior_log_probs)


def normalized(log_probs: torch.Tensor) -> torch.Tensor:
    """Normalised over the last dimension; rows without anything finite stay `-inf` instead of becoming NaN."""
    total = log_probs.logsumexp(-1, keepdim=True)
    return torch.where(total > -torch.inf, log_probs - total, log_probs)


def beam_search(
    expansion: Expansion, prompt_ids: torch.LongTensor, num_beams: int, by_behavior: bool = False
) -> Beams:
    """The best items by beam search.

    A step keeps the `num_beams` best continuations, fewer only where there are fewer. With as many beams as items the
    result is the exact ranking.

    Args:
        expansion: the model on a batch.
        prompt_ids: `(num_users, prompt_len)` what is given, from the behavior token on.
        num_beams: number of beams per user.
        by_behavior: whether every behavior has so many beams of its own; they then follow one another, behavior by
            behavior. The behavior must not be given.
    """
    beams, cache = expansion.start(prompt_ids), expansion.decoder.cache
    for depth in range(prompt_ids.shape[1], 1 + expansion.space.num_code_levels):
        if depth == prompt_ids.shape[1]:
            hidden = expansion.decoder.hidden
        else:
            hidden, cache = expansion.hidden(beams, cache)
        log_probs = expansion.log_probs(hidden, beams, cache)
        if depth == 0:
            beams = with_behavior_log_probs(beams, log_probs[:, 0])
        users, count, width = log_probs.shape
        groups = len(expansion.space.behaviors) if by_behavior and depth > 0 else 1
        keep = width if by_behavior and depth == 0 else num_beams
        total = (beams.scores[..., None] + log_probs).view(users, groups, -1)
        scores, best = total.topk(min(keep, total.shape[2]), dim=2)
        first = torch.arange(groups, device=best.device)[:, None] * (count // groups)
        beams = expansion.follow(
            beams, (best // width + first).flatten(1), (best % width).flatten(1), scores.flatten(1)
        )
    return beams


def with_behavior_log_probs(beams: Beams, log_probs: torch.Tensor | None) -> Beams:
    """The same beams with the log-probabilities of the behaviors beside them."""
    return Beams(beams.ids, beams.scores, beams.state, beams.parents, log_probs)


__all__ = ["Beams", "Expansion", "beam_search", "normalized", "with_behavior_log_probs"]
