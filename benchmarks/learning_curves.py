"""Draw the validation curves of the runs that `compare_models.py` left in a folder.

    python benchmarks/learning_curves.py results/shop docs/pictures/shop_curves.png

One line per model and seed: HR@10 on the target task of the validation sample, of targets the user had touched before
and of new ones, and the validation loss, against the steps taken. Needs the `plots` extra.
"""

import argparse
import json
from itertools import cycle
from pathlib import Path

from mbgen_hf.training.checkpoint import HISTORY_FILE


PANELS = {
    "eval_hr@10_repeat": "HR@10, touched before",
    "eval_hr@10_new": "HR@10, new",
    "eval_ndcg@10": "NDCG@10",
    "eval_loss": "loss",
}
COLORS = ("#1b6ca8", "#d1495b", "#2e8b57", "#8d5a97", "#edae49", "#555555", "#00a6a6", "#a0522d")


def read_curves(folder: Path) -> dict[str, list[list[dict]]]:
    """The validation records of every run: model name to one list per seed.

    Raises:
        ValueError: the folder holds no finished run.
    """
    curves: dict[str, list[list[dict]]] = {}
    for run in sorted(folder.glob("*-seed*")):
        history = run / HISTORY_FILE
        if history.is_file():
            records = json.loads(history.read_text(encoding="utf-8"))
            name = run.name.rpartition("-seed")[0]
            curves.setdefault(name, []).append([record for record in records if "eval_loss" in record])
    if not curves:
        raise ValueError(f"{folder}: expected runs of `compare_models.py`, found none that is finished")
    return curves


def draw(curves: dict[str, list[list[dict]]], output: Path, title: str) -> None:
    """Write the picture; its kind follows from the name's ending."""
    import matplotlib

    matplotlib.use("agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(1, len(PANELS), figsize=(4 * len(PANELS), 3.6), layout="constrained")
    for axis, (key, label) in zip(axes, PANELS.items(), strict=True):
        for color, (name, runs) in zip(cycle(COLORS), curves.items(), strict=False):
            for number, records in enumerate(runs):
                points = [(record["step"], record[key]) for record in records if key in record]
                axis.plot(*zip(*points, strict=True), color=color, marker=".", lw=1.4, label=None if number else name)
        axis.set(title=label, xlabel="steps")
        if key != "eval_loss":
            axis.set_ylim(bottom=0)
        axis.grid(alpha=0.3)
    figure.legend(*axes[0].get_legend_handles_labels(), loc="outside lower center", ncols=len(curves), frameon=False)
    figure.suptitle(title)
    output.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(output, dpi=110)
    pyplot.close(figure)


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description="Draw the validation curves of finished runs.")
    parser.add_argument("folder", type=Path, help="output folder of compare_models.py")
    parser.add_argument("picture", type=Path, help="file to write, .png or .svg")
    parser.add_argument("--title", default="")
    args = parser.parse_args(argv)
    draw(read_curves(args.folder), args.picture, args.title)


if __name__ == "__main__":
    main()
