"""Train, then score on the test split: what the training scripts in `examples/` do."""

from dataclasses import dataclass, field

from mbgen_hf.evaluation.evaluator import Recommender, evaluate_tasks
from mbgen_hf.evaluation.protocols import protocol_tasks
from mbgen_hf.evaluation.report import format_report
from mbgen_hf.processes import process_state
from mbgen_hf.public_datasets.published import load_table
from mbgen_hf.training.settings import load_settings, parse_change
from mbgen_hf.training.train import train_model


@dataclass
class ScriptArguments:
    """What to train on, how, and where to write."""

    data: str = field(metadata={"help": "folder of `mbgen prepare` or `push-dataset`, or owner/name on the Hub"})
    output: str = field(metadata={"help": "checkpoint folder to write"})
    config: str | None = field(default=None, metadata={"help": "of published data that has several"})
    preset: str | None = field(default=None, metadata={"help": "a preset of the package (default: MODEL-small)"})
    changes: list[str] = field(default_factory=list, metadata={"help": "SECTION.NAME=VALUE changes to the preset"})
    seed: int = field(default=42, metadata={"help": "of weights, order and dropout"})
    resume: bool = field(default=False, metadata={"help": "continue an interrupted run"})
    overwrite: bool = field(default=False, metadata={"help": "start anew in a folder that holds an earlier run"})
    num_beams: int = field(default=50, metadata={"help": "beam width of the evaluation"})
    max_users: int | None = field(default=None, metadata={"help": "evaluate a sample of so many cases"})


def train_and_evaluate(args: ScriptArguments, architecture: str) -> dict:
    """Train one of the two models, print its scores beside the baselines and return them.

    Args:
        args: the script's arguments.
        architecture: `"mbgen"` or `"gamer"`, which names the preset where none is given.

    Raises:
        ValueError: as `load_settings`, `train_model` and `evaluate_tasks`, or a preset of the other model.
    """
    settings = load_settings(args.preset or f"{architecture}-small", dict(map(parse_change, args.changes)))
    if settings["architecture"] != architecture:
        raise ValueError(f"`preset`: expected one of {architecture}, found {args.preset!r}")
    table = load_table(args.data, args.config)
    trained = train_model(table, settings, args.output, args.seed, args.resume, args.overwrite)
    recommender = Recommender(trained.model, trained.tokenizer, table, args.num_beams)
    protocol = settings["data"]["protocol"]
    tasks = protocol_tasks(protocol)
    report = evaluate_tasks(recommender, "test", tasks, max_users=args.max_users, protocol=protocol)
    if process_state().is_main_process:
        print(format_report(report))
    return report


__all__ = ["ScriptArguments", "train_and_evaluate"]
