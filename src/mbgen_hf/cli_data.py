"""The commands about data, `mbgen prepare`, `statistics` and `push-dataset`: thin wrappers as in `mbgen_hf.cli`."""

import argparse
from pathlib import Path
from typing import Any


DATA_HELP = "folder of `mbgen prepare` or `mbgen push-dataset`, or owner/name on the Hub"
READING = {
    "columns": "columns",
    "behaviors": "behaviors",
    "drop_behaviors": "drop_behaviors",
    "target": "target",
    "levels": "levels",
    "time_format": "timestamp_format",
    "year": "year",
    "timezone": "timezone",
    "separator": "separator",
    "header": "has_header",
}
RULES = (
    "window",
    "sample_users",
    "sample_seed",
    "min_item_count",
    "min_user_interactions",
    "item_count_over",
    "iterative",
    "sessions",
    "min_sessions",
)


def add_prepare(subparsers: argparse._SubParsersAction) -> None:
    # Options that are not given stay absent: for a public log its preset holds, else the default of the function.
    parser = subparsers.add_parser(
        "prepare", help="raw log files to a prepared folder", allow_abbrev=False,
        argument_default=argparse.SUPPRESS,
        description="Read, filter and group raw log files, or build a public log: prepare retail --data-dir RAW.",
    )  # fmt: skip
    parser.set_defaults(run=_run_prepare)
    add = parser.add_argument
    add("files", nargs="+", metavar="FILE",
        help="CSV, TSV or Parquet; plain, gzip or zstd; in order. Or a public log: retail, ijcai, tmall, jdata, "
        "shortvideoad")  # fmt: skip
    add("--output", required=True, metavar="FOLDER", help="folder to write")
    add("--overwrite", action="store_true", help="replace the result of an earlier run")
    add("--on-bad-rows", choices=("raise", "skip"), help="skip counts what it leaves out (default: raise)")
    _add_public_options(parser.add_argument_group("a public log").add_argument)
    _add_reading_options(parser.add_argument_group("how the files are read").add_argument)
    _add_rules(parser.add_argument_group("what is kept (default of a public log: its preset)").add_argument)


def _add_public_options(add) -> None:
    add("--data-dir", metavar="FOLDER", help="folder with its raw files")
    add("--config", choices=("sequential", "session"),
        help="the preset: MBGen's filters or GAMER's sessions (default: sequential)")  # fmt: skip
    add("--form", metavar="NAME", help="raw form, where the folder holds more than one")


def _add_reading_options(add) -> None:
    add("--columns", type=_columns, metavar="ROLE=COLUMN,...",
        help="header name or 0-based index of user_id, item_id, behavior, timestamp, maybe session_id")  # fmt: skip
    add("--behaviors", type=_behaviors, metavar="RAW=NAME,...",
        help="raw behavior values and their names in order of depth; RAW,... where values are names")  # fmt: skip
    add("--drop-behaviors", type=comma_list, metavar="RAW,...", help="raw values whose rows are left out")
    add("--target", metavar="NAME", help="target behavior (default: the last of --behaviors)")
    add("--levels", type=_levels, metavar="NAME=LEVEL,...", help="level of each behavior (default: 0, 1, 2, ...)")
    add("--time-format", metavar="FORMAT", help="s, ms or a strptime format (default: s)")
    add("--year", type=int, help="year of a time format without one (default: 2000)")
    add("--timezone", metavar="ZONE", help="IANA zone of local times (default: UTC)")
    add("--separator", type=_separator, metavar="CHARACTER", help="between fields; 'tab' (default: found out)")
    add("--header", action=argparse.BooleanOptionalAction,
        help="whether text files start with a header line (default: they do if a column is named)")  # fmt: skip


def _add_rules(add) -> None:
    add("--window", type=_or_none, metavar="DAYS[@FIRST][:ZONE]",
        help="keep so many days, by default the last; none keeps all (7@2014-09-01:Asia/Shanghai)")  # fmt: skip
    add("--sample-users", type=_fraction, metavar="SHARE", help="keep a share of the users (0.25); none keeps all")
    add("--sample-seed", type=int, metavar="N", help="of that sample (default: 0)")
    add("--min-item-count", type=int, metavar="N", help="occurrences an item needs (default: 5)")
    add("--min-user-interactions", type=int, metavar="N", help="interactions a user needs (default: 4)")
    add("--item-count-over", choices=("train", "all"),
        help="count items in all but each user's last two interactions, with --sessions all but the last two "
        "sessions, or in all (default: train)")  # fmt: skip
    add("--iterative", action="store_true", help="filter until nothing changes")
    add("--sessions", type=_or_none, metavar="RULE",
        help="cut sessions, after filtering: gap:SECONDS, day:ZONE or given (by the session_id column)")  # fmt: skip
    add("--min-sessions", type=int, metavar="N", help="sessions a user needs with --sessions (default: 3)")


def _run_prepare(args: argparse.Namespace) -> int:
    from mbgen_hf.data.prepare import format_report, prepare
    from mbgen_hf.public_datasets.build import build_dataset
    from mbgen_hf.public_datasets.catalog import PUBLIC_DATASETS

    given = vars(args)
    reading = {name: given[flag] for flag, name in READING.items() if flag in given}
    options = {name: given[name] for name in (*RULES, "on_bad_rows", "overwrite") if name in given}
    public = {name: given[name] for name in ("config", "form") if name in given}
    first = args.files[0]
    if "data_dir" in given:
        if len(args.files) > 1 or first not in PUBLIC_DATASETS:
            found = ", ".join(args.files)
            raise ValueError(f"`--data-dir`: expected one public log of {list(PUBLIC_DATASETS)}, found {found}")
        if reading:
            raise ValueError(f"`--data-dir`: expected no option on how files are read, found {sorted(reading)}")
        _, report = build_dataset(first, args.data_dir, args.output, **public, **options)
    elif first in PUBLIC_DATASETS and not Path(first).exists():
        raise ValueError(f"`--data-dir`: expected the folder with the raw files of {first}, found none")
    elif public:
        raise ValueError(f"`--data-dir`: expected a public log with {sorted(public)}, found files")
    else:
        _, report = prepare(args.files, args.output, **reading, **options)
    print(format_report(report))
    model = " --model gamer --set data.protocol=session_wise" if report.get("sessions") else ""
    print(f"prepared folder: {args.output}\nnext: mbgen train {args.output}{model} --output FOLDER")
    return 0


def add_statistics(subparsers: argparse._SubParsersAction) -> None:
    parser = subparsers.add_parser("statistics", help="size of a prepared log beside what the papers print",
        description="Users, items, interactions and sessions; for a public log the papers' row beside ours. With "
        "--recency also how far the latest items of the histories give the targets away.",
        allow_abbrev=False)  # fmt: skip
    parser.set_defaults(run=_run_statistics)
    add = parser.add_argument
    add("data", nargs="+", metavar="PREPARED", help="folder written by `mbgen prepare`")
    add("--recency", action="store_true",
        help="also how many targets are among the k latest items of the history (GAMER, figure 2)")  # fmt: skip
    add("--protocol", choices=("leave_one_out", "session_wise"),
        help="of --recency (default: leave_one_out, and session_wise where sessions were cut)")  # fmt: skip
    add("--picture", metavar="FILE", help="draw --recency, a panel for each folder; needs matplotlib")


def _run_statistics(args: argparse.Namespace) -> int:
    from mbgen_hf.evaluation.recency_analysis import folder_recency, format_recency
    from mbgen_hf.public_datasets.statistics import prepared_statistics

    for option in ("protocol", "picture"):
        if getattr(args, option) is not None and not args.recency:
            raise ValueError(f"`--{option}`: expected it with --recency, found it alone")
    check_parent("--picture", args.picture)
    analyses = [folder_recency(folder, args.protocol) if args.recency else [] for folder in args.data]
    if args.picture:
        from mbgen_hf.evaluation.recency_picture import draw_recency

        names = [Path(folder).absolute().name for folder in args.data]
        draw_recency(list(zip(names, analyses, strict=True)), args.picture)
    parts = zip(args.data, analyses, strict=True)
    print("\n\n".join(prepared_statistics(one) + (f"\n{format_recency(of)}" if of else "") for one, of in parts))
    return 0


def add_push_dataset(subparsers: argparse._SubParsersAction) -> None:
    parser = subparsers.add_parser("push-dataset", help="upload prepared folders to the Hub as a dataset",
        description="Write Parquet shards and a card that plain load_dataset reads, and upload them; log in with "
        "`hf auth login`. Mind the terms of the log.", allow_abbrev=False)  # fmt: skip
    parser.set_defaults(run=_run_push_dataset)
    add = parser.add_argument
    add("repo_id", metavar="OWNER/NAME", help="dataset repository on the Hub")
    add("data", nargs="+", metavar="PREPARED", help="one prepared folder for each config, with and without sessions")
    add("--output", required=True, metavar="FOLDER", help="folder that gets the files of the repository")
    add("--overwrite", action="store_true", help="replace the result of an earlier run in --output")
    add("--dry-run", action="store_true", help="write the folder, upload nothing")
    add("--private", action="store_true", help="create the repository as private")
    add("--message", metavar="TEXT", help="commit message")


def _run_push_dataset(args: argparse.Namespace) -> int:
    from mbgen_hf.public_datasets.publish import push_dataset, write_published_folder

    files = write_published_folder(args.data, args.output, args.repo_id, args.overwrite)
    for file in files:
        print(f"{(Path(args.output) / file).stat().st_size:>14,}  {file}")
    if args.dry_run:
        print(
            f"nothing uploaded; look at it with load_dataset({str(args.output)!r}) or train on it, as on the original"
        )
    else:
        print(push_dataset(args.output, args.repo_id, args.private, args.message))
    return 0


def add_config(parser: argparse.ArgumentParser) -> None:
    """The option of every command that reads what `load_table` reads."""
    parser.add_argument("--config", metavar="NAME", help="of published data that has several: sequential or session")


def shown_config(args: argparse.Namespace) -> str:
    """The option as it follows the data in a command that is proposed."""
    return "" if args.config is None else f" --config {args.config}"


def check_parent(option: str, file: str | None) -> None:
    """Refuse a file in a folder that does not exist before the work is done; raises `ValueError`."""
    if file is not None and not Path(file).absolute().parent.is_dir():
        raise ValueError(f"`{option}`: expected a file in an existing folder, found {file}")


def comma_list(text: str) -> list[str]:
    """Values separated by commas, none of them empty."""
    values = text.split(",")
    if not all(values):
        raise argparse.ArgumentTypeError(f"expected values separated by commas, found {text!r}")
    return values


def _pairs(text: str) -> dict[str, str]:
    pairs: dict[str, str] = {}
    for part in comma_list(text):
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
    return _pairs(text) if "=" in text else comma_list(text)


def _levels(text: str) -> dict[str, int]:
    pairs = _pairs(text)
    if wrong := [level for level in pairs.values() if not level.isdecimal()]:
        raise argparse.ArgumentTypeError(f"expected non-negative integers as levels, found {wrong[0]!r}")
    return {name: int(level) for name, level in pairs.items()}


def _separator(text: str) -> str:
    return {"tab": "\t", "\\t": "\t"}.get(text, text)


def _or_none(text: str) -> str | None:
    return None if text == "none" else text


def _fraction(text: str) -> Any:
    try:
        return None if text == "none" else float(text)
    except ValueError as error:
        raise argparse.ArgumentTypeError(f"expected a share such as 0.25, or none, found {text!r}") from error


__all__ = [
    "DATA_HELP",
    "add_config",
    "add_prepare",
    "add_push_dataset",
    "add_statistics",
    "check_parent",
    "comma_list",
    "shown_config",
]
