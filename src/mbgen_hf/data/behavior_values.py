"""Raw behavior values of a log and the behaviors they stand for."""

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import polars as pl

from mbgen_hf.data.behavior_schema import BehaviorSchema
from mbgen_hf.data.input_error import listed


UNKNOWN = -1
FIRST_DROPPED = -2
MAX_NAMES = 100
MAX_FOUND = 20


def canonical(value: Any) -> str:
    """A raw value as text, `1.0` as `1`: a numeric column comes either way, depending on who wrote the file."""
    return re.sub(r"^(-?\d+)\.0$", r"\1", str(value))


@dataclass(frozen=True)
class BehaviorValues:
    """Which behavior each raw value stands for, and which values are dropped.

    Args:
        schema: the behaviors.
        labels: canonical raw value -> class label of `schema`.
        dropped: canonical raw values whose rows are dropped.
        source: where the names and their order come from, for the report.
    """

    schema: BehaviorSchema
    labels: Mapping[str, int]
    dropped: tuple[str, ...]
    source: str

    def codes(self, value: pl.Expr) -> pl.Expr:
        """Class label, `FIRST_DROPPED - i` for dropped value i, or `UNKNOWN`, as `Int8`."""
        codes = dict(self.labels) | {raw: FIRST_DROPPED - i for i, raw in enumerate(self.dropped)}
        result = pl.lit(UNKNOWN, dtype=pl.Int8)
        for raw, code in reversed(codes.items()):
            same = value == raw
            if re.fullmatch(r"-?\d+", raw):
                same |= value == f"{raw}.0"
            result = pl.when(same).then(pl.lit(code, dtype=pl.Int8)).otherwise(result)
        return result

    @property
    def expected(self) -> str:
        """The raw values that may occur, for error messages."""
        return f"one of {listed([*self.labels, *self.dropped])}"


def behavior_values(
    behaviors: Mapping[Any, str] | Sequence[str] | None,
    drop_behaviors: Iterable[Any],
    target: str | None,
    levels: Mapping[str, int] | None,
    found: Mapping[str, int] | None = None,
) -> BehaviorValues:
    """Settle names, levels and target.

    The order of the names is, in this order of preference, that of `behaviors`; that of `levels`, weakest first; the
    sorted raw values with `target` last, where `target` then has level 1 and every other behavior level 0.

    Args:
        behaviors: raw value -> name in order of depth, or the raw values themselves in that order.
        drop_behaviors: raw values whose rows are dropped.
        target: name of the target behavior; the last name without it.
        levels: name -> level.
        found: raw value -> rows, needed where neither `behaviors` nor `levels` is given.

    Raises:
        ValueError: the arguments contradict each other or do not settle the order of depth.
    """
    dropped = tuple(dict.fromkeys(canonical(value) for value in drop_behaviors))
    if isinstance(behaviors, str):
        raise ValueError(f"`behaviors`: expected a mapping or a list of raw values, found {behaviors!r}")
    source = "behaviors"
    if behaviors is None:
        behaviors, levels, source = _without_mapping(dropped, target, levels, found or {})
    if not isinstance(behaviors, Mapping):
        behaviors = {value: canonical(value) for value in behaviors}
    names = list(dict.fromkeys(behaviors.values()))
    if not 0 < len(names) <= MAX_NAMES or len(behaviors) + len(dropped) > MAX_NAMES:
        raise ValueError(f"`behaviors`: expected 1 to {MAX_NAMES} values, found {len(behaviors)}")
    labels: dict[str, int] = {}
    for raw, name in behaviors.items():
        if canonical(raw) in labels:
            raise ValueError(f"`behaviors`: expected each raw value once, found {canonical(raw)!r} twice")
        labels[canonical(raw)] = names.index(name)
    if both := [raw for raw in dropped if raw in labels]:
        raise ValueError(f"`drop_behaviors`: expected no value that `behaviors` names, found {listed(both)}")
    return BehaviorValues(BehaviorSchema.from_names(names, target, levels), labels, dropped, source)


def _without_mapping(
    dropped: tuple[str, ...], target: str | None, levels: Mapping[str, int] | None, found: Mapping[str, int]
) -> tuple[list[str], Mapping[str, int] | None, str]:
    """Names, levels and their source when the raw values are the names."""
    if levels is not None:
        return sorted(levels, key=lambda name: levels[name]), levels, "levels"
    names = sorted(value for value in found if value not in dropped)
    if len(names) > MAX_FOUND:
        raise ValueError(f"`behaviors`: expected at most {MAX_FOUND} behaviors to be found, found {listed(names)}")
    if len(names) > 1 and target is None:
        expected = "expected raw values in order of depth, or `levels`, or at least `target`"
        raise ValueError(f"`behaviors`: {expected}, found none for the values {listed(names)}")
    if target is not None and target not in names:
        raise ValueError(f"`target`: expected one of the values {listed(names)}, found {target!r}")
    names = sorted(names, key=lambda name: name == target)
    return names, {name: int(name == target) for name in names}, "sorted values, target last"


__all__ = ["BehaviorValues", "behavior_values", "canonical"]
