"""Rows of a `datasets.Dataset`, one for each user, back to a sequence table."""

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
import polars as pl
import pyarrow as pa
import pyarrow.compute as pc
from datasets import ClassLabel, Dataset, DatasetDict

from mbgen_hf.data.behavior_schema import BehaviorSchema
from mbgen_hf.data.distinct_ids import dense_ranks
from mbgen_hf.data.input_error import listed, shown
from mbgen_hf.data.ranges import flat_ranges


if TYPE_CHECKING:
    from mbgen_hf.data.sequence_table import SequenceTable


LISTS = ("item_ids", "behaviors", "timestamps", "session_ids")
REQUIRED = ("user_id", *LISTS[:3])
WHOLE_SPLIT = "test"
"""The split of a published dataset whose rows reach to the end of the log."""
SCHEMA_COLUMNS = ("behavior", "level", "target")

Catalog = Dataset | Sequence | np.ndarray


def schema_rows(schema: BehaviorSchema) -> pa.Table:
    """The behaviors in order of depth as a table of `behavior`, `level` and `target`."""
    target = [name == schema.target for name in schema.names]
    columns = [pa.array(schema.names), pa.array(schema.levels, pa.int32()), pa.array(target)]
    return pa.table(dict(zip(SCHEMA_COLUMNS, columns, strict=True)))


def table_from_dataset(
    dataset: Dataset | DatasetDict,
    catalog: Catalog | None = None,
    behaviors: Dataset | BehaviorSchema | None = None,
) -> "SequenceTable":
    """See `SequenceTable.from_dataset`."""
    from mbgen_hf.data.sequence_table import SequenceTable, number_sessions, raw_ids

    rows = _whole_rows(dataset)
    schema = _schema(behaviors)
    table = rows.with_format("arrow")[:]
    users = _column(table, "user_id")
    if not (users.dtype.is_integer() or users.dtype == pl.String):
        raise ValueError(f"`dataset`: expected integers or strings in 'user_id', found {users.dtype}")
    order = users.arg_sort().to_numpy()
    if users.is_duplicated().any():
        raise ValueError("`dataset`: expected one row for each user, found users with several")
    flat, offsets = _flat(table)
    begin, end = offsets[:-1][order], offsets[1:][order]
    if not users.is_sorted():
        positions = flat_ranges(begin, end)[1]
        flat = {name: values[positions] for name, values in flat.items()}
        offsets = np.concatenate([[0], np.cumsum(end - begin)])
    times = _seconds(flat["timestamps"])
    _check_times(times, offsets)
    items, item_ids = _items(flat["item_ids"], catalog)
    sessions = flat.get("session_ids")
    found = SequenceTable(
        schema=schema,
        user_ids=raw_ids(users.sort()),
        item_ids=raw_ids(item_ids),
        offsets=offsets.astype(np.int64),
        items=items.astype(np.int32),
        behaviors=_labels(flat["behaviors"], rows, schema),
        timestamps=times,
        session_ids=None if sessions is None else number_sessions(sessions, offsets),
    )
    if "history_length" in table.column_names:
        _check_history(found, _column(table, "history_length").to_numpy()[order])
    return found


def _whole_rows(dataset: Dataset | DatasetDict) -> Dataset:
    """The rows that hold all of each user's interactions."""
    if isinstance(dataset, DatasetDict):
        if WHOLE_SPLIT not in dataset or "history_length" not in dataset[WHOLE_SPLIT].column_names:
            expected = "a published dataset, or one split with all interactions of each user"
            raise ValueError(f"`dataset`: expected {expected}, found the splits {list(dataset)}; pass one of them")
        rows = dataset[WHOLE_SPLIT]
        users = _users_of(rows)
        for name, split in dataset.items():
            if not _users_of(split).equals(users):
                raise ValueError(
                    f"`dataset`: expected the same users in every split, found others in {name!r} than in "
                    f"{WHOLE_SPLIT!r}; filter all of them alike, or pass the split {WHOLE_SPLIT!r} alone"
                )
    elif isinstance(dataset, Dataset):
        rows = dataset
    else:
        found = type(dataset).__name__
        raise ValueError(f"`dataset`: expected a Dataset or DatasetDict, not streamed, found {found}")
    if missing := [name for name in REQUIRED if name not in rows.column_names]:
        raise ValueError(
            f"`dataset`: expected the columns {list(REQUIRED)}, found {rows.column_names} without {missing}"
        )
    if not rows.num_rows:
        raise ValueError("`dataset`: expected at least one row, found none")
    return rows


def _users_of(split: Dataset) -> pl.Series:
    """Raw user ids in ascending order, whatever the order of the rows."""
    if "user_id" not in split.column_names:
        raise ValueError(f"`dataset`: expected the column 'user_id' in every split, found {split.column_names}")
    return pl.from_arrow(split.select_columns("user_id").with_format("arrow")[:]["user_id"]).sort()


def _schema(behaviors: Dataset | BehaviorSchema | None) -> BehaviorSchema:
    if isinstance(behaviors, BehaviorSchema):
        return behaviors
    remedy = "pass a BehaviorSchema or the dataset CONFIG_behaviors that `mbgen push-dataset` wrote"
    if not isinstance(behaviors, Dataset):
        raise ValueError(f"`behaviors`: expected levels and the target, found {shown(behaviors)}; {remedy}")
    if missing := [name for name in SCHEMA_COLUMNS if name not in behaviors.column_names]:
        raise ValueError(
            f"`behaviors`: expected the columns {list(SCHEMA_COLUMNS)}, found {behaviors.column_names} without "
            f"{missing}; {remedy}"
        )
    columns = behaviors[:]
    targets = [name for name, target in zip(columns["behavior"], columns["target"], strict=True) if target]
    if len(targets) != 1:
        raise ValueError(f"`behaviors`: expected one target, found {targets}")
    return BehaviorSchema(tuple(columns["behavior"]), tuple(columns["level"]), targets[0])


def _column(table: pa.Table, name: str) -> pl.Series:
    values = pl.from_arrow(table[name])
    if values.null_count():
        raise ValueError(f"`dataset`: expected no nulls, found some in {name!r}")
    return values


def _flat(table: pa.Table) -> tuple[dict[str, pl.Series], np.ndarray]:
    """The list columns end to end, and where each row begins in them."""
    flat, lengths = {}, None
    for name in LISTS:
        if name not in table.column_names:
            continue
        if not (pa.types.is_list(table[name].type) or pa.types.is_large_list(table[name].type)):
            raise ValueError(f"`dataset`: expected a list in each row of {name!r}, found {table[name].type}")
        found = pc.list_value_length(table[name]).to_numpy()
        flat[name] = pl.from_arrow(pc.list_flatten(table[name]))
        if lengths is None:
            lengths = found
        if table[name].null_count or flat[name].null_count():
            raise ValueError(f"`dataset`: expected no nulls, found some in {name!r}")
        if not np.array_equal(found, lengths):
            row = int(np.flatnonzero(found != lengths)[0])
            raise ValueError(
                f"`dataset`: expected lists of one length in each row, found {found[row]} values in {name!r} and "
                f"{lengths[row]} in 'item_ids' of row {row}"
            )
    if not lengths.all():
        raise ValueError(f"`dataset`: expected interactions of every user, found none in row {int(lengths.argmin())}")
    return flat, np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64)


def _seconds(times: pl.Series) -> np.ndarray:
    """Seconds since the epoch, of those or of dates; `(num_interactions,)` `int64`."""
    if times.dtype in (pl.Date, pl.Datetime):
        return times.dt.epoch("s").to_numpy()
    if not times.dtype.is_integer():
        raise ValueError(f"`dataset`: expected 'timestamps' of whole seconds or dates, found {times.dtype}")
    return times.cast(pl.Int64).to_numpy()


def _check_times(times: np.ndarray, offsets: np.ndarray) -> None:
    falls = np.diff(times) < 0
    falls[offsets[1:-1] - 1] = False  # from one user to the next
    if falls.any():
        raise ValueError("`dataset`: expected timestamps in ascending order within each user, found one that falls")


def _items(ids: pl.Series, catalog: Catalog | None) -> tuple[np.ndarray, pl.Series]:
    """Catalog indices and the catalog."""
    if catalog is None:
        return dense_ranks(ids)
    if isinstance(catalog, Dataset):
        if "item_id" not in catalog.column_names:
            raise ValueError(f"`catalog`: expected the column 'item_id', found {catalog.column_names}")
        catalog = pl.from_arrow(catalog.with_format("arrow")[:]["item_id"])
    known = pl.Series(catalog)
    if not known.is_sorted() or known.is_duplicated().any() or known.null_count():
        raise ValueError("`catalog`: expected each raw item id once, in ascending order, found another order")
    if not ids.dtype.is_integer() or ids.min() < 0 or ids.max() >= len(known):
        found = f"{ids.dtype} values" if not ids.dtype.is_integer() else f"{ids.min()} to {ids.max()}"
        raise ValueError(
            f"`dataset`: expected in 'item_ids' rows of the catalog, 0 to {len(known) - 1}, found {found}"
        )
    return ids.to_numpy(), known


def _labels(values: pl.Series, rows: Dataset, schema: BehaviorSchema) -> np.ndarray:
    """`(num_interactions,)` `int8` labels of the schema, whatever order the names of the dataset have."""
    feature = rows.features["behaviors"].feature
    if isinstance(feature, ClassLabel):
        names, labels = feature.names, values.to_numpy()
        if labels.min() < 0 or labels.max() >= len(names):
            raise ValueError(f"`dataset`: expected labels of {names}, found {labels.min()} to {labels.max()}")
    elif values.dtype == pl.String:
        labels, distinct = dense_ranks(values)
        names = distinct.to_list()
    else:
        raise ValueError(f"`dataset`: expected ClassLabel or string behaviors, found {feature}")
    if unknown := [name for name in names if name not in schema.names]:
        raise ValueError(f"`behaviors`: expected the behaviors of the dataset, found none for {listed(unknown)}")
    return np.array([schema.index(name) for name in names], dtype=np.int8)[labels]


def _check_history(table: "SequenceTable", history: np.ndarray) -> None:
    """Make sure that what a published row holds out is what the protocols hold out of it."""
    last = table.lengths - 1
    if table.session_ids is not None:
        opens = np.diff(table.session_ids, prepend=-1) != 0
        opens[table.offsets[:-1]] = True
        starts = np.flatnonzero(opens)
        last_session = starts[np.searchsorted(starts, table.offsets[1:]) - 1] - table.offsets[:-1]
        if np.array_equal(history, last_session):
            return
    if not np.array_equal(history, last):
        raise ValueError(
            "`dataset`: expected rows of which the last interaction or session is held out, found another "
            f"'history_length'; pass the whole dataset or its split {WHOLE_SPLIT!r}"
        )


__all__ = ["SCHEMA_COLUMNS", "WHOLE_SPLIT", "schema_rows", "table_from_dataset"]
