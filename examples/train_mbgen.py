"""Train MBGen on a prepared folder from Python.

mbgen prepare LOG --columns user_id=...,item_id=...,behavior=...,timestamp=... --output data/shop
python examples/train_mbgen.py --data data/shop --output runs/shop
accelerate launch --num_processes 2 examples/train_mbgen.py --data data/shop --output runs/shop
"""

from dataclasses import dataclass, field

from accelerate import PartialState
from transformers import HfArgumentParser

from mbgen_hf import Recommender, SequenceTable, evaluate_tasks, load_settings, train_model
from mbgen_hf.evaluation.protocols import TASKS
from mbgen_hf.evaluation.report import format_report
from mbgen_hf.training.settings import parse_change


@dataclass
class ScriptArguments:
    """What to train on, how, and where to write."""

    data: str = field(metadata={"help": "folder written by `mbgen prepare`"})
    output: str = field(metadata={"help": "checkpoint folder to write"})
    preset: str = field(default="mbgen-small", metadata={"help": "a preset of the package"})
    changes: list[str] = field(default_factory=list, metadata={"help": "SECTION.NAME=VALUE changes to the preset"})
    seed: int = field(default=42, metadata={"help": "of weights, order and dropout"})
    resume: bool = field(default=False, metadata={"help": "continue an interrupted run"})
    overwrite: bool = field(default=False, metadata={"help": "start anew in a folder that holds an earlier run"})
    num_beams: int = field(default=50, metadata={"help": "beam width of the evaluation"})
    max_users: int | None = field(default=None, metadata={"help": "evaluate a sample of so many cases"})


def main(argv: list[str] | None = None) -> dict:
    (args,) = HfArgumentParser(ScriptArguments).parse_args_into_dataclasses(argv)
    table = SequenceTable.load(args.data)
    settings = load_settings(args.preset, dict(map(parse_change, args.changes)))
    trained = train_model(table, settings, args.output, args.seed, args.resume, args.overwrite)
    recommender = Recommender(trained.model, trained.tokenizer, table, args.num_beams)
    protocol = settings["data"]["protocol"]
    tasks = TASKS if protocol == "leave_one_out" else TASKS[:2]
    report = evaluate_tasks(recommender, "test", tasks, max_users=args.max_users, protocol=protocol)
    if PartialState().is_main_process:
        print(format_report(report))
    return report


if __name__ == "__main__":
    main()
