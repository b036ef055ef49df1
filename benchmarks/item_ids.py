"""Time the k-means stage of balanced semantic IDs, beside scikit-learn doing the same group by group.

    python benchmarks/item_ids.py                                   # the goal: 350,000 items, 96 codes
    python benchmarks/item_ids.py --dim 256 --rival-items 20000     # on raw features instead of latent vectors

The stage is the one k-means per first code, on what the first code leaves over. It is timed at full size; the rival
runs on a part of the groups that holds about `--rival-items` items, and ours again on the same part, so that both
sides of the ratio come from one run. Both start by greedy k-means++ once and stop by the same rule.
"""

import argparse
import resource
import time

import numpy as np
import torch
from sklearn.cluster import KMeans

from mbgen_hf.item_ids.grouped_kmeans import GroupedClusters, grouped_kmeans


GOAL_SECONDS = 60
MAX_ROUNDS = 50


def residuals(num_items: int, dim: int, num_groups: int, seed: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Points with some structure, in groups as unequal as the paper's first codes (table 7, IJCAI)."""
    generator = torch.Generator().manual_seed(seed)
    shares = torch.distributions.Gamma(3.6, 1.0).sample((num_groups,))
    groups = torch.multinomial(shares, num_items, replacement=True, generator=generator)
    hills = torch.randn(num_groups * 40, dim, generator=generator)
    hill = groups * 40 + torch.randint(0, 40, (num_items,), generator=generator)
    return hills[hill] + torch.randn(num_items, dim, generator=generator), groups


def timed(points: torch.Tensor, groups: torch.Tensor, args: argparse.Namespace) -> tuple[float, GroupedClusters]:
    """Seconds and result of our k-means."""
    started = time.perf_counter()
    found = grouped_kmeans(points, groups, args.codes, args.codes, args.seed, MAX_ROUNDS)
    return time.perf_counter() - started, found


def rival(points: np.ndarray, groups: np.ndarray, args: argparse.Namespace) -> tuple[float, float]:
    """Seconds and summed inertia of scikit-learn, one group after the other."""
    started, inertia = time.perf_counter(), 0.0
    for group in np.unique(groups):
        own = points[groups == group]
        clusters = min(args.codes, len(own))
        inertia += KMeans(clusters, n_init=1, max_iter=MAX_ROUNDS, random_state=args.seed).fit(own).inertia_
    return time.perf_counter() - started, inertia


def peak_megabytes() -> float:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--items", type=int, default=350_000)
    parser.add_argument("--dim", type=int, default=32, help="width of the vectors (default: 32, the latent width)")
    parser.add_argument("--codes", type=int, default=96, help="first codes, and clusters in each")
    parser.add_argument("--rival-items", type=int, default=100_000)
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args(argv)
    torch.manual_seed(args.seed)
    points, groups = residuals(args.items, args.dim, args.codes, args.seed)
    raw = points.numel() * 4 / 2**20
    before = peak_megabytes()
    seconds, found = timed(points, groups, args)
    sizes = torch.bincount(groups, minlength=args.codes)
    print(f"{args.items} items x {args.dim}, {args.codes} groups of {sizes.min()} to {sizes.max()}, "
          f"{args.codes} clusters each, {torch.get_num_threads()} threads")  # fmt: skip
    print(f"k-means stage: {seconds:.1f} s (goal: {GOAL_SECONDS} s), peak memory {peak_megabytes() - before:.0f} MiB "
          f"above the {raw:.0f} MiB of vectors")  # fmt: skip
    part = groups < int((sizes.cumsum(0) <= args.rival_items).sum().clamp(min=1))
    ours, mine = timed(points[part], groups[part], args)
    theirs, inertia = rival(points[part].numpy(), groups[part].numpy(), args)
    ratio = mine.inertia.sum().item() / inertia
    print(f"{int(part.sum())} items of it: {ours:.2f} s, scikit-learn group by group {theirs:.2f} s: "
          f"{theirs / ours:.2f} times as fast, inertia {ratio:.4f} of its")  # fmt: skip
    return 0 if seconds <= GOAL_SECONDS else 1


if __name__ == "__main__":
    raise SystemExit(main())
