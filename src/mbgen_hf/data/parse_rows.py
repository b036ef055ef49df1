"""Raw strings of a log to typed columns, with a reason beside every row that cannot be typed.

Ids and epoch times are read the fast way first, as integers. Where that fails for a row, its reason says `SUSPECT`
and the caller reads again with the next kind of that column, so that the exact rules cost nothing on clean logs.
"""

from collections.abc import Iterable, Mapping

import polars as pl

from mbgen_hf.data.behavior_values import FIRST_DROPPED, UNKNOWN, BehaviorValues
from mbgen_hf.data.log_file import ROLES, LogFile
from mbgen_hf.data.timestamps import TimestampFormat


# What kind of values a column holds: integers, integers some of them written as floats, anything.
KINDS = ("integer", "float", "string")
ID_ROLES = ("user_id", "item_id", "session_id")
NO_ID = ("", "NaN", "nan", "NULL", "null", "None", "<NA>", "\\N")

GOOD, DROPPED, MALFORMED, HEADER, BEHAVIOR, TIMESTAMP = range(6)
EMPTY = {role: 10 + i for i, role in enumerate(ID_ROLES)}
SUSPECT = {role: 20 + i for i, role in enumerate(ROLES)}
REASONS = {
    MALFORMED: "malformed line",
    HEADER: "repeated header",
    BEHAVIOR: "unknown behavior",
    TIMESTAMP: "bad timestamp",
} | {code: f"empty {role}" for role, code in EMPTY.items()}


def guess_kinds(sample: pl.DataFrame) -> dict[str, str]:
    """The narrowest kind that holds any of the first values: too narrow costs a pass, too wide would stay so."""
    kinds = {}
    for role in sample.columns:
        if role != "behavior":
            forms = {"integer": r"^-?\d+$", "float": r"^-?\d+(\.0)?$"}
            fits = [kind for kind, form in forms.items() if sample[role].str.contains(form).any()]
            kinds[role] = fits[0] if fits else "string"
    if kinds.get("timestamp") == "string":
        kinds["timestamp"] = "float"  # the widest kind of a timestamp: what else it may be says its format
    return kinds


def widen(kinds: dict[str, str], roles: Iterable[str]) -> dict[str, str]:
    """The kinds with those of `roles` one step wider."""
    return kinds | {role: KINDS[KINDS.index(kinds[role]) + 1] for role in roles}


def parse_rows(
    file: LogFile, kinds: Mapping[str, str], values: BehaviorValues, times: TimestampFormat
) -> pl.DataFrame:
    """Typed columns of every row of a file, and `reason`: 0 for a good row.

    `behavior` holds the codes of `BehaviorValues.codes`; columns of rows with another reason than 0 hold anything.
    """
    frame = mark_malformed(file, file.collect(typed_rows(file, kinds, values, times)))
    check_height(file, frame.height)
    return frame


def typed_rows(
    file: LogFile, kinds: Mapping[str, str], values: BehaviorValues, times: TimestampFormat
) -> pl.LazyFrame:
    """What `parse_rows` returns, not yet run and with any reason in malformed rows: see `mark_malformed`."""
    ids = [role for role in ID_ROLES if role in file.columns]
    times = TimestampFormat("s") if file.in_seconds else times
    integer_time = times.is_epoch and kinds["timestamp"] == "integer"
    typed = file.rows.with_columns(
        *(_id(pl.col(role), kinds[role]).alias(f"typed {role}") for role in ids),
        values.codes(pl.col("behavior")).alias("typed behavior"),
        times.seconds(pl.col("timestamp"), as_float=not integer_time).alias("typed timestamp"),
    )
    checks = _checks(file, ids, kinds, SUSPECT["timestamp"] if integer_time else TIMESTAMP)
    reason = pl.lit(GOOD, dtype=pl.UInt8)
    for failed, code in reversed(checks):
        reason = pl.when(failed).then(pl.lit(code, dtype=pl.UInt8)).otherwise(reason)
    roles = [role for role in ROLES if role in file.columns]
    return typed.select(*(pl.col(f"typed {role}").alias(role) for role in roles), reason.alias("reason"))


def mark_malformed(file: LogFile, frame: pl.DataFrame, first_row: int = 0) -> pl.DataFrame:
    """The frame, whose first row is the given one of the file, with the reason of malformed rows put right."""
    low, high = file.malformed.searchsorted([first_row, first_row + frame.height])
    if low == high:
        return frame
    return frame.with_columns(frame["reason"].scatter(file.malformed[low:high] - first_row, MALFORMED))


def check_height(file: LogFile, height: int) -> None:
    """Make sure that polars cut the file into as many rows as were counted."""
    if height != file.num_rows:
        raise RuntimeError(f"{file.path}: {file.num_rows} rows in the file, {height} parsed")


def suspects(frame: pl.DataFrame) -> list[str]:
    """Roles whose columns need a wider kind, by the `reason` of parsed rows or of their tally."""
    codes = set(frame["reason"].unique().to_list())
    return [role for role, code in SUSPECT.items() if code in codes]


def _id(value: pl.Expr, kind: str) -> pl.Expr:
    """An id as `Int64`, null where it is none, or as it is: `007` and `+7` are not 7."""
    if kind == "string":
        return value
    text = value.str.strip_suffix(".0") if kind == "float" else value
    zero_first = value.str.starts_with("0") & ~value.is_in(("0", "0.0"))
    other_spelling = zero_first | value.str.starts_with("+") | value.str.starts_with("-0")
    return pl.when(~other_spelling).then(text.cast(pl.Int64, strict=False))


def _checks(file: LogFile, ids: list[str], kinds: Mapping[str, str], timestamp_code: int) -> list[tuple[pl.Expr, int]]:
    """What can be wrong with a row; the first match counts. Suspect ids come last: no broken row widens a column."""
    checks = []
    if file.has_header:
        again = [pl.col(role) == str(file.columns[role]) for role in ("timestamp", "behavior")]
        checks.append((again[0] & again[1], HEADER))
    checks.append((pl.col("typed behavior") <= FIRST_DROPPED, DROPPED))
    checks.append((pl.col("typed behavior") == UNKNOWN, BEHAVIOR))
    for role in ids:
        if kinds[role] != "integer":
            checks.append((pl.col(role).str.strip_chars().is_in(NO_ID), EMPTY[role]))
    checks.append((pl.col("typed timestamp").is_null(), timestamp_code))
    checks += [(pl.col(f"typed {role}").is_null(), SUSPECT[role]) for role in ids if kinds[role] != "string"]
    return checks


__all__ = ["check_height", "guess_kinds", "mark_malformed", "parse_rows", "suspects", "typed_rows", "widen"]
