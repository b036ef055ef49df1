"""The sequence table: one row per user, held as flat arrays, stored as Parquet that `datasets` reads."""

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import polars as pl
import pyarrow as pa
import pyarrow.parquet as pq
from datasets import ClassLabel, Dataset, DatasetDict, Features, List, Value

from mbgen_hf.data.behavior_schema import BehaviorSchema
from mbgen_hf.data.distinct_ids import dense_ranks


SEQUENCES_FILE = "sequences.parquet"
CATALOG_FILE = "catalog.parquet"
SCHEMA_FILE = "schema.json"
SORTED_AT_ONCE = 1 << 23
"""Interactions; about so many times 40 bytes is what sorting takes besides."""


@dataclass(frozen=True)
class SequenceTable:
    """Every user's interactions in time order, as flat arrays cut by `offsets` (compressed rows).

    The interactions of user row `u` are the positions `offsets[u]:offsets[u + 1]` of `items`, `behaviors`,
    `timestamps` and `session_ids`.

    Args:
        schema: the behaviors.
        user_ids: `(num_users,)` raw user ids, `int64` or unicode, ascending.
        item_ids: `(num_items,)` raw item ids, `int64` or unicode, ascending: the catalog, indexed by `items`.
        offsets: `(num_users + 1,)` `int64`.
        items: `(num_interactions,)` `int32` catalog indices.
        behaviors: `(num_interactions,)` `int8` class labels of `schema`.
        timestamps: `(num_interactions,)` `int64` seconds.
        session_ids: `(num_interactions,)` `int32`, counted from 0 within each user, or `None`.
    """

    schema: BehaviorSchema
    user_ids: np.ndarray
    item_ids: np.ndarray
    offsets: np.ndarray
    items: np.ndarray
    behaviors: np.ndarray
    timestamps: np.ndarray
    session_ids: np.ndarray | None = None

    @property
    def num_users(self) -> int:
        return len(self.user_ids)

    @property
    def num_items(self) -> int:
        return len(self.item_ids)

    @property
    def num_interactions(self) -> int:
        return len(self.items)

    @property
    def lengths(self) -> np.ndarray:
        """`(num_users,)` number of interactions of each user."""
        return np.diff(self.offsets)

    @classmethod
    def from_log(cls, frame: pl.DataFrame, schema: BehaviorSchema) -> "SequenceTable":
        """Group an interaction log by user.

        Args:
            frame: columns `user_id`, `item_id` (integer or string), `behavior` (class label of `schema`),
                `timestamp` (seconds), optionally `session_id` (integer or string, renumbered within each user in
                the order of first appearance); any row order, ties in time keep it.
            schema: the behaviors.

        Raises:
            ValueError: the frame has no rows, lacks a column, holds nulls, or a label that `schema` does not have.
        """
        _check_log(frame, schema)
        users, user_ids = dense_ranks(frame["user_id"])
        items, item_ids = dense_ranks(frame["item_id"])
        timestamps = frame["timestamp"].cast(pl.Int64).to_numpy()
        offsets = np.concatenate([[0], np.cumsum(np.bincount(users))]).astype(np.int64)
        order = _order(users, timestamps)
        has_sessions = "session_id" in frame.columns
        del users  # of a large log every column counts
        return cls(
            schema=schema,
            user_ids=raw_ids(user_ids),
            item_ids=raw_ids(item_ids),
            offsets=offsets,
            items=items[order],
            behaviors=frame["behavior"].cast(pl.Int8).to_numpy()[order],
            timestamps=timestamps[order],
            session_ids=number_sessions(_ordered(frame["session_id"], order), offsets) if has_sessions else None,
        )

    @classmethod
    def from_dataset(
        cls,
        dataset: Dataset | DatasetDict,
        catalog: Dataset | Sequence | np.ndarray | None = None,
        behaviors: Dataset | BehaviorSchema | None = None,
    ) -> "SequenceTable":
        """Rebuild the table from rows of one user each, such as a dataset that `mbgen push-dataset` published holds.

        Args:
            dataset: all splits of a published dataset, of which `test` holds every interaction, or one `Dataset` whose
                rows hold all interactions of a user: `user_id`, `item_ids`, `behaviors` (`ClassLabel` or names),
                `timestamps` and maybe `session_ids`. Rows come in any order of users.
            catalog: raw item ids, ascending, or a dataset with them as `item_id`: what `item_ids` are rows of.
                Without it `item_ids` count as raw ids, and those that occur are the catalog.
            behaviors: the schema, or a dataset of `behavior`, `level` and `target`, in order of depth.

        Raises:
            ValueError: another form, or splits that do not belong together.

        Example:
            >>> dataset = load_dataset("me/retail", "session")  # doctest: +SKIP
            >>> catalog = load_dataset("me/retail", "session_catalog", split="catalog")  # doctest: +SKIP
            >>> behaviors = load_dataset("me/retail", "session_behaviors", split="behaviors")  # doctest: +SKIP
            >>> table = SequenceTable.from_dataset(dataset, catalog, behaviors)  # doctest: +SKIP
        """
        from mbgen_hf.data.dataset_rows import table_from_dataset

        return table_from_dataset(dataset, catalog, behaviors)

    def select(self, kept: np.ndarray) -> "SequenceTable":
        """The table of some of its interactions; users and items that are left without any go with them.

        Args:
            kept: `(num_interactions,)` bool.
        """
        if kept.all():
            return self
        lengths = np.add.reduceat(kept, self.offsets[:-1], dtype=np.int64)
        offsets = np.concatenate([[0], np.cumsum(lengths[lengths > 0])]).astype(np.int64)
        items = self.items[kept]
        present = np.zeros(self.num_items, dtype=bool)
        present[items] = True
        sessions = self.session_ids
        return SequenceTable(
            schema=self.schema,
            user_ids=self.user_ids[lengths > 0],
            item_ids=self.item_ids[present],
            offsets=offsets,
            items=(np.cumsum(present, dtype=np.int32) - np.int32(1))[items],
            behaviors=self.behaviors[kept],
            timestamps=self.timestamps[kept],
            session_ids=None if sessions is None else number_sessions(pl.Series(sessions[kept]), offsets),
        )

    def sample_users(self, count: int, seed: int = 0) -> "SequenceTable":
        """A random sample of the users, in their order, and the items that occur among them.

        Args:
            count: how many; all of them if there are fewer.
            seed: of the sample: the same table, count and seed give the same users.

        Raises:
            ValueError: a count below 1.
        """
        if count < 1:
            raise ValueError(f"`count`: expected at least 1 user, found {count}")
        if count >= self.num_users:
            return self
        sampled = np.zeros(self.num_users, dtype=bool)
        sampled[np.random.default_rng(seed).choice(self.num_users, count, replace=False)] = True
        return self.select(np.repeat(sampled, self.lengths))

    def features(self) -> Features:
        """The `datasets` features of one row."""
        features = {
            "user_id": Value("string" if self.user_ids.dtype.kind == "U" else "int64"),
            "item_ids": List(Value("int32")),
            "behaviors": List(ClassLabel(names=list(self.schema.names))),
            "timestamps": List(Value("int64")),
        }
        if self.session_ids is not None:
            features["session_ids"] = List(Value("int32"))
        return Features(features)

    def fingerprint(self) -> str:
        """A hash of everything in the table: two runs on tables of the same fingerprint saw the same data."""
        digest = hashlib.blake2b(json.dumps(self.schema.to_dict()).encode(), digest_size=16)
        for ids in (self.user_ids, self.item_ids):
            digest.update("\n".join(map(str, ids.tolist())).encode())
        for values in (self.offsets, self.items, self.behaviors, self.timestamps, self.session_ids):
            digest.update(b"" if values is None else np.ascontiguousarray(values).tobytes())
        return digest.hexdigest()

    def to_dataset(self) -> Dataset:
        """One row per user, with `ClassLabel` behaviors."""
        return Dataset(self._to_arrow())

    def save(self, folder: str | Path) -> None:
        """Write `sequences.parquet`, `catalog.parquet` and `schema.json` into an existing folder."""
        folder = Path(folder)
        pq.write_table(self._to_arrow(), folder / SEQUENCES_FILE)
        pq.write_table(pa.table({"item_id": pa.array(self.item_ids)}), folder / CATALOG_FILE)
        (folder / SCHEMA_FILE).write_text(json.dumps(self.schema.to_dict(), indent=2) + "\n", encoding="utf-8")

    @classmethod
    def load(cls, folder: str | Path) -> "SequenceTable":
        """Read what `save` wrote.

        Raises:
            ValueError: the folder lacks one of the three files.
        """
        folder = Path(folder)
        for name in (SEQUENCES_FILE, CATALOG_FILE, SCHEMA_FILE):
            if not (folder / name).is_file():
                raise ValueError(
                    f"{folder}: expected a prepared folder holding {name}, found none; run `mbgen prepare`"
                )
        table = pq.read_table(folder / SEQUENCES_FILE)

        def flat(name: str) -> np.ndarray:
            return table[name].combine_chunks().flatten().to_numpy(zero_copy_only=False)

        lengths = np.diff(table["item_ids"].combine_chunks().offsets.to_numpy())
        return cls(
            schema=BehaviorSchema.from_dict(json.loads((folder / SCHEMA_FILE).read_text(encoding="utf-8"))),
            user_ids=raw_ids(pl.from_arrow(table["user_id"])),
            item_ids=raw_ids(pl.from_arrow(pq.read_table(folder / CATALOG_FILE)["item_id"])),
            offsets=np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64),
            items=flat("item_ids"),
            behaviors=flat("behaviors").astype(np.int8),
            timestamps=flat("timestamps"),
            session_ids=flat("session_ids") if "session_ids" in table.column_names else None,
        )

    def _to_arrow(self) -> pa.Table:
        features = self.features()

        def lists(values: np.ndarray) -> pa.Array:
            return pa.LargeListArray.from_arrays(pa.array(self.offsets), pa.array(values))

        columns = {
            "user_id": pa.array(self.user_ids),
            "item_ids": lists(self.items),
            "behaviors": lists(self.behaviors),
            "timestamps": lists(self.timestamps),
        }
        if self.session_ids is not None:
            columns["session_ids"] = lists(self.session_ids)
        schema = features.arrow_schema
        return pa.table(
            {name: column.cast(schema.field(name).type) for name, column in columns.items()}, schema=schema
        )


def _check_log(frame: pl.DataFrame, schema: BehaviorSchema) -> None:
    required = ["user_id", "item_id", "behavior", "timestamp"]
    if missing := [name for name in required if name not in frame.columns]:
        raise ValueError(f"`frame`: expected the columns {required}, found {frame.columns} without {missing}")
    if frame.is_empty():
        raise ValueError("`frame`: expected at least one interaction, found none")
    if nulls := [name for name in frame.columns if name in (*required, "session_id") and frame[name].null_count()]:
        raise ValueError(f"`frame`: expected no nulls, found some in {nulls}")
    if not frame["behavior"].dtype.is_integer():
        raise ValueError(f"`frame`: expected class labels in 'behavior', found {frame['behavior'].dtype} values")
    low, high = frame["behavior"].min(), frame["behavior"].max()
    if low < 0 or high >= len(schema):
        raise ValueError(f"`frame`: expected behavior labels from 0 to {len(schema) - 1}, found {low} to {high}")


def _order(users: np.ndarray, timestamps: np.ndarray) -> np.ndarray | slice:
    """What sorts by user and time, ties in place; a slice of everything where the rows are in order already.

    A group of users is sorted at a time: sorting needs several times the memory of what it sorts.
    """
    same_user = users[1:] == users[:-1]
    if np.all((users[1:] > users[:-1]) | (same_user & (timestamps[1:] >= timestamps[:-1]))):
        return slice(None)
    num_users = int(users.max()) + 1
    order = np.empty(len(users), dtype=np.uint32)
    done = 0
    for group in np.array_split(np.arange(num_users), min(num_users, -(-len(users) // SORTED_AT_ONCE))):
        rows = np.flatnonzero((users >= group[0]) & (users <= group[-1])).astype(np.uint32)
        order[done : done + len(rows)] = rows[_sorted(users[rows] - group[0], timestamps[rows])]
        done += len(rows)
    return order


def _sorted(users: np.ndarray, timestamps: np.ndarray) -> np.ndarray:
    start = int(timestamps.min())
    span = int(timestamps.max()) - start + 1
    if (int(users.max()) + 1) * span < 2**63:  # one key sorts in a third of the time of two
        frame = pl.DataFrame({"key": users * np.int64(span) + (timestamps - start)})
    else:
        frame = pl.DataFrame({"user": users, "time": timestamps})
    return frame.select(pl.arg_sort_by(frame.columns, maintain_order=True)).to_series().to_numpy()


def _ordered(values: pl.Series, order: np.ndarray | slice) -> pl.Series:
    return values if isinstance(order, slice) else values.gather(order)


def number_sessions(ids: pl.Series, offsets: np.ndarray) -> np.ndarray:
    """Count each user's sessions from 0 in the order of their first interaction."""
    users = np.repeat(np.arange(len(offsets) - 1), np.diff(offsets))
    rows = pl.DataFrame({"user": users, "session": ids})
    firsts = rows.with_row_index("row").select(pl.col("row").first().over("user", "session"))
    firsts = firsts.to_series().to_numpy()
    started = np.cumsum(firsts == np.arange(len(firsts)))  # sessions begun up to each interaction, over all users
    before_user = np.repeat(started[offsets[:-1]], np.diff(offsets))
    return (started[firsts] - before_user).astype(np.int32)


def raw_ids(ids: pl.Series) -> np.ndarray:
    """Raw ids as `int64` where they are integers, else as a numpy unicode array."""
    if ids.dtype.is_integer():
        return ids.cast(pl.Int64).to_numpy()
    return np.array(ids.cast(pl.String).to_list(), dtype=np.str_)


__all__ = ["CATALOG_FILE", "SCHEMA_FILE", "SEQUENCES_FILE", "SequenceTable", "number_sessions", "raw_ids"]
