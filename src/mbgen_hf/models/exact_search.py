"""The true top-k: best-first search over the trie, with a proof.

A log-probability only falls as codes are added, so the score of a prefix bounds every item below it. What has not been
expanded is kept sorted by score; once the best of it is no better than the k-th item found, nothing better exists.
Nodes are expanded in batches, one batch per code level and sweep: the first sweep is a beam search, whose items are
the bar that later sweeps have to pass.
"""

from dataclasses import dataclass

import torch

from .shared_history import BeamCache
from .shared_history_search import Beams, Expansion, with_behavior_log_probs


@dataclass(frozen=True)
class ExactAnswer:
    """The best items found, and what is known of the rest.

    Args:
        beams: up to `k` items of every user, best first.
        bound: `(num_users,)` no item that was not looked at scores more than this; `-inf` when all were.
        gap: `(num_users,)` by how much such an item may beat the last of the `k`: 0 proves that none does, infinity
            says that there may be more items than were found.
        expanded: `(num_users,)` prefixes expanded beyond the prompt.
    """

    beams: Beams
    bound: torch.Tensor
    gap: torch.Tensor
    expanded: torch.LongTensor


class _Frontier:
    """Prefixes of one depth that were not expanded, best first; `-inf` fills the rows.

    Args:
        scores: `(num_users, size)`.
        parents: `(num_users, size)` number of the parent among the expanded prefixes of the depth before.
        choices: `(num_users, size)` behavior label or code behind the parent's ids.
        dropped: `(num_users,)` best score of what was let go because it can not pass the bar.
    """

    def __init__(self, scores: torch.Tensor, parents: torch.LongTensor, choices: torch.LongTensor, dropped=None):
        self.scores, self.parents, self.choices = scores, parents, choices
        self.dropped = scores.new_full((len(scores),), -torch.inf) if dropped is None else dropped

    def merge(self, other: "_Frontier", bar: torch.Tensor) -> "_Frontier":
        """Both, without what does not pass the bar `(num_users, 1)`."""
        scores = torch.cat([self.scores, other.scores], dim=1)
        fails = scores <= bar
        lost = torch.cat([self.dropped[:, None], scores.masked_fill(~fails, -torch.inf)], dim=1).amax(1)
        scores = scores.masked_fill(fails, -torch.inf)
        scores, order = scores.topk(int((scores > -torch.inf).sum(1).max()), dim=1)
        return _Frontier(
            scores,
            torch.cat([self.parents, other.parents], dim=1).gather(1, order),
            torch.cat([self.choices, other.choices], dim=1).gather(1, order),
            lost,
        )

    def take(self, allowance: torch.Tensor, count: int) -> tuple["_Frontier", "_Frontier"]:
        """The best `count` of each row, no more than the row's `(num_users, 1)` allowance, and the others."""
        taken = _Frontier(self.scores[:, :count], self.parents[:, :count], self.choices[:, :count])
        within = torch.arange(taken.scores.shape[1], device=allowance.device) < allowance
        left = self.scores.clone()
        left[:, :count] = torch.where(within, -torch.inf, taken.scores)
        taken.scores = taken.scores.masked_fill(~within, -torch.inf)
        return taken, _Frontier(left, self.parents, self.choices, self.dropped)


class _Search:
    """The state of a search: expanded prefixes with their keys and values, frontiers, and the best items."""

    def __init__(self, expansion: Expansion, prompt_ids: torch.LongTensor, k: int, budget: int | None):
        self.expansion, self.k, self.budget = expansion, k, budget
        self.first, self.last = prompt_ids.shape[1], expansion.space.num_code_levels
        users = len(prompt_ids)
        self.expanded = torch.zeros(users, dtype=torch.long, device=prompt_ids.device)
        self.stores: dict[int, tuple[Beams, BeamCache]] = {}
        self.frontiers: dict[int, _Frontier] = {}
        self.best: Beams | None = None
        beams = expansion.start(prompt_ids)
        log_probs = expansion.log_probs(expansion.decoder.hidden, beams, expansion.decoder.cache)
        self.behavior_log_probs = log_probs[:, 0] if self.first == 0 else None
        self._add(self.first, beams, expansion.decoder.cache, log_probs)

    @property
    def bar(self) -> torch.Tensor:
        """Score that a further item must pass, `(num_users, 1)`."""
        if self.best is None or self.best.scores.shape[1] < self.k:
            return torch.full_like(self.expanded, -torch.inf, dtype=torch.float32)[:, None]
        return self.best.scores[:, -1:]

    @property
    def bound(self) -> torch.Tensor:
        """Best score among what was not expanded, `(num_users,)`."""
        bound = torch.full_like(self.expanded, -torch.inf, dtype=torch.float32)
        for frontier in self.frontiers.values():
            known = torch.cat([frontier.dropped[:, None], frontier.scores], dim=1)
            bound = torch.maximum(bound, known.amax(1))
        return bound

    def sweep(self, count: int) -> bool:
        """Expand up to `count` prefixes of every depth; whether there were any."""
        found = False
        for depth in range(self.first + 1, self.last + 1):
            if depth not in self.frontiers:
                break
            frontier = self.frontiers[depth].merge(_nothing(self.frontiers[depth]), self.bar)
            allowance = torch.full_like(self.expanded, count if self.budget is None else self.budget)
            if self.budget is not None:
                allowance = allowance - self.expanded
            taken, self.frontiers[depth] = frontier.take(allowance[:, None], count)
            if not bool((taken.scores > -torch.inf).any()):
                continue
            found = True
            self.expanded = self.expanded + (taken.scores > -torch.inf).sum(1)
            self._expand(depth, taken)
        return found

    def _expand(self, depth: int, taken: _Frontier) -> None:
        parents, cache = self.stores[depth - 1]
        beams = self.expansion.follow(parents, taken.parents, taken.choices, taken.scores)
        hidden, cache = self.expansion.hidden(beams, cache)
        self._add(depth, beams, cache, self.expansion.log_probs(hidden, beams, cache))

    def _add(self, depth: int, beams: Beams, cache: BeamCache, log_probs: torch.Tensor) -> None:
        """File expanded prefixes of one depth, and their children."""
        width = log_probs.shape[-1]
        total = (beams.scores[..., None] + log_probs).flatten(1)
        if depth == self.last:
            scores, order = total.topk(min(self.k, total.shape[1]), dim=1)
            found = self.expansion.follow(beams, order // width, order % width, scores)
            self.best = found if self.best is None else _best(self.best, found, self.k)
            return
        before = self.stores.get(depth)
        offset = 0 if before is None else before[0].scores.shape[1]
        self.stores[depth] = (beams, cache) if before is None else (_join(before[0], beams), before[1].join(cache))
        number = torch.arange(total.shape[1], device=total.device).expand_as(total)
        children = _Frontier(total, number // width + offset, number % width)
        present = self.frontiers.get(depth + 1, _nothing(children))
        self.frontiers[depth + 1] = present.merge(children, self.bar)


def exact_search(
    expansion: Expansion, prompt_ids: torch.LongTensor, k: int, batch: int = 64, budget: int | None = None
) -> ExactAnswer:
    """The `k` best items of every user.

    Args:
        expansion: the model on a batch.
        prompt_ids: `(num_users, prompt_len)` what is given, from the behavior token on.
        k: number of items.
        batch: prefixes of one depth that are expanded together, per user.
        budget: prefixes that may be expanded per user beyond the first; `None` for as many as it takes.
    """
    search = _Search(expansion, prompt_ids, k, budget)
    while search.sweep(batch):
        pass
    bound, bar = search.bound, search.bar[:, 0]
    gap = torch.where(bound > bar, bound - bar, 0.0)
    best = search.best
    if best is None:
        ids = prompt_ids.new_zeros(len(prompt_ids), 0, 1 + expansion.space.num_code_levels)
        best = Beams(ids, bound.new_zeros(len(ids), 0), None, ids[..., 0])
    return ExactAnswer(with_behavior_log_probs(best, search.behavior_log_probs), bound, gap, search.expanded)


def _nothing(like: _Frontier) -> _Frontier:
    return _Frontier(like.scores[:, :0], like.parents[:, :0], like.choices[:, :0])


def _join(first: Beams, second: Beams) -> Beams:
    """The beams of both; ids, scores and states only."""
    ids, scores = torch.cat([first.ids, second.ids], dim=1), torch.cat([first.scores, second.scores], dim=1)
    state = None if first.state is None else torch.cat([first.state, second.state], dim=1)
    return Beams(ids, scores, state, torch.cat([first.parents, second.parents], dim=1))


def _best(first: Beams, second: Beams, k: int) -> Beams:
    both = _join(first, second)
    scores, order = both.scores.topk(min(k, both.scores.shape[1]), dim=1)
    return both.select(order)


__all__ = ["ExactAnswer", "exact_search"]
