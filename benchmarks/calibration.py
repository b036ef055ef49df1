"""Draw how calibrated checkpoints are on items of the history and on others, on the target task.

    python benchmarks/calibration.py data/shop --protocol session_wise --output docs/pictures/shop_calibration.png \
        runs/gamer runs/gamer_copying

Prints a table and, with --output, draws the reliability of the listed items: points on the diagonal are calibrated.
Needs the `plots` extra for the picture.
"""

import argparse
from pathlib import Path

import numpy as np

from mbgen_hf import Recommender, SequenceTable, load_checkpoint
from mbgen_hf.evaluation.calibration import CalibrationReport, calibration
from mbgen_hf.evaluation.evaluator import sample
from mbgen_hf.evaluation.protocols import PROTOCOLS, protocol_cases, task_cases


COLUMNS = ("history_items", "listed_history_items", "history_mass", "history_share", "new_mass", "new_share")


def measure(table: SequenceTable, checkpoint: Path, args: argparse.Namespace) -> CalibrationReport:
    """The calibration of one checkpoint on a sample of the test cases of the target task."""
    model, tokenizer = load_checkpoint(checkpoint)
    cases = task_cases(protocol_cases(table, args.protocol, "test", tokenizer.max_history), "target", table.schema)
    cases = cases.select(sample(np.arange(len(cases)), args.max_users))
    answers = Recommender(model, tokenizer, table, args.num_beams).recommend(cases, args.k, cases.behavior)
    return calibration(table, cases, answers)


def as_table(reports: dict[str, CalibrationReport]) -> str:
    """One line per checkpoint."""
    lines = ["| | " + " | ".join([*COLUMNS, "error history", "error new"]) + " |", "|---" * (len(COLUMNS) + 3) + "|"]
    for name, report in reports.items():
        cells = [f"{getattr(report, column):.4f}" for column in COLUMNS]
        cells += [f"{report.history.error:.4f}", f"{report.new.error:.5f}"]
        lines.append(f"| {name} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def draw(reports: dict[str, CalibrationReport], output: Path, title: str) -> None:
    """Reliability of the listed items of either kind, on logarithmic axes."""
    import matplotlib

    matplotlib.use("agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(1, 2, figsize=(9, 4.2), layout="constrained", sharex=True, sharey=True)
    for axis, kind, label in zip(axes, ("history", "new"), ("items of the history", "other items"), strict=True):
        axis.plot([1e-6, 1], [1e-6, 1], color="#999999", lw=1)
        for name, report in reports.items():
            curve = getattr(report, kind)
            shown = (curve.counts >= 20) & (curve.observed > 0)
            axis.plot(curve.predicted[shown], curve.observed[shown], marker="o", ms=4, lw=1.2, label=name)
        axis.set(title=label, xlabel="probability given", ylabel="share that came true", xscale="log", yscale="log")
        axis.set(xlim=(1e-5, 1.2), ylim=(1e-5, 1.2))
        axis.grid(alpha=0.3)
    axes[0].legend(frameon=False)
    figure.suptitle(title)
    output.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(output, dpi=110)
    pyplot.close(figure)


def main(argv: list[str] | None = None) -> dict[str, CalibrationReport]:
    parser = argparse.ArgumentParser(description="Measure and draw the calibration of checkpoints.")
    parser.add_argument("data", type=Path, help="folder written by `mbgen prepare`")
    parser.add_argument("checkpoints", type=Path, nargs="+")
    parser.add_argument("--protocol", choices=PROTOCOLS, default="leave_one_out")
    parser.add_argument("--users", type=int, help="the fixed random sample of users the runs were trained on")
    parser.add_argument("--max-users", type=int, default=3000, help="a random sample of so many cases")
    parser.add_argument("--num-beams", type=int, default=50)
    parser.add_argument("-k", type=int, default=20, help="length of the lists")
    parser.add_argument("--output", type=Path, help="picture to write, .png or .svg")
    parser.add_argument("--title", default="")
    args = parser.parse_args(argv)
    table = SequenceTable.load(args.data)
    if args.users is not None:
        table = table.sample_users(args.users)
    reports = {checkpoint.name: measure(table, checkpoint, args) for checkpoint in args.checkpoints}
    print(as_table(reports))
    if args.output:
        draw(reports, args.output, args.title)
    return reports


if __name__ == "__main__":
    main()
