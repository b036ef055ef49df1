"""The recency analysis as a picture; needs matplotlib (`pip install mbgen-hf[plots]`)."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from mbgen_hf.evaluation.recency_analysis import RecencyAnalysis


COLORS = {"leave_one_out": "#1b6ca8", "session_wise": "#d1495b"}


def draw_recency(logs: Sequence[tuple[str, Sequence[RecencyAnalysis]]], file: str | Path) -> None:
    """Draw figure 2 of GAMER: a panel for each log, a color for each protocol, dashed without the latest hints.

    Args:
        logs: name and analyses of each log.
        file: where the picture goes, such as `recency.png`.

    Raises:
        ValueError: matplotlib is not installed, or it does not know the file's ending.
    """
    try:
        from matplotlib.figure import Figure
    except ImportError as error:
        raise ValueError("`picture`: expected matplotlib, found none; run `pip install mbgen-hf[plots]`") from error
    figure = Figure(figsize=(4.6 * len(logs), 3.8), layout="constrained")
    axes = figure.subplots(1, len(logs), squeeze=False, sharey=True)[0]
    for axis, (name, analyses) in zip(axes, logs, strict=True):
        for analysis in analyses:
            color = COLORS[analysis.protocol]
            ks = np.arange(1, len(analysis.whole) + 1)
            label = analysis.protocol.replace("_", "-")
            axis.plot(ks, analysis.whole, color=color, label=label)
            axis.plot(ks, analysis.without_hint, color=color, linestyle="--", label=f"{label}, without the hint")
        axis.set(title=f"{name}, {analyses[0].target}", xlabel="k latest distinct items", xscale="log", ylim=(0, 1))
        axis.set_xticks([1, 2, 5, 10, 20, 50], ["1", "2", "5", "10", "20", "50"])
        axis.minorticks_off()
        axis.grid(alpha=0.3)
        axis.legend(frameon=False, fontsize=8)
    axes[0].set_ylabel("share of the targets among them")
    figure.savefig(file, dpi=110)


__all__ = ["draw_recency"]
