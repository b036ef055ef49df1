"""Behavior-aware sampling (MBGen section 4.4.2): every behavior gets results in proportion to its probability."""

import torch

from .shared_history_search import Beams, Expansion, beam_search, normalized


def behavior_quotas(probabilities: torch.Tensor, count: int) -> torch.LongTensor:
    """Share `count` results among behaviors by largest remainder, `(num_users, num_behaviors)`.

    Args:
        probabilities: `(num_users, num_behaviors)`, each row sums to 1.
        count: results per user; each row of the answer sums to it.
    """
    ideal = probabilities * count
    # What is a whole number up to rounding must not lose a result to a larger remainder.
    whole = (ideal + 1e-4).floor()
    remainder = ideal - whole
    missing = count - whole.sum(1, keepdim=True)
    rank = remainder.argsort(dim=1, descending=True, stable=True).argsort(dim=1)
    return (whole + (rank < missing)).long()


def behavior_aware_search(expansion: Expansion, prompt_ids: torch.LongTensor, num_beams: int, count: int) -> Beams:
    """The best items of every behavior, as many of each as its share, in order of the joint score.

    Where a behavior can not fill its share, the best of the others take the places left.

    Args:
        expansion: the model on a batch.
        prompt_ids: `(num_users, 0)`, the behavior is not given.
        num_beams: beams per user and behavior.
        count: results per user.
    """
    beams = beam_search(expansion, prompt_ids, num_beams, by_behavior=True)
    behaviors = len(expansion.space.behaviors)
    quotas = behavior_quotas(normalized(beams.behavior_log_probs).exp(), count)
    label = beams.ids[..., 0] - expansion.space.behavior_offset
    # The beams of one behavior follow one another, best first.
    rank = torch.arange(label.shape[1] // behaviors, device=label.device).repeat(behaviors)
    within = (rank < quotas.gather(1, label)) & (beams.scores > -torch.inf)
    by_score = beams.scores.argsort(dim=1, descending=True, stable=True)
    first = (~within.gather(1, by_score)).long().argsort(dim=1, stable=True)[:, :count]
    chosen = by_score.gather(1, first)
    order = beams.scores.gather(1, chosen).argsort(dim=1, descending=True, stable=True)
    return beams.select(chosen.gather(1, order))


__all__ = ["behavior_aware_search", "behavior_quotas"]
