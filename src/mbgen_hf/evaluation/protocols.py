"""Evaluation protocols: which history is shown, and which items are held out.

An evaluation case is one question put to a recommender: given these interactions of this user, what comes next? Cases
are kept as arrays of positions into a sequence table, so that making, selecting and reading them costs no loop.
"""

from dataclasses import dataclass
from typing import Literal

import numpy as np

from mbgen_hf.data.behavior_schema import BehaviorSchema
from mbgen_hf.data.sequence_table import SequenceTable


Task = Literal["target", "behavior", "behavior_item"]
TASKS: tuple[Task, ...] = ("target", "behavior", "behavior_item")

Split = Literal["validation", "test"]
_HELD_OUT = {"validation": 2, "test": 1}
"""How far from the end of a user's row the held-out interaction of each split lies."""


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
        first = _first_positions(table, self.users[:, None], self.targets)
        return (self.targets >= 0) & (first < self.history_end[:, None])


def leave_one_out_cases(table: SequenceTable, split: Split = "validation", max_history: int = 50) -> EvaluationCases:
    """One case per user: the last interaction is the test target, the second last the validation target.

    The history is everything before the held-out interaction, so a test history ends with the validation
    interaction; it is cut to the `max_history` latest interactions (MBGen section 4.1.3).

    Raises:
        ValueError: `split` is neither `"validation"` nor `"test"`, `max_history` is not positive, or a user has fewer
            than three interactions.
    """
    if split not in _HELD_OUT:
        raise ValueError(f"`split`: expected one of {list(_HELD_OUT)}, found {split!r}; pass one of these names")
    if max_history < 1:
        raise ValueError(f"`max_history`: expected 1 or more, found {max_history}; use 50 for the paper's setting")
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


def _first_positions(table: SequenceTable, users: np.ndarray, items: np.ndarray) -> np.ndarray:
    """Position of each user's first interaction with each item, of shape `items.shape`; past the end where none."""
    rows = np.repeat(np.arange(table.num_users, dtype=np.int64), table.lengths)
    pairs, first = np.unique(rows * table.num_items + table.items, return_index=True)
    asked = users.astype(np.int64) * table.num_items + items
    place = np.minimum(np.searchsorted(pairs, asked), len(pairs) - 1)
    return np.where(pairs[place] == asked, first[place], table.num_interactions)


__all__ = ["TASKS", "EvaluationCases", "Split", "Task", "leave_one_out_cases", "task_cases", "training_end"]
