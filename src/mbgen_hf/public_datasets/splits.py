"""Training, validation and test rows of a sequence table, as `datasets` and the Hub hold them."""

from collections.abc import Iterator

import numpy as np
import pyarrow as pa
from datasets import Features, Value

from mbgen_hf.data.ranges import flat_ranges
from mbgen_hf.data.sequence_table import SequenceTable
from mbgen_hf.data.sessions import MINIMUM_SESSIONS, session_from_end, session_training_end, users_with_sessions
from mbgen_hf.evaluation.protocols import Protocol, training_end


SPLITS = ("train", "validation", "test")
CONFIG_PROTOCOLS: dict[str, Protocol] = {"sequential": "leave_one_out", "session": "session_wise"}
BLOCK_INTERACTIONS = 1 << 20


def split_features(table: SequenceTable) -> Features:
    """Features of a row: those of the table, and `history_length`."""
    return Features({**table.features(), "history_length": Value("int32")})


def split_tables(
    table: SequenceTable, protocol: Protocol, split: str, block: int = BLOCK_INTERACTIONS
) -> Iterator[pa.Table]:
    """Rows of a split, one for each user, in blocks of about `block` interactions.

    A row holds a user's interactions in order of time. The first `history_length` of them may be shown; what follows
    is held out: nothing in `train`, the validation interaction (or session) in `validation`, the test one in `test`.
    No row reaches beyond its split, and the `test` rows hold everything.

    Args:
        table: the sequences; with session ids for `"session_wise"`.
        protocol: `"leave_one_out"` or `"session_wise"`, which leaves out users of fewer than three sessions.
        split: `"train"`, `"validation"` or `"test"`.

    Raises:
        ValueError: an unknown split, or what the protocol asks for is not there.
    """
    if split not in SPLITS:
        raise ValueError(f"`split`: expected one of {list(SPLITS)}, found {split!r}")
    users, cuts = _cuts(table, protocol)
    number = SPLITS.index(split)
    begin, shown, end = table.offsets[:-1][users], cuts[max(number - 1, 0)], cuts[number]
    lengths = np.cumsum(end - begin)
    edges = np.flatnonzero(np.diff(lengths // block, prepend=0)) + 1
    features = split_features(table)
    for some in np.split(np.arange(len(users)), edges[edges < len(users)]):
        yield _rows(table, users[some], begin[some], end[some], (shown - begin)[some], features)


def _cuts(table: SequenceTable, protocol: Protocol) -> tuple[np.ndarray, list[np.ndarray]]:
    """The users, and for each of them where training, validation and test part end."""
    if protocol == "leave_one_out":
        end = training_end(table)
        return np.arange(table.num_users), [end, end + 1, end + 2]
    users = np.flatnonzero(users_with_sessions(table, MINIMUM_SESSIONS))
    last, end = session_from_end(table, 1)
    return users, [cut[users] for cut in (session_training_end(table), last, end)]


def _rows(
    table: SequenceTable,
    users: np.ndarray,
    begin: np.ndarray,
    end: np.ndarray,
    history: np.ndarray,
    features: Features,
) -> pa.Table:
    positions = flat_ranges(begin, end)[1]
    offsets = pa.array(np.concatenate([[0], np.cumsum(end - begin)]).astype(np.int32))
    values = {"item_ids": table.items, "behaviors": table.behaviors, "timestamps": table.timestamps}
    if table.session_ids is not None:
        values["session_ids"] = table.session_ids
    schema = features.arrow_schema
    columns = {"user_id": pa.array(table.user_ids[users])}
    for name, flat in values.items():
        kind = schema.field(name).type
        columns[name] = pa.ListArray.from_arrays(offsets, pa.array(flat[positions]).cast(kind.value_type))
    columns["history_length"] = pa.array(history.astype(np.int32))
    return pa.table({name: columns[name].cast(schema.field(name).type) for name in schema.names}, schema=schema)


__all__ = ["CONFIG_PROTOCOLS", "SPLITS", "split_features", "split_tables"]
