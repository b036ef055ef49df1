"""Recommendations for histories of raw item ids, as lists a program or a person can read."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch

from mbgen_hf.data.sequence_table import SequenceTable
from mbgen_hf.models.tokenization_interactions import InteractionTokenizer, history_items
from mbgen_hf.processes import failing_together, process_state, sum_over_processes


@dataclass(frozen=True)
class Recommendation:
    """One recommended interaction: its behavior, raw item id, and log-probability."""

    behavior: str
    item_id: Any
    score: float


def recommend(
    model,
    tokenizer: InteractionTokenizer,
    histories: Sequence,
    user_ids: Sequence | None = None,
    behavior: str | None = None,
    k: int = 10,
    num_beams: int = 50,
    batch_size: int = 64,
    exclude_seen: bool = False,
) -> list[list[Recommendation]]:
    """Top-k lists for a number of histories.

    Under `accelerate launch` every process is to call it with the same histories; each answers for its share of the
    batches and gets all lists back, the same as one process alone.

    Args:
        model: a checkpoint's model.
        tokenizer: its tokenizer.
        histories: as `InteractionTokenizer.encode_history` takes them; an empty one is a new user.
        user_ids: raw user ids, where the model has user tokens.
        behavior: the behavior to recommend for; `None` predicts it too.
        k: length of the lists; fewer come back where fewer items are reachable.
        num_beams: width of the beam search, at least k.
        batch_size: histories per `generate` call.
        exclude_seen: leave the items of each history out of its list.

    Raises:
        ValueError: unknown items or behaviors, k below 1, or another process failed.
    """
    if k < 1:
        raise ValueError(f"`k`: expected at least 1, found {k}")
    state = process_state()
    # Items, behaviors and scores; float64 holds every index exactly.
    answers = torch.zeros(3, len(histories), k, dtype=torch.float64)
    starts = range(0, len(histories), batch_size)
    with failing_together():
        # Whole batches go round: a history is padded like its neighbours, however many processes there are.
        for start in starts[state.process_index :: state.num_processes]:
            rows = slice(start, start + batch_size)
            users = None if user_ids is None else list(user_ids[rows])
            answers[:, rows] = _answers(
                model, tokenizer, list(histories[rows]), users, behavior, k, num_beams, exclude_seen
            )
    items, behaviors, scores = sum_over_processes(answers)
    items, labels, names = items.long().tolist(), behaviors.long().tolist(), tokenizer.token_space.behaviors
    return [
        [
            Recommendation(names[label], tokenizer.item_ids[item].item(), score)
            for item, label, score in zip(*row, strict=True)
            if item >= 0
        ]
        for row in zip(items, labels, scores.tolist(), strict=True)
    ]


def _answers(
    model, tokenizer: InteractionTokenizer, histories: list, users: list | None, behavior, k, num_beams, exclude_seen
) -> torch.Tensor:
    """`(3, batch_size, k)`: catalog indices, class labels and log-probabilities; indices are -1 where nothing is."""
    # Whole histories: an item that the model no longer sees was still touched.
    seen = {"exclude": tokenizer.item_sets([history_items(history) for history in histories])} if exclude_seen else {}
    session_wise = getattr(model.config, "session_wise_attention", False)
    encoded = tokenizer.encode_history(histories, user_id=users, with_sessions=session_wise).to(model.device)
    output = model.generate(
        **encoded,
        **seen,
        behavior=behavior,
        num_beams=max(num_beams, k, 2),  # Greedy search reports no scores.
        num_return_sequences=k,
        return_dict_in_generate=True,
    )
    scores = output["sequences_scores"].view(len(histories), k)
    return torch.stack([part.double().cpu() for part in (output["item_indices"], output["behavior_indices"], scores)])


def histories_of(table: SequenceTable, user_ids: Sequence) -> list[dict[str, Any]]:
    """The whole histories of some users of a table, in the form `recommend` takes.

    Raises:
        ValueError: a user that the table does not hold.
    """
    rows = {user: row for row, user in enumerate(table.user_ids.tolist())}
    numeric = table.user_ids.dtype.kind != "U"
    histories = []
    for user in user_ids:
        digits = user.removeprefix("-").isdecimal() if isinstance(user, str) else False
        key = int(user) if numeric and digits else user
        if key not in rows:
            raise ValueError(
                f"`users`: expected users of the prepared data ({table.num_users} users, such as "
                f"{table.user_ids[0].item()!r}), found {user!r}"
            )
        span = slice(*table.offsets[rows[key] : rows[key] + 2])
        items = table.item_ids[table.items[span]].tolist()
        # By name: a checkpoint may number the same behaviors otherwise.
        behaviors = [table.schema.names[label] for label in table.behaviors[span].tolist()]
        sessions = {} if table.session_ids is None else {"session_ids": table.session_ids[span].tolist()}
        histories.append({"user_id": key, "item_ids": items, "behaviors": behaviors, **sessions})
    return histories


__all__ = ["Recommendation", "histories_of", "recommend"]
