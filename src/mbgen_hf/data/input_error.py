"""One-line errors about bad input files: where, what was expected, what was found, what to do."""

from pathlib import Path
from typing import Any


MAX_SHOWN = 80


def shown(value: Any) -> str:
    """A value as it appears in an error: quoted, on one line, cut to a readable length."""
    text = repr(value)
    return text if len(text) <= MAX_SHOWN else f"{text[: MAX_SHOWN - 4]}...{text[-1]}"


def listed(values: Any, limit: int = 12) -> str:
    """Several values as they appear in an error: the first few, then how many more."""
    values = [shown(value) for value in values]
    more = f", and {len(values) - limit} more" if len(values) > limit else ""
    return f"[{', '.join(values[:limit])}{more}]"


def bad_input(
    file: str | Path,
    expected: str,
    found: str,
    *,
    at: str | None = None,
    column: str | int | None = None,
    remedy: str | None = None,
) -> ValueError:
    """Build the `ValueError` for a fault in an input file; the caller raises it.

    Args:
        file: the file as the caller named it.
        expected: what the place should hold.
        found: what it holds.
        at: `line 3` or `row 3`, counted from 1.
        column: header name or 0-based index of the column.
        remedy: what the caller can do about it, where it is short.
    """
    place = [" ".join(str(file).splitlines())]
    place += [at] if at is not None else []
    place += [f"column {shown(column)}"] if column is not None else []
    tail = f"; {remedy}" if remedy else ""
    return ValueError(f"{', '.join(place)}: expected {expected}, found {found}{tail}")


__all__ = ["bad_input", "listed", "shown"]
