"""Train and score several models on one prepared log, and write the table of docs/results.md.

    mbgen prepare LOG ... --sessions gap:1800 --output data/shop
    python benchmarks/compare_models.py data/shop --protocol session_wise --seeds 0,1,2 --output results/shop

Each model is trained under the same protocol with early stopping on the validation score of the target task, then
scored once on the test split, with recency and popularity on the same cases. Finished runs are kept: the command
can be stopped and given again. Writes `results.json` and `results.md` into the output folder.
"""

import argparse
import json
import platform
import statistics
import time
from pathlib import Path

from mbgen_hf import Recommender, SequenceTable, evaluate_tasks, load_checkpoint, load_settings, train_model


PLAIN_QWEN3 = {"model.cross_level_layers": [], "model.routed_layers": [], "model.injection_layers": []}
MODELS = {
    "qwen3": ("gamer-small", PLAIN_QWEN3),
    "gamer": ("gamer-small", {}),
    "gamer + 4x": ("gamer-small", {"data.augmentation": 4}),
    "mbgen": ("mbgen-small", {}),
}
METRICS = ("hr@1", "hr@5", "hr@10", "ndcg@5", "ndcg@10")


def run_one(table: SequenceTable, name: str, seed: int, args: argparse.Namespace) -> dict:
    """Train and score one model with one seed, or read what an earlier call recorded."""
    folder = args.output / f"{name.replace(' ', '')}-seed{seed}"
    record = folder / "scores.json"
    if record.is_file():
        return json.loads(record.read_text(encoding="utf-8"))
    preset, changes = MODELS[name]
    changes = {
        **changes,
        "data.protocol": args.protocol,
        "training.num_train_epochs": args.epochs,
        "training.disable_tqdm": True,
        "validation.patience": args.patience,
        "validation.max_users": args.validation_users,
    }
    started = time.time()
    train_model(table, load_settings(preset, changes), folder, seed, resume=True)
    seconds = time.time() - started
    model, tokenizer = load_checkpoint(folder)
    recommender = Recommender(model, tokenizer, table, args.num_beams)
    report = evaluate_tasks(recommender, "test", ["target", "behavior"], protocol=args.protocol)
    scores = {"seconds": seconds, "parameters": model.num_parameters(), "report": report}
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
        first = next(iter(reports.values()))[0]
        counts = ", ".join(f"{first['model'][part]['n']} {part}" for part in ("overall", "repeat", "new"))
        lines = [
            f"**{task}** ({args.data.name}, {args.protocol}, cases: {counts})",
            "",
            "| | " + " | ".join([*METRICS, "repeat hr@10", "new hr@10"]) + " |",
            "|---" * (len(METRICS) + 3) + "|",
            row("recency", [first["recency"]]),
            row("popularity", [first["popularity"]]),
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
    parser.add_argument("--models", default=",".join(MODELS), help="of " + ", ".join(MODELS))
    parser.add_argument("--protocol", choices=("leave_one_out", "session_wise"), default="leave_one_out")
    parser.add_argument("--seeds", default="0")
    parser.add_argument("--epochs", type=int, default=30)
    parser.add_argument("--patience", type=int, default=6)
    parser.add_argument("--validation-users", type=int, default=1000)
    parser.add_argument("--num-beams", type=int, default=20)
    args = parser.parse_args(argv)
    table = SequenceTable.load(args.data)
    results: dict = {}
    for seed in map(int, args.seeds.split(",")):
        for name in args.models.split(","):
            results.setdefault(name, {})[str(seed)] = run_one(table, name, seed, args)
            args.output.mkdir(parents=True, exist_ok=True)
            (args.output / "results.json").write_text(json.dumps(results, indent=1) + "\n", encoding="utf-8")
            (args.output / "results.md").write_text(as_markdown(results, args), encoding="utf-8")
    print(as_markdown(results, args))
    return results


if __name__ == "__main__":
    main()
