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


def read_curves(folder: Path, models: list[str] | None = None) -> dict[str, list[list[dict]]]:
    """The validation records of every run: model name to one list per seed.

    Args:
        folder: output folder of `compare_models.py`.
        models: names of the models, in their order; all by default.

    Raises:
        ValueError: the folder holds no finished run, or none of a model.
    """
    curves: dict[str, list[list[dict]]] = {name: [] for name in models or []}
    for run in sorted(folder.glob("*-seed*")):
        history, key = run / HISTORY_FILE, run.name.rpartition("-seed")[0]
        # Folders have the names without spaces.
        name = next((model for model in models or [key] if model.replace(" ", "") == key), None)
        if name is not None and history.is_file():
            records = json.loads(history.read_text(encoding="utf-8"))
            curves.setdefault(name, []).append([record for record in records if "eval_loss" in record])
    if missing := [name for name, runs in curves.items() if not runs]:
        raise ValueError(f"`--models`: expected models with a finished run in {folder}, found none of {missing}")
    if not curves:
        raise ValueError(f"{folder}: expected runs of `compare_models.py`, found none that is finished")
    return curves


def draw(curves: dict[str, list[list[dict]]], output: Path, title: str) -> None:
    """Write the picture; its kind follows from the name's ending."""
    import matplotlib

    matplotlib.use("agg")
    from matplotlib import pyplot
    from matplotlib.ticker import LogLocator

    figure, axes = pyplot.subplots(1, len(PANELS), figsize=(4 * len(PANELS), 3.6), layout="constrained")
    for axis, (key, label) in zip(axes, PANELS.items(), strict=True):
        for color, (name, runs) in zip(cycle(COLORS), curves.items(), strict=False):
            for number, records in enumerate(runs):
                points = [(record["step"], record[key]) for record in records if key in record]
                axis.plot(*zip(*points, strict=True), color=color, marker=".", lw=1.4, label=None if number else name)
        axis.set(title=label, xlabel="steps", xscale="log")
        axis.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
        axis.xaxis.set_major_formatter("{x:g}")
        axis.xaxis.set_minor_formatter("")
        if key != "eval_loss":
            axis.set_ylim(bottom=0)
        axis.grid(alpha=0.3)
    legend = {"loc": "outside lower center", "ncols": min(len(curves), 6), "frameon": False}
    figure.legend(*axes[0].get_legend_handles_labels(), **legend)
    figure.suptitle(title)
    output.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(output, dpi=110)
    pyplot.close(figure)


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description="Draw the validation curves of finished runs.")
    parser.add_argument("folder", type=Path, help="output folder of compare_models.py")
    parser.add_argument("picture", type=Path, help="file to write, .png or .svg")
    parser.add_argument("--models", help="names as `compare_models.py` has them (default: all)")
    parser.add_argument("--title", default="")
    args = parser.parse_args(argv)
    draw(read_curves(args.folder, args.models and args.models.split(",")), args.picture, args.title)


if __name__ == "__main__":
    main()
