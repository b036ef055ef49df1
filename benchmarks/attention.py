"""Measure and draw where checkpoints look when they predict the next item, on the target task.

    python benchmarks/attention.py data/shop --protocol session_wise --output docs/pictures/shop_attention \
        --json shop_attention.json runs/gamer runs/gamer_copying

Prints a table, a line for each layer; with --output also writes a picture for each checkpoint, named by its folder or
by --names, which needs the `plots` extra.
"""

import argparse
import json
import re
from pathlib import Path

import numpy as np

from mbgen_hf import SequenceTable, load_checkpoint
from mbgen_hf.evaluation.attention import AttentionReport, LayerAttention, attention_report
from mbgen_hf.evaluation.evaluator import sample
from mbgen_hf.evaluation.protocols import PROTOCOLS, protocol_cases, task_cases


SHOWN_INTERACTIONS = 15
KINDS = {"self-attention": "Blues", "cross-level": "Oranges", "cross-attention": "Blues", "copying": "Greens"}
"""Colors of the layers of each kind, darker the later."""


def measure(table: SequenceTable, checkpoint: Path, args: argparse.Namespace) -> AttentionReport:
    """Where one checkpoint looks, on a sample of the test cases of the target task that have a history."""
    model, tokenizer = load_checkpoint(checkpoint)
    cases = task_cases(protocol_cases(table, args.protocol, "test", tokenizer.max_history), "target", table.schema)
    cases = cases.select(np.flatnonzero(cases.history_end > cases.history_start))
    cases = cases.select(sample(np.arange(len(cases)), args.max_users))
    return attention_report(model, tokenizer, table, cases, args.batch_size)


def as_table(reports: dict[str, AttentionReport]) -> str:
    """One line per layer."""
    columns = ["special", "prompt", "1st", "2nd", "3rd", "target", "evenly", "by place", "lift"]
    columns += ["best head", "found", "latest"]
    lines = ["| | layer | " + " | ".join(columns) + " |", "|---" * (len(columns) + 2) + "|"]
    for name, report in reports.items():
        for layer in report.layers:
            recency = [*layer.recency[:3], np.nan, np.nan, np.nan][:3]
            cells = [layer.special, layer.prompt, *recency]
            if layer.target is not None:
                target = layer.target
                best = target.head_mass.max() / target.uniform if target.uniform else np.nan
                cells += [target.mass, target.uniform, target.place, target.lift, best, target.found, target.latest]
            lines.append(f"| {name} | {layer.name} | " + " | ".join(f"{cell:.3f}" for cell in cells) + " |")
    return "\n".join(lines)


def draw(report: AttentionReport, file: Path, title: str) -> None:
    """Attention by recency, by what it goes to, and its lift on repeated targets."""
    import matplotlib

    matplotlib.use("agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(1, 3, figsize=(13, 4.4), layout="constrained", width_ratios=(1.15, 1, 1))
    colors = _colors(report.layers)
    _draw_recency(axes[0], report, colors)
    _draw_kinds(axes[1], report)
    _draw_lift(axes[2], report, colors)
    figure.suptitle(title)
    file.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(file, dpi=90)
    pyplot.close(figure)


def _colors(layers: tuple[LayerAttention, ...]) -> list:
    from matplotlib import colormaps

    kinds = [layer.name.partition(" ")[0] for layer in layers]
    return [
        colormaps[KINDS[kind]](0.35 + 0.45 * (1 + kinds[:place].count(kind)) / kinds.count(kind))
        for place, kind in enumerate(kinds)
    ]


def _draw_recency(axis, report: AttentionReport, colors: list) -> None:
    for layer, color in zip(report.layers, colors, strict=True):
        shown = layer.recency[:SHOWN_INTERACTIONS]
        axis.plot(np.arange(1, len(shown) + 1), shown, color=color, marker="o", ms=3, lw=1.4, label=layer.name)
    uniform = report.layers[0].uniform_recency[:SHOWN_INTERACTIONS]
    axis.plot(np.arange(1, len(uniform) + 1), uniform, color="#555555", ls="--", lw=1, label="evenly over all")
    axis.set(title="on each interaction", xlabel="interactions ago", ylabel="attention", ylim=(0, None))
    axis.set_xticks(np.arange(1, len(uniform) + 1, 2))
    axis.grid(alpha=0.3)
    axis.legend(frameon=False, fontsize=8)


def _draw_kinds(axis, report: AttentionReport) -> None:
    """Stacked bars, a layer each: special tokens, the prompt, and the history by behavior."""
    from matplotlib import colormaps

    evenly = report.layers[0]
    names = [*(layer.name for layer in report.layers), "evenly over all"]
    history = np.stack([*(layer.behaviors for layer in report.layers), evenly.uniform_behaviors])
    parts = {
        "special tokens": np.array([*(layer.special for layer in report.layers), evenly.uniform_special]),
        "prompt": np.array([*(layer.prompt for layer in report.layers), evenly.uniform_prompt]),
    } | {f"history, {name}": history[:, label] for label, name in enumerate(report.behaviors)}
    last = max(len(report.behaviors) - 1, 1)
    shades = ["#bbbbbb", "#777777", *(colormaps["viridis"](0.15 + 0.75 * i / last) for i in range(last + 1))]
    left = np.zeros(len(names))
    for (label, widths), shade in zip(parts.items(), shades, strict=False):
        if widths.any():
            axis.barh(names, widths, left=left, height=0.7, color=shade, label=label)
            left = left + widths
    axis.invert_yaxis()
    axis.set(title="on what", xlabel="attention", xlim=(0, 1))
    axis.legend(frameon=False, fontsize=8, loc="upper center", bbox_to_anchor=(0.5, -0.16), ncols=3)


def _draw_lift(axis, report: AttentionReport, colors: list) -> None:
    """Lift on the target where it is a repeat: bars for layers, dots for heads."""
    names = [layer.name for layer in report.layers]
    for name, layer, color in zip(names, report.layers, colors, strict=True):
        if layer.target is None or not layer.target.uniform:
            continue
        axis.barh([name], [layer.target.lift], height=0.7, color=color)
        heads = layer.target.head_mass / layer.target.uniform
        if len(heads) > 1:
            axis.scatter(heads, [name] * len(heads), color="black", s=12, zorder=3)
        place = layer.target.place / layer.target.uniform
        axis.scatter([place], [name], marker="|", color="red", s=160, zorder=4)
    axis.scatter([], [], color="black", s=12, label="one head")
    axis.scatter([], [], marker="|", color="red", s=80, label="by place alone")
    axis.axvline(1, color="#555555", ls="--", lw=1, label="spread evenly")
    axis.invert_yaxis()
    axis.set(title="on the target where it is a repeat", xlabel="times evenly spread attention")
    axis.set_xlim(left=0)
    axis.legend(frameon=False, fontsize=8, loc="upper center", bbox_to_anchor=(0.5, -0.16), ncols=3)


def main(argv: list[str] | None = None) -> dict[str, AttentionReport]:
    parser = argparse.ArgumentParser(description="Measure and draw where checkpoints look.")
    parser.add_argument("data", type=Path, help="folder written by `mbgen prepare`")
    parser.add_argument("checkpoints", type=Path, nargs="+")
    parser.add_argument("--protocol", choices=PROTOCOLS, default="leave_one_out")
    parser.add_argument("--users", type=int, help="the fixed random sample of users the runs were trained on")
    parser.add_argument("--max-users", type=int, default=3000, help="a random sample of so many cases")
    parser.add_argument("--batch-size", type=int, default=64)
    parser.add_argument("--names", help="names of the checkpoints, separated by commas; their folders' by default")
    parser.add_argument("--output", type=Path, help="start of the pictures' names, such as pictures/shop")
    parser.add_argument("--json", type=Path, help="file to write every figure to")
    parser.add_argument("--title", default="")
    args = parser.parse_args(argv)
    names = [path.name for path in args.checkpoints] if args.names is None else args.names.split(",")
    if len(set(names)) != len(args.checkpoints):
        raise ValueError(f"`--names`: expected {len(args.checkpoints)} different names, found {names}")
    table = SequenceTable.load(args.data)
    if args.users is not None:
        table = table.sample_users(args.users)
    reports = {name: measure(table, path, args) for name, path in zip(names, args.checkpoints, strict=True)}
    print(as_table(reports))
    for name, report in reports.items():
        print(
            f"{name}: {report.num_cases} cases, {report.num_repeats} repeats, {report.history:.2f} interactions "
            f"shown, the latest holds a repeated target in {report.latest_is_target:.3f}"
        )
        if report.copy_gate is not None:
            gate = ", ".join(f"{group} {value:.3f}" for group, value in report.copy_gate.items())
            print(f"{name}: probability of copying {gate}")
        if args.output:
            slug = re.sub(r"[^a-z0-9]+", "_", name.lower()).strip("_")
            file = args.output.with_name(f"{args.output.name}_{slug}.png")
            draw(report, file, " ".join(filter(None, [name, args.title])))
    if args.json:
        values = {name: report.as_dict() for name, report in reports.items()}
        args.json.write_text(json.dumps(values, indent=1) + "\n", encoding="utf-8")
    return reports


if __name__ == "__main__":
    main()
