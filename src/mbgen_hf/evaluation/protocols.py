"""Evaluation protocols: which history is shown, and which items are held out.

An evaluation case is one question put to a recommender: given these interactions of this user, what comes next? Cases
are kept as arrays of positions into a sequence table, so that making, selecting and reading them costs no loop.
"""

from dataclasses import dataclass
from typing import Literal

import numpy as np

from mbgen_hf.data.behavior_schema import BehaviorSchema
from mbgen_hf.data.ranges import flat_ranges
from mbgen_hf.data.sequence_table import SequenceTable
from mbgen_hf.data.sessions import MINIMUM_SESSIONS, session_from_end, session_training_end, users_with_sessions


Task = Literal["target", "behavior", "behavior_item"]
TASKS: tuple[Task, ...] = ("target", "behavior", "behavior_item")

Protocol = Literal["leave_one_out", "session_wise"]
PROTOCOLS: tuple[Protocol, ...] = ("leave_one_out", "session_wise")

# History lengths of the papers: what the baselines see, however short a history a model was built for.
PAPER_HISTORY: dict[Protocol, int] = {"leave_one_out": 50, "session_wise": 100}


def protocol_tasks(protocol: Protocol) -> tuple[Task, ...]:
    """The tasks a protocol has: nothing orders the interactions of a held-out session, so none of them is the next."""
    return TASKS if protocol == "leave_one_out" else TASKS[:2]


Split = Literal["validation", "test"]
_HELD_OUT = {"validation": 2, "test": 1}
"""How far from the end of a user's row the held-out interaction, or session, of each split lies."""


@dataclass(frozen=True)
class EvaluationCases:
    """Held-out targets and the history before them, as positions into a `SequenceTable`.

    Args:
        users: `(num_cases,)` row of each case's user in the table.
        history_start: `(num_cases,)` first position of the history shown.
        history_end: `(num_cases,)` position after the last one of the history; nothing from there on may be read.
        targets: `(num_cases, max_targets)` `int32` held-out catalog indices, padded with -1.
        behavior: `(num_cases,)` `int8` class label of the held-out behavior.

    Raises:
        ValueError: the arrays do not have one row per case.
    """

    users: np.ndarray
    history_start: np.ndarray
    history_end: np.ndarray
    targets: np.ndarray
    behavior: np.ndarray

    def __post_init__(self) -> None:
        for name in ("users", "history_start", "history_end", "behavior"):
            if getattr(self, name).shape != self.users.shape[:1]:
                raise ValueError(
                    f"`{name}`: expected shape ({len(self.users)},), one value per case, "
                    f"found {getattr(self, name).shape}; pass a vector as long as `users`"
                )
        if self.targets.ndim != 2 or len(self.targets) != len(self.users):
            raise ValueError(
                f"`targets`: expected shape ({len(self.users)}, max_targets), found {self.targets.shape}; "
                "pass one row per case, padded with -1"
            )

    def __len__(self) -> int:
        return len(self.users)

    def select(self, mask: np.ndarray) -> "EvaluationCases":
        """The cases picked by a boolean mask or by indices, as any numpy array would be."""
        return EvaluationCases(
            users=self.users[mask],
            history_start=self.history_start[mask],
            history_end=self.history_end[mask],
            targets=self.targets[mask],
            behavior=self.behavior[mask],
        )

    def seen_before(self, table: SequenceTable) -> np.ndarray:
        """Which targets the user had touched before, under any behavior.

        The user's **whole** past counts, from the first interaction of the row up to `history_end`, not just the
        part left after the cut to `max_history`: a repeat stays a repeat however little of it a model gets to see.

        Returns:
            `(num_cases, max_targets)` bool, `False` where `targets` is padded.
        """
        return self.touched_before(table, self.targets)

    def touched_before(self, table: SequenceTable, items: np.ndarray) -> np.ndarray:
        """The same for any `(num_cases, k)` items, `False` for -1."""
        first = _first_positions(table, self.users[:, None], items)
        return (items >= 0) & (first < self.history_end[:, None])


def leave_one_out_cases(table: SequenceTable, split: Split = "validation", max_history: int = 50) -> EvaluationCases:
    """One case per user: the last interaction is the test target, the second last the validation target.

    The history is everything before the held-out interaction, so a test history ends with the validation
    interaction; it is cut to the `max_history` latest interactions (MBGen section 4.1.3).

    Raises:
        ValueError: `split` is neither `"validation"` nor `"test"`, `max_history` is not positive, or a user has fewer
            than three interactions.
    """
    _check_arguments(split, max_history, paper=50)
    held_out = training_end(table) + (2 - _HELD_OUT[split])
    return EvaluationCases(
        users=np.arange(table.num_users),
        history_start=np.maximum(table.offsets[:-1], held_out - max_history),
        history_end=held_out,
        targets=table.items[held_out, None].astype(np.int32),
        behavior=table.behaviors[held_out].astype(np.int8),
    )


def training_end(table: SequenceTable) -> np.ndarray:
    """`(num_users,)` position after the last training interaction: where the validation interaction lies.

    Raises:
        ValueError: a user has fewer than three interactions, and so none to train on once two are held out.
    """
    short = int(np.count_nonzero(table.lengths < 3))
    if short:
        raise ValueError(
            f"`table`: expected three or more interactions of every user (training, validation, test), found {short} "
            f"of {table.num_users} users with fewer; filter these users out when the table is prepared"
        )
    return table.offsets[1:] - 2


def session_wise_cases(
    table: SequenceTable, split: Split = "validation", max_history: int = 100, behavior: int | None = None
) -> EvaluationCases:
    """One case per user and behavior of the held-out session: the last is the test, the second last the validation.

    The targets are the distinct items of that session with that behavior, in the order of their first interaction
    under it. The history is everything before the session, cut to the `max_history` latest interactions: nothing of
    the session itself is shown (GAMER section 3.2). Users of fewer than three sessions have no case.

    Args:
        table: the sequences, with `session_ids`.
        split: `"validation"` or `"test"`.
        max_history: longest history, in interactions.
        behavior: class label, to make the cases of this behavior alone; all by default.

    Returns:
        Cases in order of user and class label, `targets` as wide as the largest case. What `task_cases` selects of
        them for the `"behavior"` task is all; its mean over cases is the mean per behavior weighted by size.

    Raises:
        ValueError: `split`, `max_history` or `behavior` is out of range, or what `session_starts` raises.
    """
    _check_arguments(split, max_history, paper=100)
    num_behaviors = len(table.schema)
    if behavior is not None and not 0 <= behavior < num_behaviors:
        raise ValueError(f"`behavior`: expected a class label in 0..{num_behaviors - 1}, found {behavior}")
    users = np.flatnonzero(users_with_sessions(table, MINIMUM_SESSIONS))
    begin, end = session_from_end(table, _HELD_OUT[split])
    rows, positions = flat_ranges(begin[users], end[users])
    if behavior is not None:
        asked = table.behaviors[positions] == behavior
        rows, positions = rows[asked], positions[asked]
    groups, targets = _distinct_items(rows * num_behaviors + table.behaviors[positions], table.items[positions])
    users = users[groups // num_behaviors]
    return EvaluationCases(
        users=users,
        history_start=np.maximum(table.offsets[users], begin[users] - max_history),
        history_end=begin[users],
        targets=targets,
        behavior=(groups % num_behaviors).astype(np.int8),
    )


def task_cases(cases: EvaluationCases, task: Task, schema: BehaviorSchema) -> EvaluationCases:
    """The cases that count for one of the three tasks (MBGen section 3.1).

    `"target"` keeps those whose held-out behavior is the target behavior. `"behavior"` (behavior-specific: the
    held-out behavior is given) and `"behavior_item"` (it has to be predicted too) keep all; they differ in what is
    predicted and compared, see `mbgen_hf.evaluation.metrics.joint_ids`.

    Raises:
        ValueError: an unknown task.
    """
    if task not in TASKS:
        raise ValueError(f"`task`: expected one of {list(TASKS)}, found {task!r}; pass one of these names")
    if task == "target":
        return cases.select(cases.behavior == schema.target_index)
    return cases


def protocol_cases(
    table: SequenceTable, protocol: Protocol, split: Split = "validation", max_history: int = 50
) -> EvaluationCases:
    """`leave_one_out_cases` or `session_wise_cases`, by name.

    Raises:
        ValueError: an unknown protocol, or what these raise.
    """
    _check_protocol(protocol)
    make = leave_one_out_cases if protocol == "leave_one_out" else session_wise_cases
    return make(table, split, max_history)


def protocol_training_end(table: SequenceTable, protocol: Protocol) -> np.ndarray:
    """`training_end` or `session_training_end`, by name.

    Raises:
        ValueError: an unknown protocol, or what these raise.
    """
    _check_protocol(protocol)
    return training_end(table) if protocol == "leave_one_out" else session_training_end(table)


def _check_protocol(protocol: str) -> None:
    if protocol not in PROTOCOLS:
        raise ValueError(f"`protocol`: expected one of {list(PROTOCOLS)}, found {protocol!r}; pass one of these names")


def _check_arguments(split: str, max_history: int, paper: int) -> None:
    if split not in _HELD_OUT:
        raise ValueError(f"`split`: expected one of {list(_HELD_OUT)}, found {split!r}; pass one of these names")
    if max_history < 1:
        raise ValueError(
            f"`max_history`: expected 1 or more, found {max_history}; use {paper} for the paper's setting"
        )


def _distinct_items(groups: np.ndarray, items: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The groups there are, ascending, and `(num_groups, max_items)` distinct items in order, padded with -1."""
    span = np.int64(items.max(initial=0)) + 1
    first = np.sort(np.unique(groups * span + items, return_index=True)[1])
    order = first[np.argsort(groups[first], kind="stable")]
    present, starts, sizes = np.unique(groups[order], return_index=True, return_counts=True)
    distinct = np.full((len(present), sizes.max(initial=1)), -1, dtype=np.int32)
    row = np.repeat(np.arange(len(present)), sizes)
    distinct[row, np.arange(len(order)) - starts[row]] = items[order]
    return present, distinct


def _first_positions(table: SequenceTable, users: np.ndarray, items: np.ndarray) -> np.ndarray:
    """Position of each user's first interaction with each item, of shape `items.shape`; past the end where none."""
    rows = np.repeat(np.arange(table.num_users, dtype=np.int64), table.lengths)
    pairs, first = np.unique(rows * table.num_items + table.items, return_index=True)
    asked = users.astype(np.int64) * table.num_items + items
    place = np.minimum(np.searchsorted(pairs, asked), len(pairs) - 1)
    return np.where(pairs[place] == asked, first[place], table.num_interactions)


__all__ = [
    "PAPER_HISTORY",
    "PROTOCOLS",
    "Protocol",
    "protocol_cases",
    "protocol_tasks",
    "protocol_training_end",
    "TASKS",
    "EvaluationCases",
    "Split",
    "Task",
    "leave_one_out_cases",
    "session_training_end",
    "session_wise_cases",
    "task_cases",
    "training_end",
]
