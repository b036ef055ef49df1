"""The balance report as a picture; needs matplotlib (`pip install mbgen-hf[plots]`)."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from mbgen_hf.item_ids.unique_digit import cell_numbers


def draw_balance(codes: np.ndarray, code_sizes: Sequence[int], file: str | Path) -> None:
    """Draw, for each level, the items of every combination of codes up to it, largest first, beside an even spread.

    Args:
        codes: `(num_items, levels)` codes.
        code_sizes: ids of each level.
        file: where the picture goes, such as `balance.png`.

    Raises:
        ValueError: matplotlib is not installed.
    """
    try:
        from matplotlib.figure import Figure
    except ImportError as error:
        raise ValueError("`picture`: expected matplotlib, found none; run `pip install mbgen-hf[plots]`") from error
    # At the last level every combination holds one item or none.
    levels = range(max(codes.shape[1] - 1, 1))
    figure = Figure(figsize=(4 * len(levels), 3), layout="constrained")
    axes = figure.subplots(1, len(levels), squeeze=False)[0]
    possible = 1
    for level, axis in zip(levels, axes, strict=True):
        possible *= int(code_sizes[level])
        counts = np.sort(np.bincount(cell_numbers(codes[:, : level + 1])))[::-1]
        axis.plot(np.arange(1, len(counts) + 1), counts, drawstyle="steps-mid", label="items")
        axis.axhline(len(codes) / possible, color="gray", linestyle="--", label="even spread")
        axis.set(
            title=f"codes 1 to {level + 1}: {len(counts)} of {possible} used", xlabel="combination, largest first"
        )
        axis.set_ylim(bottom=0)
    axes[0].set_ylabel("items")
    axes[0].legend()
    figure.savefig(file, dpi=90)


__all__ = ["draw_balance"]
