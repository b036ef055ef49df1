"""What a switch does to accuracy, on a simulated shop or on a prepared log.

    python benchmarks/ablations.py encoder --seeds 0,1,2 --output results/encoder
    python benchmarks/ablations.py loss --seeds 0,1,2 --output results/loss

* `encoder`: MBGen with the paper's bidirectional encoder, against the causal one for as many epochs and for as much
  time (the epochs that the bidirectional run's seconds pay for).
* `loss`: both models with the loss over the whole vocabulary, against the loss over the ids a slot can hold.

All runs of a table see the same users, with as many predictions in a batch. The checkpoint with the best validation
score counts. Writes `results.json` into the output folder; finished runs are kept, so the command can be given again.
"""

import argparse
import json
import statistics
import time
from pathlib import Path

from compare_models import cell, keep

from mbgen_hf import Recommender, SequenceTable, evaluate_tasks, load_checkpoint, load_settings, train_model
from mbgen_hf.simulation import simulate_shop
from mbgen_hf.training.settings import parse_change


PREDICTIONS_IN_A_BATCH = 64
MBGEN = {"data.window": "last_window", "data.max_history": 50}
METRICS = ("hr@1", "hr@10", "ndcg@10")


def train_and_score(table: SequenceTable, preset: str, changes: dict, seed: int, folder: Path, args) -> dict:
    """Seconds of training and scores on the target task, or what an earlier call recorded."""
    record = folder / "scores.json"
    if record.is_file():
        return json.loads(record.read_text(encoding="utf-8"))
    changes = {
        "data.protocol": args.protocol,
        "training.max_steps": -1,
        "training.eval_strategy": "epoch",
        "training.disable_tqdm": True,
        "validation.max_users": 500,
        "validation.patience": 1000,
        **changes,
        **dict(map(parse_change, args.set)),
    }
    started = time.time()
    train_model(table, load_settings(preset, changes), folder, seed, resume=True)
    seconds = time.time() - started
    model, tokenizer = load_checkpoint(folder)
    recommender = Recommender(model, tokenizer, table, args.num_beams)
    report = evaluate_tasks(recommender, "test", ["target"], protocol=args.protocol)["target"]
    scores = {"seconds": seconds, "epochs": changes["training.num_train_epochs"], "report": report}
    return keep(record, scores)


def encoders(table: SequenceTable, seed: int, args) -> dict[str, dict]:
    """The encoders of MBGen: bidirectional, and causal for as many epochs and for as much time."""
    users = max(1, round(PREDICTIONS_IN_A_BATCH * table.num_users / table.num_interactions))
    batch, epochs = "training.per_device_train_batch_size", "training.num_train_epochs"
    paper = {**MBGEN, "model.causal_encoder": False, batch: PREDICTIONS_IN_A_BATCH, epochs: args.epochs}
    causal = {**MBGEN, "model.causal_encoder": True, batch: users, epochs: args.epochs}
    runs = {}
    for name, changes in (("bidirectional", paper), ("causal, as many epochs", causal)):
        runs[name] = train_and_score(table, "mbgen-quickstart", changes, seed, args.output / f"{name}-{seed}", args)
    affordable = round(args.epochs * runs["bidirectional"]["seconds"] / runs["causal, as many epochs"]["seconds"])
    name, changes = "causal, as much time", {**causal, epochs: max(affordable, 1)}
    runs[name] = train_and_score(table, "mbgen-quickstart", changes, seed, args.output / f"{name}-{seed}", args)
    return runs


def losses(table: SequenceTable, seed: int, args) -> dict[str, dict]:
    """The loss over the vocabulary and over a slot, for both models."""
    users = max(1, round(PREDICTIONS_IN_A_BATCH * table.num_users / table.num_interactions))
    runs = {}
    for kind, preset, batch in (
        ("MBGen", "mbgen-quickstart", PREDICTIONS_IN_A_BATCH),
        ("GAMER", "gamer-small", users),
    ):
        for over in ("vocabulary", "slot"):
            name = f"{kind}, {over}"
            changes = {
                **(MBGEN if kind == "MBGen" else {}),
                "model.loss_over": over,
                "training.per_device_train_batch_size": batch,
                "training.num_train_epochs": args.epochs,
            }
            runs[name] = train_and_score(table, preset, changes, seed, args.output / f"{name}-{seed}", args)
    return runs


def as_markdown(results: dict[str, list[dict]]) -> str:
    """A line for each variant: means over the seeds, with the spread where there are several."""
    lines = ["| | epochs | seconds | " + " | ".join(METRICS) + " |", "|---" * (3 + len(METRICS)) + "|"]
    for name, runs in results.items():
        cells = [mean(run["epochs"] for run in runs), mean(run["seconds"] for run in runs)]
        cells += [cell([run["report"]["model"]["overall"][metric] for run in runs]) for metric in METRICS]
        lines.append(f"| {name} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def mean(values) -> str:
    return f"{statistics.mean(values):.0f}"


def main(argv: list[str] | None = None) -> dict:
    parser = argparse.ArgumentParser(description="What a switch does to accuracy.")
    parser.add_argument("switch", choices=("encoder", "loss"))
    parser.add_argument("--data", type=Path, help="folder written by `mbgen prepare`; a simulated shop by default")
    parser.add_argument("--protocol", choices=("leave_one_out", "session_wise"), default="leave_one_out")
    parser.add_argument("--output", type=Path, required=True)
    parser.add_argument("--users", type=int, default=2000, help="users of the simulated shop")
    parser.add_argument("--seeds", default="0")
    parser.add_argument("--epochs", type=int, default=7)
    parser.add_argument("--num-beams", type=int, default=20)
    parser.add_argument("--set", action="append", default=[], metavar="SECTION.NAME=VALUE",
        help="change a setting of every run")  # fmt: skip
    args = parser.parse_args(argv)
    table = SequenceTable.load(args.data) if args.data else simulate_shop(num_users=args.users).table()
    args.output.mkdir(parents=True, exist_ok=True)
    results: dict[str, list[dict]] = {}
    for seed in map(int, args.seeds.split(",")):
        runs = (encoders if args.switch == "encoder" else losses)(table, seed, args)
        for name, run in runs.items():
            results.setdefault(name, []).append(run)
        (args.output / "results.json").write_text(json.dumps(results, indent=1) + "\n", encoding="utf-8")
    print(as_markdown(results))
    return results


if __name__ == "__main__":
    main()
