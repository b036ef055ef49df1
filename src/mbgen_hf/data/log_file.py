"""One file of an interaction log as a lazy frame of strings, one column for each role."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import polars as pl
import pyarrow as pa
import pyarrow.parquet as pq
from polars.io.plugins import register_io_source

from mbgen_hf.data.decompress import check_regular_file, plain_file, sniff_format
from mbgen_hf.data.input_error import bad_input, listed, shown
from mbgen_hf.data.text_lines import TextFile


REQUIRED_ROLES = ("user_id", "item_id", "behavior", "timestamp")
ROLES = (*REQUIRED_ROLES, "session_id")
PARQUET_BATCH_ROWS = 1 << 18
BATCH_ROWS = 1 << 18
NO_ROWS = np.empty(0, dtype=np.int64)


@dataclass(frozen=True)
class LogFile:
    """An opened file of a log.

    Args:
        path: the file as the caller named it.
        kind: `text` or `parquet`.
        rows: a string column for each role, one row for each data row of the file, in file order.
        num_rows: how many rows that is.
        columns: role -> header name, or index in a file without header.
        first_line: line number of the first row in a text file, 1 in Parquet.
        malformed: ascending row numbers of the lines that have not one field for each column.
        in_seconds: the timestamps were dates in Parquet and are seconds by now.
        has_header: whether the text file starts with a header line.
        text: the text file, `None` in Parquet.
    """

    path: Path
    kind: str
    rows: pl.LazyFrame
    num_rows: int
    columns: Mapping[str, str | int]
    first_line: int = 1
    malformed: np.ndarray = field(default_factory=lambda: NO_ROWS)
    in_seconds: bool = False
    has_header: bool = False
    text: TextFile | None = None

    def place(self, row: int) -> str:
        """`line 3` or `row 3`, counted from 1, of a row counted from 0."""
        return f"{'row' if self.kind == 'parquet' else 'line'} {row + self.first_line}"

    def collect(self, query: pl.LazyFrame) -> pl.DataFrame:
        """Run a query on `rows`; raises `ValueError` where the file turns out to be unreadable."""
        with self._readable():
            return query.collect(engine="streaming")

    def batches(self, query: pl.LazyFrame) -> Iterator[pl.DataFrame]:
        """The result of a query on `rows` piece by piece, in order; raises what `collect` raises."""
        with self._readable():
            yield from query.collect_batches(chunk_size=BATCH_ROWS, maintain_order=True, engine="streaming")

    @contextmanager
    def _readable(self) -> Iterator[None]:
        try:
            yield
        except (pl.exceptions.PolarsError, pa.ArrowException, OSError) as error:
            found = f"one that cannot be decoded ({shown(str(error).splitlines()[0])})"
            raise bad_input(self.path, f"a whole {self.kind} file", found, remedy="fetch or write it again") from error

    def values(self, row: int) -> dict[str, str]:
        """The raw values of one row; only for error messages, it runs through the file."""
        return self.collect(self.rows.slice(row, 1)).row(0, named=True)

    def malformed_error(self, row: int) -> ValueError:
        """What is wrong with a line of `malformed`."""
        expected, found, remedy = self.text.explain(row)
        return bad_input(self.path, expected, found, at=self.place(row), remedy=remedy)


def check_columns(columns: Mapping[str, str | int] | None) -> dict[str, str | int]:
    """The role -> column mapping, checked; `None` stands for columns named like the roles.

    Raises:
        ValueError: a role is missing or unknown, a column is no name or index, or one serves two roles.
    """
    if columns is None:
        return {role: role for role in REQUIRED_ROLES}
    missing = [role for role in REQUIRED_ROLES if role not in columns]
    unknown = sorted(set(columns) - set(ROLES))
    if missing or unknown:
        expected = f"`columns`: expected the roles {list(REQUIRED_ROLES)} and optionally 'session_id'"
        raise ValueError(f"{expected}, found missing {missing}, unknown {unknown}")
    for role, column in columns.items():
        if isinstance(column, bool) or not isinstance(column, (str, int)) or (isinstance(column, int) and column < 0):
            raise ValueError(f"`columns`: expected a header name or 0-based index for {role!r}, found {shown(column)}")
    by_column: dict[str | int, str] = {}
    for role, column in columns.items():
        if column in by_column:
            both = f"{shown(column)} for both {by_column[column]!r} and {role!r}"
            raise ValueError(f"`columns`: expected a column of its own for each role, found {both}")
        by_column[column] = role
    return dict(columns)


def open_log_file(
    path: Path,
    folder: Path,
    columns: Mapping[str, str | int],
    has_header: bool | None,
    separator: str | None,
    zone: str | None,
) -> LogFile:
    """Open one file and check its structure.

    Args:
        path: CSV, TSV or Parquet file, plain or in gzip or zstd.
        folder: existing folder for decompressed copies, removed by the caller when the rows are collected.
        columns: role -> header name or 0-based index, as `check_columns` returns it.
        has_header: whether a text file starts with a header line; `None`: it does when a column is named.
        separator: the character between fields; `None`: the most frequent of `, tab ; |` in the first line.
        zone: IANA zone of dates without zone in Parquet.

    Raises:
        ValueError: a structural fault, which no row-wise rule can repair.
    """
    check_regular_file(path)
    plain = plain_file(path, folder, f"part{sum(1 for _ in folder.iterdir())}")
    if sniff_format(plain) == "parquet":
        return _open_parquet(path, plain, columns, zone)
    has_header = any(isinstance(column, str) for column in columns.values()) if has_header is None else has_header
    text = TextFile.open(path, plain, separator, has_header)
    positions = _positions(path, columns, text.header if has_header else None, text.num_fields)
    return LogFile(
        path=path,
        kind="text",
        rows=text.rows(positions),
        num_rows=text.num_rows,
        columns=_names(columns, positions, text.header if has_header else None),
        first_line=text.first_line,
        malformed=text.malformed,
        has_header=has_header,
        text=text,
    )


def _open_parquet(path: Path, plain: Path, columns: Mapping[str, str | int], zone: str | None) -> LogFile:
    try:
        with pq.ParquetFile(plain) as parquet:
            header = parquet.schema_arrow.names
            positions = _positions(path, columns, header, len(header))
            for role, position in positions.items():
                _check_type(path, role, parquet.schema_arrow.field(position))
        names = {role: header[position] for role, position in positions.items()}
        num_rows, in_seconds = 0, False
        for frame in _parquet_frames(plain, names):
            num_rows += frame.height
            in_seconds = frame.schema["timestamp"].is_temporal()
    except (pa.ArrowException, OSError, UnicodeDecodeError) as error:
        found = f"a truncated or corrupt one ({shown(str(error).splitlines()[0])})"
        raise bad_input(path, "a whole Parquet file", found, remedy="fetch or write it again") from error
    if not num_rows:
        raise bad_input(path, "at least one row", "none")
    rows = _parquet_rows(plain, names, zone)
    return LogFile(path, "parquet", rows, num_rows, _names(columns, positions, header), in_seconds=in_seconds)


def _parquet_frames(plain: Path, names: Mapping[str, str]) -> Iterator[pl.DataFrame]:
    """The columns under the names of their roles, batch by batch.

    Read and checked by pyarrow: on damaged pages polars aborts instead of raising.
    """
    with pq.ParquetFile(plain) as parquet:
        for batch in parquet.iter_batches(PARQUET_BATCH_ROWS, columns=list(names.values())):
            batch.validate(full=True)
            yield pl.from_arrow(pa.table({role: batch.column(name) for role, name in names.items()}))


def _parquet_rows(plain: Path, names: Mapping[str, str], zone: str | None) -> pl.LazyFrame:
    """The columns as strings; the file is read again, and never held whole, for each query."""

    def batches(
        columns: list[str] | None, predicate: pl.Expr | None, num_rows: int | None, batch_size: int | None
    ) -> Iterator[pl.DataFrame]:
        for frame in _parquet_frames(plain, names):
            rows = frame.select(_as_text(role, dtype, zone) for role, dtype in frame.schema.items())
            if num_rows is not None:
                rows = rows.head(num_rows)
                num_rows -= rows.height
            rows = rows if predicate is None else rows.filter(predicate)
            yield rows if columns is None else rows.select(columns)
            if num_rows == 0:
                return

    return register_io_source(batches, schema=dict.fromkeys(names, pl.String))


def _check_type(path: Path, role: str, column: pa.Field) -> None:
    kind = column.type.value_type if pa.types.is_dictionary(column.type) else column.type
    texts = pa.types.is_string(kind) or pa.types.is_large_string(kind) or pa.types.is_string_view(kind)
    numbers = pa.types.is_integer(kind) or pa.types.is_floating(kind) or pa.types.is_boolean(kind)
    dates = role == "timestamp" and (pa.types.is_timestamp(kind) or pa.types.is_date(kind))
    if not (texts or numbers or dates):
        expected = f"numbers{', dates' if role == 'timestamp' else ''} or strings for {role!r}"
        raise bad_input(path, expected, f"{column.type} values", column=column.name)


def _as_text(role: str, dtype: pl.DataType, zone: str | None) -> pl.Expr:
    """A Parquet column as strings, `""` for null; dates become epoch seconds."""
    column = pl.col(role)
    if dtype.is_temporal():
        column = column.cast(pl.Datetime("us")) if dtype == pl.Date else column
        if zone is not None and (dtype == pl.Date or dtype.time_zone is None):
            column = column.dt.replace_time_zone(zone, ambiguous="earliest", non_existent="null")
        column = column.dt.epoch("s")
    return column.cast(pl.String).fill_null("")


def _positions(
    path: Path, columns: Mapping[str, str | int], header: list[str] | None, num_fields: int
) -> dict[str, int]:
    """Role -> column position in this file."""
    if header is not None:
        _check_header(path, columns, header)
    elif named := [column for column in columns.values() if isinstance(column, str)]:
        remedy = "a file without header needs 0-based indices"
        raise bad_input(path, f"a header with {listed(named)}", "no header", remedy=remedy)
    positions: dict[str, int] = {}
    for role, column in columns.items():
        if isinstance(column, int) and column >= num_fields:
            raise bad_input(path, f"column indices below {num_fields}", f"{column} for {role!r}", column=column)
        position = column if isinstance(column, int) else header.index(column)
        if position in positions.values():
            other = next(known for known, taken in positions.items() if taken == position)
            raise bad_input(
                path, "a column of its own for each role", f"one for {other!r} and {role!r}", column=column
            )
        positions[role] = position
    return positions


def _check_header(path: Path, columns: Mapping[str, str | int], header: list[str]) -> None:
    named = any(isinstance(column, str) for column in columns.values())
    repeated = sorted({name for name in header if name and header.count(name) > 1})
    if repeated and named:
        raise bad_input(
            path,
            "each header name once",
            f"{listed(repeated)} repeated in {listed(header)}",
            at="line 1",
            column=repeated[0],
        )
    missing = [column for column in columns.values() if isinstance(column, str) and column not in header]
    if missing:
        remedy = "map the roles with `columns`, by 0-based index if the file has no header"
        raise bad_input(path, f"columns {listed(missing)}", listed(header), at="line 1", remedy=remedy)


def _names(
    columns: Mapping[str, str | int], positions: Mapping[str, int], header: list[str] | None
) -> dict[str, str | int]:
    """Role -> what an error message calls its column."""
    return {role: header[positions[role]] if header is not None else positions[role] for role in columns}


__all__ = ["LogFile", "REQUIRED_ROLES", "ROLES", "check_columns", "open_log_file"]
