"""GAMER's files: interactions, behaviors, sessions and times as JSON objects from user to list."""

import json
import re
from collections import Counter
from itertools import chain
from pathlib import Path
from typing import Any

import polars as pl

from mbgen_hf.data.behavior_schema import BehaviorSchema
from mbgen_hf.data.input_error import bad_input, listed, shown
from mbgen_hf.data.read_log import FileReport, InteractionLog, ReadReport, iso_time
from mbgen_hf.data.timestamps import TimestampFormat


TIMES = TimestampFormat("%Y-%m-%d %H:%M:%S", timezone="Asia/Shanghai")
INTEGER = re.compile(r"0|-?[1-9][0-9]{0,17}")


def read_session_json(items: Path, behaviors: Path, sessions: Path, times: Path, levels: Path) -> InteractionLog:
    """Read one log in GAMER's form.

    Args:
        items: `X.SMB.inter.json`, user -> item ids in order of time.
        behaviors: `X.SMB.behavior.json`, user -> behavior names.
        sessions: `X.SMB.session.json`, user -> session ids.
        times: `X.SMB.time.json`, user -> local times such as `2017-11-24 19:24:10`.
        levels: `X.behavior_level.json`, behavior name -> level; the one at the highest level is the target.

    Raises:
        ValueError: a file is damaged, the files disagree on users or lengths, or a value is bad; it names file and
            user.
    """
    schema = _schema(levels)
    by_user = _lists(items)
    if not by_user:
        raise bad_input(items, "at least one user", "none")
    lengths = {user: len(values) for user, values in by_user.items()}
    columns = {"item_id": _ids(items, by_user)}
    for name, path in (("behavior", behaviors), ("session_id", sessions), ("timestamp", times)):
        values = _lists(path)
        _check_lengths(path, items, values, lengths)
        flat = [value for user in lengths for value in values[user]]
        columns[name] = {"behavior": _labels, "session_id": _whole_numbers, "timestamp": _seconds}[name](
            path, flat, lengths, schema
        )
    users = list(lengths)
    user_ids = pl.Series(users).cast(pl.Int64) if all(map(INTEGER.fullmatch, users)) else pl.Series(users)
    repeated = user_ids.to_frame("user").select(pl.col("user").repeat_by(pl.Series(list(lengths.values()))).explode())
    frame = pl.DataFrame({"user_id": repeated.to_series(), **columns})
    names = ("user_id", "item_id", "behavior", "timestamp", "session_id")
    frame = frame.select(names)
    return InteractionLog(frame, schema, _report(frame, schema, (items, behaviors, sessions, times)))


def _load(path: Path) -> Any:
    try:
        return json.loads(path.read_bytes())
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        start = path.read_bytes()[:40]
        remedy = "fetch the file itself with `git lfs pull`" if start.startswith(b"version https://git-lfs") else None
        raise bad_input(path, "JSON", f"something else ({error})", remedy=remedy) from error


def _lists(path: Path) -> dict[str, list]:
    values = _load(path)
    if not isinstance(values, dict) or not all(isinstance(value, list) for value in values.values()):
        raise bad_input(path, "an object from user to list", f"{type(values).__name__} of something else")
    return values


def _schema(path: Path) -> BehaviorSchema:
    levels = _load(path)
    if not isinstance(levels, dict) or not levels or not all(type(level) is int for level in levels.values()):
        raise bad_input(path, "an object from behavior to level", shown(levels))
    names = sorted(levels, key=levels.__getitem__)
    highest = [name for name in names if levels[name] == levels[names[-1]]]
    if len(highest) > 1:
        raise bad_input(path, "one behavior at the highest level, the target", listed(highest))
    return BehaviorSchema.from_names(names, names[-1], levels)


def _check_lengths(path: Path, items: Path, values: dict[str, list], lengths: dict[str, int]) -> None:
    if values.keys() != lengths.keys():
        user = next(iter(values.keys() ^ lengths.keys()))
        raise bad_input(path, f"the users of {items.name}", f"user {shown(user)} in one of the two only")
    for user, length in lengths.items():
        if len(values[user]) != length:
            raise bad_input(path, f"{length} values as in {items.name}", f"{len(values[user])}", at=f"user {user}")


def _ids(path: Path, by_user: dict[str, list]) -> pl.Series:
    flat = list(chain.from_iterable(by_user.values()))
    kinds = set(map(type, flat))
    if kinds == {int}:
        return pl.Series(flat, dtype=pl.Int64)
    if kinds == {str}:
        return pl.Series(flat)
    raise bad_input(path, "item ids, all integers or all strings", f"{sorted(kind.__name__ for kind in kinds)}")


def _labels(path: Path, flat: list, lengths: dict[str, int], schema: BehaviorSchema) -> pl.Series:
    labels = {name: label for label, name in enumerate(schema.names)}
    values = [labels.get(value) if isinstance(value, str) else None for value in flat]
    _check_values(path, flat, values, lengths, f"one of {list(labels)}")
    return pl.Series(values, dtype=pl.Int8)


def _whole_numbers(path: Path, flat: list, lengths: dict[str, int], schema: BehaviorSchema) -> pl.Series:
    values = [value if type(value) is int else None for value in flat]
    _check_values(path, flat, values, lengths, "a whole number")
    return pl.Series(values, dtype=pl.Int64)


def _seconds(path: Path, flat: list, lengths: dict[str, int], schema: BehaviorSchema) -> pl.Series:
    texts = pl.Series("time", [value if isinstance(value, str) else None for value in flat], dtype=pl.String)
    seconds = texts.to_frame().select(TIMES.seconds(pl.col("time"))).to_series()
    if seconds.null_count():
        _check_values(path, flat, seconds.to_list(), lengths, TIMES.expected)
    return seconds


def _check_values(path: Path, flat: list, values: list, lengths: dict[str, int], expected: str) -> None:
    """Raise for the first value that was read as nothing."""
    if None not in values:
        return
    place = values.index(None)
    before = 0
    for user, length in lengths.items():
        if place < before + length:
            raise bad_input(path, expected, shown(flat[place]), at=f"user {user}, place {place - before + 1}")
        before += length


def _report(frame: pl.DataFrame, schema: BehaviorSchema, paths: tuple[Path, ...]) -> ReadReport:
    counts = Counter(dict(frame["behavior"].value_counts().rows()))
    kinds = {name: "integer" if frame[name].dtype == pl.Int64 else "string" for name in ("user_id", "item_id")}
    return ReadReport(
        rows=frame.height,
        kept=frame.height,
        dropped={},
        skipped={},
        users=frame["user_id"].n_unique(),
        items=frame["item_id"].n_unique(),
        behaviors={name: counts[label] for label, name in enumerate(schema.names)},
        behavior_source="behavior_level.json",
        id_types=kinds | {"session_id": "integer"},
        first_time=iso_time(frame["timestamp"].min()),
        last_time=iso_time(frame["timestamp"].max()),
        assumed_year=None,
        files=[FileReport(str(path), "json", frame.height, frame.height) for path in paths],
    )


__all__ = ["read_session_json"]
