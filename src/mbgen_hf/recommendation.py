"""Recommendations for histories of raw item ids, as lists a program or a person can read."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from mbgen_hf.data.sequence_table import SequenceTable
from mbgen_hf.models.tokenization_interactions import InteractionTokenizer, history_items


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
        ValueError: unknown items or behaviors, or k below 1.
    """
    if k < 1:
        raise ValueError(f"`k`: expected at least 1, found {k}")
    session_wise = getattr(model.config, "session_wise_attention", False)
    lists = []
    for start in range(0, len(histories), batch_size):
        batch = list(histories[start : start + batch_size])
        users = None if user_ids is None else list(user_ids[start : start + batch_size])
        # Whole histories: an item that the model no longer sees was still touched.
        seen = {"exclude": tokenizer.item_sets([history_items(history) for history in batch])} if exclude_seen else {}
        encoded = tokenizer.encode_history(batch, user_id=users, with_sessions=session_wise).to(model.device)
        output = model.generate(
            **encoded,
            **seen,
            behavior=behavior,
            num_beams=max(num_beams, k, 2),  # Greedy search reports no scores.
            num_return_sequences=k,
            return_dict_in_generate=True,
        )
        pairs = tokenizer.decode_interactions(output.sequences)
        scores = output.sequences_scores.tolist()
        found = [pair and Recommendation(*pair, score) for pair, score in zip(pairs, scores, strict=True)]
        rows = [found[row * k : (row + 1) * k] for row in range(len(batch))]
        lists.extend([entry for entry in row if entry is not None] for row in rows)
    return lists


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
