"""The `mbgen` command: thin wrappers around functions of the library.

Heavy imports stay inside the sub-commands, so that `mbgen --help` answers at once.
"""

import argparse
import sys
from collections.abc import Sequence
from typing import NoReturn

from mbgen_hf.version import __version__


class UsageError(ValueError):
    """A command line that argparse rejects."""


class _Parser(argparse.ArgumentParser):
    """Reports a bad command line like any other bad input: in one line, without the usage text."""

    def error(self, message: str) -> NoReturn:
        raise UsageError(f"{message}; see `{self.prog} --help`")


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line; returns the exit status: 0, 2 for bad input, 130 when interrupted."""
    debug = False
    try:
        args = _build_parser().parse_args(argv)
        debug = args.debug
        return args.run(args)
    except SystemExit as stop:  # --help and --version
        return int(stop.code or 0)
    except KeyboardInterrupt:
        print("mbgen: interrupted", file=sys.stderr)
        return 130
    except (ValueError, OSError) as error:
        if debug:
            raise
        print(f"mbgen: error: {' '.join(str(error).splitlines()) or type(error).__name__}", file=sys.stderr)
        return 2


def _build_parser() -> argparse.ArgumentParser:
    parser = _Parser(prog="mbgen", description="Generative multi-behavior recommendation.", allow_abbrev=False)
    parser.add_argument("--version", action="version", version=f"mbgen-hf {__version__}")
    parser.add_argument("--debug", action="store_true", help="show the traceback of an error")
    subparsers = parser.add_subparsers(title="commands", metavar="COMMAND", required=True)
    _add_prepare(subparsers)
    return parser


def _add_prepare(subparsers: argparse._SubParsersAction) -> None:
    parser = subparsers.add_parser(
        "prepare", help="raw log files to a prepared folder", description="Read, filter and group raw log files.",
        allow_abbrev=False,
    )  # fmt: skip
    parser.set_defaults(run=_run_prepare)
    add = parser.add_argument
    add("files", nargs="+", metavar="FILE", help="CSV, TSV or Parquet; plain, gzip or zstd; in order")
    add("--output", required=True, metavar="FOLDER", help="folder to write")
    add("--overwrite", action="store_true", help="replace the result of an earlier run")
    add("--columns", type=_columns, metavar="ROLE=COLUMN,...",
        help="header name or 0-based index of user_id, item_id, behavior, timestamp, maybe session_id")  # fmt: skip
    add("--behaviors", type=_behaviors, metavar="RAW=NAME,...",
        help="raw behavior values and their names in order of depth; RAW,... where values are names")  # fmt: skip
    add("--drop-behaviors", type=_list, default=[], metavar="RAW,...", help="raw values whose rows are left out")
    add("--target", metavar="NAME", help="target behavior (default: the last of --behaviors)")
    add("--levels", type=_levels, metavar="NAME=LEVEL,...", help="level of each behavior (default: 0, 1, 2, ...)")
    add("--time-format", default="s", metavar="FORMAT", help="s, ms or a strptime format (default: s)")
    add("--year", type=int, help="year of a time format without one (default: 2000)")
    add("--timezone", metavar="ZONE", help="IANA zone of local times (default: UTC)")
    add("--separator", type=_separator, metavar="CHARACTER", help="between fields; 'tab' (default: found out)")
    add("--header", action=argparse.BooleanOptionalAction, default=None,
        help="whether text files start with a header line (default: they do if a column is named)")  # fmt: skip
    add("--on-bad-rows", choices=("raise", "skip"), default="raise", help="skip counts what it leaves out")
    add("--min-item-count", type=int, default=5, metavar="N", help="occurrences an item needs (default: 5)")
    add("--min-user-interactions", type=int, default=4, metavar="N", help="interactions a user needs (default: 4)")
    add("--item-count-over", choices=("train", "all"), default="train",
        help="count items in all but each user's last two interactions, or in all (default: train)")  # fmt: skip
    add("--iterative", action="store_true", help="filter until nothing changes")


def _run_prepare(args: argparse.Namespace) -> int:
    from mbgen_hf.data.prepare import format_report, prepare

    _, report = prepare(
        args.files,
        args.output,
        columns=args.columns,
        behaviors=args.behaviors,
        drop_behaviors=args.drop_behaviors,
        target=args.target,
        levels=args.levels,
        timestamp_format=args.time_format,
        year=args.year,
        timezone=args.timezone,
        has_header=args.header,
        separator=args.separator,
        on_bad_rows=args.on_bad_rows,
        min_item_count=args.min_item_count,
        min_user_interactions=args.min_user_interactions,
        item_count_over=args.item_count_over,
        iterative=args.iterative,
        overwrite=args.overwrite,
    )
    print(format_report(report))
    return 0


def _list(text: str) -> list[str]:
    values = text.split(",")
    if not all(values):
        raise argparse.ArgumentTypeError(f"expected values separated by commas, found {text!r}")
    return values


def _pairs(text: str) -> dict[str, str]:
    pairs: dict[str, str] = {}
    for part in _list(text):
        key, equals, value = part.rpartition("=")
        if not (key and equals and value):
            raise argparse.ArgumentTypeError(f"expected KEY=VALUE pairs separated by commas, found {part!r}")
        if key in pairs:
            raise argparse.ArgumentTypeError(f"expected each key once, found {key!r} twice")
        pairs[key] = value
    return pairs


def _columns(text: str) -> dict[str, str | int]:
    return {role: int(column) if column.isdecimal() else column for role, column in _pairs(text).items()}


def _behaviors(text: str) -> dict[str, str] | list[str]:
    return _pairs(text) if "=" in text else _list(text)


def _levels(text: str) -> dict[str, int]:
    pairs = _pairs(text)
    if wrong := [level for level in pairs.values() if not level.isdecimal()]:
        raise argparse.ArgumentTypeError(f"expected non-negative integers as levels, found {wrong[0]!r}")
    return {name: int(level) for name, level in pairs.items()}


def _separator(text: str) -> str:
    return {"tab": "\t", "\\t": "\t"}.get(text, text)


if __name__ == "__main__":
    sys.exit(main())


__all__ = ["main"]
