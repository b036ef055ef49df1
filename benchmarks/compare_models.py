"""Train and score several models on one prepared log, and write the table of docs/results.md.

    mbgen prepare LOG ... --sessions gap:1800 --output data/shop
    python benchmarks/compare_models.py data/shop --protocol session_wise --seeds 0,1,2 --output results/shop

Each model is trained for the same number of steps under the same protocol. The checkpoint with the best validation
score on the target task is scored once on the test split, with the baselines on the same cases. With a
copying head training stops early, when the score has not risen for four validations. Finished runs are kept: the
command can be stopped and given again. Writes `results.json` and `results.md` into the output folder.
"""

import argparse
import json
import platform
import statistics
import time
from pathlib import Path

from mbgen_hf import Recommender, SequenceTable, evaluate_tasks, load_checkpoint, load_settings, train_model
from mbgen_hf.baselines.sasrec import SASRecBaseline
from mbgen_hf.evaluation.evaluator import baseline_answers, score
from mbgen_hf.evaluation.protocols import PAPER_HISTORY, protocol_cases, protocol_training_end, task_cases
from mbgen_hf.training.settings import parse_change


# Small batches and dropout in attention alone: on logs of this size they reach copying soonest.
DECODER = {
    "training.per_device_train_batch_size": 16,
    "model.hidden_dropout": 0.0,
    "model.expert_dropout": 0.0,
}
PLAIN_QWEN3 = {"model.cross_level_layers": [], "model.routed_layers": [], "model.injection_layers": []}
COPYING = {"model.copy_from_history": True, "validation.patience": 4}
INFORMED = {**COPYING, "model.copy_item_behaviors": True}
SESSION_WISE = {"model.session_wise_attention": True}
MODELS = {
    "qwen3": ("gamer-small", {**DECODER, **PLAIN_QWEN3}),
    "qwen3 + 4x": ("gamer-small", {**DECODER, **PLAIN_QWEN3, "data.augmentation": 4}),
    "qwen3 session-wise": ("gamer-small", {**DECODER, **PLAIN_QWEN3, **SESSION_WISE}),
    "gamer": ("gamer-small", DECODER),
    "gamer + 4x": ("gamer-small", {**DECODER, "data.augmentation": 4}),
    "gamer session-wise": ("gamer-small", {**DECODER, **SESSION_WISE}),
    "mbgen": ("mbgen-small", {}),
    "mbgen causal": ("mbgen-causal-small", {}),
    "qwen3 + copying": ("gamer-small", {**DECODER, **PLAIN_QWEN3, **COPYING}),
    "gamer + copying": ("gamer-small", {**DECODER, **COPYING}),
    "gamer + copying + 4x": ("gamer-small", {**DECODER, **COPYING, "data.augmentation": 4}),
    "qwen3 + informed copying": ("gamer-small", {**DECODER, **PLAIN_QWEN3, **INFORMED}),
    "gamer + informed copying": ("gamer-small", {**DECODER, **INFORMED}),
    "gamer + informed copying + 4x": ("gamer-small", {**DECODER, **INFORMED, "data.augmentation": 4}),
    "gamer session-wise + informed copying": ("gamer-small", {**DECODER, **SESSION_WISE, **INFORMED}),
    "mbgen causal + informed copying": ("mbgen-causal-small", INFORMED),
    "mbgen + copying": ("mbgen-small", COPYING),
    "mbgen causal + copying": ("mbgen-causal-small", COPYING),
}
SASREC = "sasrec"
BASELINES = ("recency", "recency_by_behavior", "popularity")
METRICS = ("hr@1", "hr@5", "hr@10", "ndcg@5", "ndcg@10")


def model_names(asked: str | None, protocol: str) -> list[str]:
    """The models asked for, or all that a protocol has; 'MODEL @ KIND' counts as MODEL.

    Raises:
        ValueError: an unknown model, or session-wise attention under another protocol.
    """
    known = [SASREC, *MODELS]
    needs_sessions = [name for name, (_, changes) in MODELS.items() if changes.get("model.session_wise_attention")]
    if asked is None:
        return [name for name in known if protocol == "session_wise" or name not in needs_sessions]
    for name in asked.split(","):
        base = name.partition(" @ ")[0]
        if base not in known:
            raise ValueError(f"`--models`: expected some of {known}, found {name!r}")
        if base in needs_sessions and protocol != "session_wise":
            raise ValueError(f"`--models`: expected {name!r} with --protocol session_wise only, found {protocol!r}")
    return asked.split(",")


def run_folder(results: Path, name: str, seed: int) -> Path:
    """Where the run of a model with a seed lies; folders have the names without spaces."""
    return results / f"{name.replace(' ', '')}-seed{seed}"


def run_one(table: SequenceTable, name: str, seed: int, args: argparse.Namespace) -> dict:
    """Train and score one model with one seed, or read what an earlier call recorded."""
    folder = run_folder(args.output, name, seed)
    record = folder / ("scores_of_new.json" if args.exclude_seen else "scores.json")
    if record.is_file():
        return json.loads(record.read_text(encoding="utf-8"))
    if name == SASREC:
        return keep(record, run_sasrec(table, seed, args))
    base, _, kind = name.partition(" @ ")
    preset, changes = MODELS[base]
    changes = {
        "data.protocol": args.protocol,
        "training.max_steps": args.steps,
        "training.eval_strategy": "steps",
        "training.eval_steps": max(1, args.steps // args.validations),
        "training.disable_tqdm": True,
        "validation.patience": args.validations,
        "validation.max_users": args.validation_users,
        **changes,
        **(item_id_changes(kind, args.item_ids) if kind else {}),
        **dict(map(parse_change, args.set)),
    }
    started = time.time()
    train_model(table, load_settings(preset, changes), folder, seed, resume=True)
    seconds = time.time() - started
    model, tokenizer = load_checkpoint(folder)
    recommender = Recommender(model, tokenizer, table, args.num_beams, exclude_seen=args.exclude_seen)
    report = evaluate_tasks(recommender, "test", ["target", "behavior"], protocol=args.protocol)
    return keep(record, {"seconds": seconds, "parameters": model.num_parameters(), "report": report})


def item_id_changes(kind: str, fitted: list[str]) -> dict:
    """Settings of a kind of item IDs: one of those given by --item-ids, or a kind that needs no fitting.

    Raises:
        ValueError: a kind that was neither given nor goes without fitting.
    """
    folders = dict(entry.split("=", 1) for entry in fitted)
    if kind in folders:
        return {"item_ids.path": folders[kind]}
    if kind != "single":
        raise ValueError(f"`--models`: expected IDs of the kinds {sorted({*folders, 'single'})}, found {kind!r}")
    return {"item_ids.method": "single"}


def run_sasrec(table: SequenceTable, seed: int, args: argparse.Namespace) -> dict:
    """Train and score SASRec on the cases of both tasks; it gives the same list for every behavior."""
    history = PAPER_HISTORY[args.protocol]
    started = time.time()
    baseline = SASRecBaseline(max_history=history, num_epochs=args.sasrec_epochs, seed=seed)
    baseline.fit(table, protocol_training_end(table, args.protocol))
    seconds = time.time() - started
    report = {}
    for task in ("target", "behavior"):
        cases = task_cases(protocol_cases(table, args.protocol, "test", history), task, table.schema)
        answers = baseline_answers(baseline, table, cases, 10, cases.behavior, args.exclude_seen)
        report[task] = {"model": score(table, cases, answers, task, (1, 5, 10))}
    parameters = sum(parameter.numel() for parameter in baseline.network.parameters())
    return {"seconds": seconds, "parameters": parameters, "report": report}


def keep(record: Path, scores: dict) -> dict:
    """Record the scores of a finished run."""
    record.parent.mkdir(parents=True, exist_ok=True)
    temporary = record.with_suffix(".tmp")
    temporary.write_text(json.dumps(scores, indent=1) + "\n", encoding="utf-8")
    temporary.replace(record)
    return scores


def row(label: str, groups: list[dict]) -> str:
    """One line of the table: mean over seeds, with the spread where there is more than one."""
    cells = [[group["overall"][metric] for group in groups] for metric in METRICS]
    cells += [[group[part].get("hr@10", float("nan")) for group in groups] for part in ("repeat", "new")]
    return f"| {label} | " + " | ".join(cell(values) for values in cells) + " |"


def cell(values: list[float]) -> str:
    spread = f" ± {statistics.stdev(values):.4f}" if len(values) > 1 else ""
    return f"{statistics.mean(values):.4f}{spread}"


def as_markdown(results: dict, args: argparse.Namespace) -> str:
    """The tables of both tasks."""
    blocks = []
    for task in ("target", "behavior"):
        reports = {name: [run["report"][task] for run in runs.values()] for name, runs in results.items()}
        first = next(of_seeds[0] for of_seeds in reports.values() if "recency" in of_seeds[0])
        counts = ", ".join(f"{first['model'][part]['n']} {part}" for part in ("overall", "repeat", "new"))
        lines = [
            f"**{task}** ({args.data.name}, {args.protocol}, cases: {counts})",
            "",
            "| | " + " | ".join([*METRICS, "repeat hr@10", "new hr@10"]) + " |",
            "|---" * (len(METRICS) + 3) + "|",
            *(row(name.replace("_", " "), [first[name]]) for name in BASELINES if name in first),
            *(row(name, [report["model"] for report in of_seeds]) for name, of_seeds in reports.items()),
        ]
        blocks.append("\n".join(lines))
    times = ", ".join(
        f"{name} {statistics.mean(run['seconds'] for run in runs.values()):.0f} s" for name, runs in results.items()
    )
    return "\n\n".join(blocks) + f"\n\nTraining on {platform.machine()}, mean per run: {times}.\n"


def main(argv: list[str] | None = None) -> dict:
    parser = argparse.ArgumentParser(description="Compare models on one prepared log.")
    parser.add_argument("data", type=Path, help="folder written by `mbgen prepare`")
    parser.add_argument("--output", type=Path, required=True)
    parser.add_argument("--models", help="some of " + ", ".join([SASREC, *MODELS]) + " (default: all of the protocol)")
    parser.add_argument("--item-ids", action="append", default=[], metavar="KIND=FOLDER",
        help="IDs of `mbgen fit-ids`, for models named 'MODEL @ KIND'; 'MODEL @ single' needs none")  # fmt: skip
    parser.add_argument("--protocol", choices=("leave_one_out", "session_wise"), default="leave_one_out")
    parser.add_argument("--seeds", default="0")
    parser.add_argument("--steps", type=int, default=5000, help="optimizer steps of each model, the same for all")
    parser.add_argument("--validations", type=int, default=10, help="how often each is validated; the best is kept")
    parser.add_argument("--sasrec-epochs", type=int, default=30)
    parser.add_argument("--validation-users", type=int, default=1000)
    parser.add_argument("--num-beams", type=int, default=20)
    parser.add_argument("--exclude-seen", action="store_true",
        help="leave what a history holds out of its list, as a shop would that recommends new things")  # fmt: skip
    parser.add_argument("--users", type=int, help="a fixed random sample of so many users (seed 0) and their items")
    parser.add_argument("--set", action="append", default=[], metavar="SECTION.NAME=VALUE",
        help="change a setting of every preset")  # fmt: skip
    args = parser.parse_args(argv)
    models = model_names(args.models, args.protocol)
    table = SequenceTable.load(args.data)
    if args.users is not None:
        table = table.sample_users(args.users)
    results: dict = {}
    ending = "_of_new" if args.exclude_seen else ""
    for seed in map(int, args.seeds.split(",")):
        for name in models:
            results.setdefault(name, {})[str(seed)] = run_one(table, name, seed, args)
            args.output.mkdir(parents=True, exist_ok=True)
            (args.output / f"results{ending}.json").write_text(json.dumps(results, indent=1) + "\n", encoding="utf-8")
            if set(results) != {SASREC}:  # The other models' runs score the baselines as well.
                (args.output / f"results{ending}.md").write_text(as_markdown(results, args), encoding="utf-8")
    print(as_markdown(results, args))
    return results


if __name__ == "__main__":
    main()
