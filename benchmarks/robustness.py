"""Table 7 of GAMER: what models lose when a share of the weakest behavior, or the targets, leave the histories.

    python benchmarks/robustness.py data/retail results/retail --models "qwen3,gamer,gamer + 4x" --seeds 0,1,2

Scores finished runs of `compare_models.py` on the target task of the test split, under the protocol they were trained
under and with the baselines on the same cases. Every run sees the same interactions left out. Scores are kept beside
each run, so the command can be given again, with other models or another metric. Writes one table of means and
standard deviations over the seeds.
"""

import argparse
import hashlib
import json
from pathlib import Path

from compare_models import BASELINES, MODELS, cell, keep, run_folder

from mbgen_hf import Recommender, SequenceTable, evaluate_tasks, load_checkpoint
from mbgen_hf.data.augmentation import level_ranks
from mbgen_hf.evaluation.robustness import Reduction
from mbgen_hf.training.evaluation_record import trained_protocol


WEIGHTS = "model.safetensors"


def conditions(shares: list[float]) -> dict[str, Reduction | None]:
    """Whole histories, each share of the lowest level left out, and the targets left out, by name."""
    reductions = [*(Reduction(low_level_share=share) for share in shares), Reduction(targets=True)]
    return {"whole": None} | {str(reduction): reduction for reduction in reductions}


def finished_runs(results: Path, names: list[str] | None, seeds: list[int]) -> dict[str, list[Path]]:
    """The folders of each model's runs, one per seed; by default of the models that have them all.

    Raises:
        ValueError: a run that is missing or not finished, or none at all.
    """
    runs = {name: [run_folder(results, name, seed) for seed in seeds] for name in names or MODELS}
    missing = {name: [run.name for run in of if not (run / WEIGHTS).is_file()] for name, of in runs.items()}
    if names is None:
        runs = {name: of for name, of in runs.items() if not missing[name]}
    elif lacking := sum(missing.values(), []):
        raise ValueError(f"`--models`: expected finished runs in {results}, found none of {lacking}")
    if not runs:
        raise ValueError(f"{results}: expected a model with finished runs of the seeds {seeds}, found none")
    return runs


def score_run(table: SequenceTable, run: Path, protocol: str, args: argparse.Namespace) -> dict[str, dict]:
    """Scores of a run and of the baselines, condition by condition, or what an earlier call recorded."""
    with (run / WEIGHTS).open("rb") as file:
        weights = hashlib.file_digest(file, "sha256").hexdigest()
    asked = {"num_beams": args.num_beams, "max_users": args.max_users}
    asked |= {"data_fingerprint": table.fingerprint(), "weights": weights}
    record = run / "robustness.json"
    kept = json.loads(record.read_text(encoding="utf-8")) if record.is_file() else {}
    scores = kept["scores"] if kept.get("asked") == asked else {}
    missing = {name: reduction for name, reduction in conditions(args.shares).items() if name not in scores}
    if missing:
        recommender = Recommender(*load_checkpoint(run), table, args.num_beams)
        for name, reduction in missing.items():
            options = {"protocol": protocol, "max_users": args.max_users, "reduce_histories": reduction}
            scores[name] = evaluate_tasks(recommender, "test", ["target"], **options)["target"]
            keep(record, {"asked": asked, "scores": scores})
    return scores


def as_markdown(results: dict[str, list[dict]], table: SequenceTable, protocol: str, args: argparse.Namespace) -> str:
    """A line for each baseline and model, a column for each condition."""
    weakest = " and ".join(
        name for name, rank in zip(table.schema.names, level_ranks(table.schema), strict=True) if rank == 1
    )
    header = ["whole", *(f"{share:.0%} fewer {weakest}" if share < 1 else f"no {weakest}" for share in args.shares)]
    header.append("without the targets")
    first = next(iter(results.values()))[0]
    rows = {name.replace("_", " "): [(first, name)] for name in BASELINES}
    rows |= {name: [(scores, "model") for scores in of_seeds] for name, of_seeds in results.items()}
    lines = [
        f"**{args.metric}** on the target task ({args.data.name}, {protocol}, "
        f"{first['whole']['model']['overall']['n']} cases, seeds {args.seeds})",
        "",
        "| | " + " | ".join(header) + " |",
        "|---" * (len(header) + 1) + "|",
    ]
    for label, of_seeds in rows.items():
        cells = [
            cell([scores[condition][key]["overall"][args.metric] for scores, key in of_seeds])
            for condition in conditions(args.shares)
        ]
        lines.append(f"| {label} | " + " | ".join(cells) + " |")
    return "\n".join(lines) + "\n"


def main(argv: list[str] | None = None) -> dict[str, list[dict]]:
    parser = argparse.ArgumentParser(description="Score finished runs on reduced histories.")
    parser.add_argument("data", type=Path, help="folder written by `mbgen prepare`")
    parser.add_argument("results", type=Path, help="output folder of compare_models.py")
    parser.add_argument("--models", help="names as `compare_models.py` has them (default: all with every seed)")
    parser.add_argument("--seeds", default="0")
    parser.add_argument("--shares", type=lambda text: [float(share) for share in text.split(",")],
        default=[0.25, 0.5, 0.75, 1.0], help="of the lowest level to leave out (default: the paper's)")  # fmt: skip
    parser.add_argument("--metric", default="ndcg@10", help="hr, recall or ndcg @1, @5 or @10 (default: ndcg@10)")
    parser.add_argument("--num-beams", type=int, default=20)
    parser.add_argument("--max-users", type=int, help="a random sample of so many cases (default: all)")
    parser.add_argument("--users", type=int, help="the fixed random sample of users the runs were trained on")
    parser.add_argument("--output", type=Path, help="file of the table (default: robustness.md in RESULTS)")
    args = parser.parse_args(argv)
    if args.metric not in (known := [f"{kind}@{k}" for kind in ("hr", "recall", "ndcg") for k in (1, 5, 10)]):
        raise ValueError(f"`--metric`: expected one of {known}, found {args.metric!r}")
    table = SequenceTable.load(args.data)
    if args.users is not None:
        table = table.sample_users(args.users)
    seeds = [int(seed) for seed in args.seeds.split(",")]
    runs = finished_runs(args.results, args.models and args.models.split(","), seeds)
    protocols = {trained_protocol(run) for of_seeds in runs.values() for run in of_seeds}
    if len(protocols) > 1:
        raise ValueError(f"`--models`: expected runs trained under one protocol, found {sorted(protocols)}")
    protocol = protocols.pop()
    results = {name: [score_run(table, run, protocol, args) for run in of] for name, of in runs.items()}
    text = as_markdown(results, table, protocol, args)
    (args.output or args.results / "robustness.md").write_text(text, encoding="utf-8")
    print(text)
    return results


if __name__ == "__main__":
    main()
