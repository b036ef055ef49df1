"""The `mbgen` command: thin wrappers around functions of the library.

Heavy imports stay inside the sub-commands, so that `mbgen --help` answers at once.
"""

import argparse
import sys
from collections.abc import Sequence
from typing import NoReturn

from mbgen_hf.cli_data import (
    DATA_HELP,
    add_config,
    add_prepare,
    add_push_dataset,
    add_statistics,
    check_parent,
    comma_list,
    shown_config,
)
from mbgen_hf.cli_fit_ids import add_fit_ids
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
    data_commands = (add_prepare, add_statistics, add_push_dataset)
    for add_command in (*data_commands, add_fit_ids, _add_train, _add_evaluate, _add_recommend, _add_push):
        add_command(subparsers)
    return parser


def _add_train(subparsers: argparse._SubParsersAction) -> None:
    parser = subparsers.add_parser("train", help="prepared folder to checkpoint", allow_abbrev=False,
        description="Train MBGen or GAMER on a prepared folder, alone or under `accelerate launch`.")  # fmt: skip
    parser.set_defaults(run=_run_train)
    add = parser.add_argument
    add("data", metavar="PREPARED", help=DATA_HELP)
    add_config(parser)
    add("--output", required=True, metavar="FOLDER", help="checkpoint folder to write")
    add("--model", choices=("mbgen", "gamer"), help="short for --preset MODEL-small (default: mbgen)")
    add("--preset", metavar="NAME", help="MODEL-small (default), MODEL-paper or MODEL-official")
    add("--set", action="append", default=[], metavar="SECTION.NAME=VALUE", dest="changes",
        help="change a setting of the preset, such as model.d_model=128; may be given again")  # fmt: skip
    for flag, setting, kind in _SHORT_SETTINGS:
        add(flag, type=kind, metavar="N", help=f"short for --set {setting}=N")
    add("--item-ids", metavar="IDS", help="folder written by `mbgen fit-ids`; short for --set item_ids.path=IDS")
    add("--bf16", action="store_true", help="short for --set training.bf16=true")
    add("--cpu", action="store_true", help="train on the CPU even where there is a GPU")
    add("--seed", type=int, default=42)
    add("--resume", action="store_true", help="continue from the latest checkpoint of an interrupted run")
    add("--overwrite", action="store_true", help="start anew in a folder that holds an earlier run")


_SHORT_SETTINGS = (
    ("--epochs", "training.num_train_epochs", float),
    ("--max-steps", "training.max_steps", int),
    ("--batch-size", "training.per_device_train_batch_size", int),
    ("--learning-rate", "training.learning_rate", float),
)


def _run_train(args: argparse.Namespace) -> int:
    from mbgen_hf.processes import process_state
    from mbgen_hf.public_datasets.published import load_table
    from mbgen_hf.training.settings import load_settings, parse_change
    from mbgen_hf.training.train import train_model

    changes = dict(parse_change(text) for text in args.changes)
    for flag, setting, _ in _SHORT_SETTINGS:
        value = getattr(args, flag[2:].replace("-", "_"))
        if value is not None:
            changes[setting] = value
    if args.item_ids is not None:
        changes["item_ids.path"] = args.item_ids
    if args.bf16:
        changes["training.bf16"] = True
    if args.cpu:
        changes["training.use_cpu"] = True
    settings = load_settings(args.preset or f"{args.model or 'mbgen'}-small", changes)
    if args.model not in (None, settings["architecture"]):
        raise ValueError(f"`--preset`: expected a preset of {args.model}, found {args.preset!r}")
    table = load_table(args.data, args.config)
    train_model(table, settings, args.output, args.seed, args.resume, args.overwrite)
    if process_state().is_main_process:
        print(f"checkpoint: {args.output}\nnext: mbgen evaluate {args.output} --data {args.data}{shown_config(args)}")
    return 0


def _add_evaluate(subparsers: argparse._SubParsersAction) -> None:
    parser = subparsers.add_parser("evaluate", help="score a checkpoint beside recency and popularity",
        description="Score a checkpoint on held-out interactions; writes evaluation.json and the model card.",
        allow_abbrev=False)  # fmt: skip
    parser.set_defaults(run=_run_evaluate)
    add = parser.add_argument
    _add_checkpoint_arguments(parser)
    add("--data", required=True, metavar="PREPARED", help=DATA_HELP)
    add_config(parser)
    add("--split", choices=("test", "validation"), default="test")
    add("--protocol", choices=("leave_one_out", "session_wise"), help="default: the one it was trained under")
    add("--tasks", type=comma_list, metavar="TASK,...",
        help="target, behavior, behavior_item (default: all the protocol has)")  # fmt: skip
    add("--max-users", type=_positive, metavar="N", help="a random sample of so many cases per task (default: all)")
    add("--drop-low-levels", type=float, metavar="SHARE",
        help="robustness: leave a share of the lowest level out of the histories; nothing is recorded")  # fmt: skip
    add("--drop-targets", action="store_true",
        help="robustness: leave a case's own targets out of its history; nothing is recorded")  # fmt: skip
    add("--exclude-seen", action="store_true",
        help="leave out what each user has touched before; nothing is recorded")  # fmt: skip
    add("--dataset-name", metavar="NAME", help="name in the record (default: the data folder's)")
    add("--output", metavar="FILE", help="write the JSON record here too")


def _add_checkpoint_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("checkpoint", metavar="CHECKPOINT", help="checkpoint folder, or owner/name on the Hub")
    parser.add_argument("--num-beams", type=_positive, default=50, metavar="N", help="beam width (default: 50)")
    parser.add_argument(
        "--batch-size", type=_positive, default=64, metavar="N", help="histories at once (default: 64)"
    )


def _run_evaluate(args: argparse.Namespace) -> int:
    import json
    from pathlib import Path

    from mbgen_hf.evaluation.evaluator import Recommender
    from mbgen_hf.evaluation.protocols import protocol_tasks
    from mbgen_hf.evaluation.report import format_report
    from mbgen_hf.evaluation.robustness import Reduction
    from mbgen_hf.processes import process_state
    from mbgen_hf.public_datasets.published import load_table
    from mbgen_hf.training.checkpoint import load_checkpoint, write_text_whole
    from mbgen_hf.training.evaluation_record import evaluate_checkpoint, trained_protocol

    check_parent("--output", args.output)
    reduce = None
    if args.drop_low_levels is not None or args.drop_targets:
        reduce = Reduction(args.drop_low_levels, args.drop_targets)
    table = load_table(args.data, args.config)
    model, tokenizer = load_checkpoint(args.checkpoint)
    recommender = Recommender(model, tokenizer, table, args.num_beams, args.batch_size, args.exclude_seen)
    trained = trained_protocol(args.checkpoint)
    protocol = args.protocol or trained
    if (trained, protocol) == ("leave_one_out", "session_wise"):
        raise ValueError(
            "`--protocol`: expected 'leave_one_out', which the checkpoint was trained under, found 'session_wise', "
            "whose held-out sessions it has partly seen"
        )
    as_usual = reduce is None and not args.exclude_seen
    evaluation = evaluate_checkpoint(
        recommender,
        folder=args.checkpoint if Path(args.checkpoint).is_dir() and as_usual else None,
        dataset=args.dataset_name or Path(args.data).resolve().name,
        split=args.split,
        tasks=args.tasks or protocol_tasks(protocol),
        protocol=protocol,
        reduce_histories=reduce,
        max_users=args.max_users,
        progress=sys.stderr.isatty(),
    )
    if not process_state().is_main_process:
        return 0
    if args.output:
        write_text_whole(args.output, json.dumps(evaluation, indent=2) + "\n")
    print(format_report(evaluation["tasks"]))
    return 0


def _add_recommend(subparsers: argparse._SubParsersAction) -> None:
    parser = subparsers.add_parser("recommend", help="top-k items for users or for a history", allow_abbrev=False,
        description="Top-k raw item ids for users of a prepared folder, or for a given history, alone or under "
        "`accelerate launch`.")  # fmt: skip
    parser.set_defaults(run=_run_recommend)
    add = parser.add_argument
    _add_checkpoint_arguments(parser)
    add("--data", metavar="PREPARED", help="what holds the users' histories: " + DATA_HELP)
    add_config(parser)
    add("--users", type=comma_list, metavar="ID,...", help="raw user ids of --data")
    add("--history", nargs="*", metavar="BEHAVIOR=ITEM", help="a history, oldest first; empty for a new user")
    add("--user-id", metavar="ID", help="raw id of the user whose history is given, for models with user tokens")
    add("--behavior", metavar="NAME", help="behavior to recommend for (default: the target); 'any' predicts it too")
    add("-k", type=_positive, default=10, metavar="N", help="length of the lists (default: 10)")
    add("--exclude-seen", action="store_true", help="leave out what the user has touched before")
    add("--output", metavar="FILE", help="write the lists as JSON")


def _run_recommend(args: argparse.Namespace) -> int:
    import json

    from mbgen_hf.processes import process_state
    from mbgen_hf.public_datasets.published import load_table
    from mbgen_hf.recommendation import histories_of, recommend
    from mbgen_hf.training.checkpoint import load_checkpoint, write_text_whole

    if (args.users is None) == (args.history is None):
        raise ValueError("`--users`: expected either --users with --data, or --history, found both or neither")
    check_parent("--output", args.output)
    if args.history is not None and args.data is not None:
        raise ValueError("`--data`: expected it with --users only, found it beside --history")
    if args.history is not None and args.config is not None:
        raise ValueError("`--config`: expected it with --data only, found it beside --history")
    if args.users is not None and args.data is None:
        raise ValueError("`--data`: expected the prepared folder that holds --users, found none")
    model, tokenizer = load_checkpoint(args.checkpoint)
    if args.users is not None:
        histories = histories_of(load_table(args.data, args.config), args.users)
        users = [history["user_id"] for history in histories]
    else:
        histories, users = [[_interaction(text) for text in args.history]], [args.user_id]
    behavior = None if args.behavior == "any" else args.behavior or tokenizer.target_behavior
    lists = recommend(
        model, tokenizer, histories, users, behavior, args.k, args.num_beams, args.batch_size, args.exclude_seen
    )
    if not process_state().is_main_process:
        return 0
    rows = [
        {"user_id": user, "recommendations": [vars(entry) for entry in entries]}
        for user, entries in zip(users, lists, strict=True)
    ]
    if args.output:
        write_text_whole(args.output, json.dumps(rows, indent=2) + "\n")
    for row in rows:
        print(f"user {row['user_id']}" if row["user_id"] is not None else "history")
        for rank, entry in enumerate(row["recommendations"], 1):
            print(f"{rank:4d}  {entry['behavior']}  {entry['item_id']}  {entry['score']:.4f}")
    return 0


def _add_push(subparsers: argparse._SubParsersAction) -> None:
    parser = subparsers.add_parser("push", help="upload a checkpoint to the Hub", allow_abbrev=False,
        description="Upload a checkpoint folder with code and card; log in with `hf auth login`.")  # fmt: skip
    parser.set_defaults(run=_run_push)
    parser.add_argument("checkpoint", metavar="CHECKPOINT", help="checkpoint folder")
    parser.add_argument("repo_id", metavar="OWNER/NAME", help="repository on the Hub")
    parser.add_argument("--private", action="store_true", help="create the repository as private")
    parser.add_argument("--message", metavar="TEXT", help="commit message")


def _run_push(args: argparse.Namespace) -> int:
    from mbgen_hf.training.checkpoint import push_checkpoint
    from mbgen_hf.training.evaluation_record import name_card_after

    print(push_checkpoint(args.checkpoint, args.repo_id, args.private, args.message, prepare=name_card_after))
    return 0


def _interaction(text: str) -> tuple[str, str]:
    behavior, equals, item = text.partition("=")
    if not (behavior and equals and item):
        raise ValueError(f"`--history`: expected BEHAVIOR=ITEM, found {text!r}")
    return behavior, item


def _positive(text: str) -> int:
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"expected a positive integer, found {text!r}")
    return int(text)


if __name__ == "__main__":
    sys.exit(main())


__all__ = ["main"]
