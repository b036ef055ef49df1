"""K-means within many groups of points at once: Lloyd's rounds as batched matrix products over blocks of rows.

Groups differ in size, so each is cut into chunks of equal length and a chunk meets the centres of its group in one
batched product. Padding is at most a chunk per group, and memory beside the points is one block of distances.
"""

import math
from dataclasses import dataclass

import torch
from tqdm import tqdm


BLOCK_CELLS = 1 << 23
"""Distances held at once (32 MiB of float32)."""


@dataclass(frozen=True)
class GroupedClusters:
    """Result of `grouped_kmeans`.

    Args:
        labels: `(num_points,)` cluster of every point within its group.
        centers: `(num_groups, num_clusters, dim)`; rows of clusters without points are infinite.
        inertia: `(num_groups,)` sum of squared distances to the centres, `float64`.
    """

    labels: torch.Tensor
    centers: torch.Tensor
    inertia: torch.Tensor


@torch.no_grad()
def grouped_kmeans(
    points: torch.Tensor,
    groups: torch.Tensor,
    num_groups: int,
    num_clusters: int,
    seed: int = 0,
    max_rounds: int = 50,
    tolerance: float = 1e-4,
    progress: bool = False,
) -> GroupedClusters:
    """An independent k-means in every group, with k-means++ starts.

    A group with fewer distinct points than clusters leaves the others empty. A cluster that runs empty restarts at
    the point of its group farthest from its centre. The same seed gives the same clusters on a CPU with the same
    number of threads.

    Args:
        points (`torch.FloatTensor` of shape `(num_points, dim)`): what to cluster.
        groups (`torch.LongTensor` of shape `(num_points,)`): group of every point, below `num_groups`.
        num_groups: number of groups; some may have no points.
        num_clusters: clusters in a group.
        seed: of the k-means++ draws.
        max_rounds: cap on Lloyd's rounds.
        tolerance: a group is finished when the summed squared shift of its centres is at most this share of the
            mean variance of its dimensions, as in scikit-learn.
        progress: show a bar over the rounds.

    Raises:
        ValueError: shapes that do not fit, points that are not finite, or a size below 1.
    """
    _check(points, groups, num_groups, num_clusters, max_rounds)
    layout = _Layout(points, groups, num_groups, num_clusters)
    centers = layout.spread_starts(torch.Generator().manual_seed(seed))
    labels = torch.zeros(len(points), dtype=torch.long, device=points.device)
    distances = torch.zeros(len(points), device=points.device)
    running = layout.sizes > 0
    limit = tolerance * layout.mean_variance()
    with tqdm(total=max_rounds, desc="k-means", disable=not progress, leave=False) as bar:
        for _ in range(max_rounds):
            layout.assign(centers, running, labels, distances)
            moved = layout.update(centers, running, labels, distances)
            running = running & (moved > limit)
            bar.update()
            if not running.any():
                break
    everywhere = torch.ones_like(running)
    layout.assign(centers, everywhere, labels, distances)
    return layout.result(centers, labels, distances)


class _Layout:
    """Points in group order, cut into chunks of `rows` rows, each of one group.

    Points are taken relative to the mean of their group, so that float32 suffices far from the origin.
    """

    def __init__(self, points: torch.Tensor, groups: torch.Tensor, num_groups: int, num_clusters: int):
        self.num_groups, self.num_clusters = num_groups, num_clusters
        self.order = groups.argsort(stable=True)
        self.groups = groups[self.order]
        self.sizes = torch.bincount(groups, minlength=num_groups)
        self.starts = self.sizes.cumsum(0) - self.sizes
        sums = torch.zeros(num_groups, points.shape[1], dtype=torch.float64, device=points.device)
        sums.index_add_(0, groups, points.double())
        self.means = (sums / self.sizes.clamp(min=1)[:, None]).to(points.dtype)
        self.points = points[self.order] - self.means[self.groups]
        mean_size = len(points) / max(int((self.sizes > 0).sum()), 1)
        self.rows = min(max(1 << int(mean_size).bit_length() >> 1, 16), 256)
        chunks = -(-self.sizes // self.rows)
        self.chunk_group = torch.repeat_interleave(torch.arange(num_groups, device=points.device), chunks)
        first_chunk = (chunks.cumsum(0) - chunks)[self.groups]
        rank = torch.arange(len(points), device=points.device) - self.starts[self.groups]
        self.place = first_chunk * self.rows + rank
        padded = torch.zeros(len(self.chunk_group) * self.rows, points.shape[1], device=points.device)
        padded[self.place] = self.points
        self.padded = padded.view(len(self.chunk_group), self.rows, -1)
        self.chunks_per_block = max(BLOCK_CELLS // (self.rows * num_clusters), 1)

    def mean_variance(self) -> torch.Tensor:
        """`(num_groups,)` mean over dimensions of each group's variance."""
        squares = self.points.square().mean(dim=1)
        total = torch.zeros(self.num_groups, device=squares.device).index_add_(0, self.groups, squares)
        return total / self.sizes.clamp(min=1)

    def spread_starts(self, generator: torch.Generator) -> torch.Tensor:
        """Greedy k-means++: of a few points drawn in proportion to their squared distance from the centres so far,
        the one that lowers the sum of these distances most becomes the next centre."""
        shape = self.num_groups, self.num_clusters, self.points.shape[1]
        centers = torch.full(shape, torch.inf, device=self.points.device)
        nearest = torch.ones(len(self.points), dtype=torch.float64, device=self.points.device)
        trials = 2 + int(math.log(self.num_clusters))
        for cluster in range(self.num_clusters):
            chosen, some = self._draw(nearest, 1 if cluster == 0 else trials, generator)
            if not some.any():
                break
            distances = self._distances_to(self.points[chosen])
            if cluster > 0:
                distances = torch.minimum(distances, nearest[:, None])
            left = torch.zeros(self.num_groups, distances.shape[1], dtype=torch.float64, device=nearest.device)
            best = left.index_add_(0, self.groups, distances).argmin(dim=1)
            winner = chosen.gather(1, best[:, None])[:, 0]
            # A group that has run out of points away from its centres takes no further ones.
            served = some[self.groups]
            nearest = torch.where(served, distances.gather(1, best[self.groups][:, None])[:, 0], 0.0)
            nearest[winner[some]] = 0.0
            centers[some, cluster] = self.points[winner[some]]
        return centers

    def _draw(
        self, weights: torch.Tensor, trials: int, generator: torch.Generator
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """`(num_groups, trials)` points drawn by weight, and whether a group has any weight left."""
        total = weights.cumsum(0)
        ends = (self.starts + self.sizes - 1).clamp(min=0)
        before = torch.where(self.starts > 0, total[(self.starts - 1).clamp(min=0)], 0.0)
        weight = torch.where(self.sizes > 0, total[ends] - before, 0.0)
        # Differences of running sums carry their rounding error.
        some = weight > 1e-12 * total[-1]
        draws = torch.rand(self.num_groups, trials, generator=generator, dtype=torch.float64).to(total.device)
        chosen = torch.searchsorted(total, before[:, None] + draws * weight[:, None], right=True)
        return torch.minimum(torch.maximum(chosen, self.starts[:, None]), ends[:, None]), some

    def _distances_to(self, centers: torch.Tensor) -> torch.Tensor:
        """`(num_points, trials)` squared distances to `(num_groups, trials, dim)` points, `float64`."""
        products = torch.bmm(self.padded, centers.transpose(1, 2)[self.chunk_group])
        products = products.view(-1, centers.shape[1])[self.place]
        lengths = centers.square().sum(-1)[self.groups]
        return (self.points.square().sum(-1, keepdim=True) - 2 * products + lengths).clamp(min=0).double()

    def assign(
        self, centers: torch.Tensor, running: torch.Tensor, labels: torch.Tensor, distances: torch.Tensor
    ) -> None:
        """Nearest centre of the points of running groups, in place; points in group order."""
        lengths = centers.square().sum(-1)
        finite = torch.where(centers.isinf(), 0.0, centers).transpose(1, 2)
        found = torch.zeros(self.padded.shape[:2], dtype=torch.long, device=labels.device)
        squared = torch.zeros(self.padded.shape[:2], device=labels.device)
        wanted = running[self.chunk_group].nonzero()[:, 0]
        for block in wanted.split(self.chunks_per_block):
            group = self.chunk_group[block]
            rows = self.padded[block]
            scores = torch.baddbmm(lengths[group][:, None, :], rows, finite[group], alpha=-2)
            best = scores.min(dim=-1)
            found[block] = best.indices
            squared[block] = (best.values + rows.square().sum(-1)).clamp(min=0)
        mine = running[self.groups]
        labels[mine] = found.view(-1)[self.place[mine]]
        distances[mine] = squared.view(-1)[self.place[mine]]

    def update(
        self, centers: torch.Tensor, running: torch.Tensor, labels: torch.Tensor, distances: torch.Tensor
    ) -> torch.Tensor:
        """Move the centres of running groups to the means of their points, in place.

        Returns:
            `(num_groups,)` summed squared shift, 0 for groups that do not run.
        """
        cell = self.groups * self.num_clusters + labels
        sums = torch.zeros(self.num_groups * self.num_clusters, self.points.shape[1], device=self.points.device)
        sums.index_add_(0, cell, self.points)
        counts = torch.bincount(cell, minlength=len(sums))
        means = (sums / counts.clamp(min=1)[:, None]).view_as(centers)
        filled = (counts > 0).view(centers.shape[:2]) & running[:, None]
        shift = torch.where(filled[:, :, None], means - centers, 0.0)
        centers[filled] = means[filled]
        moved = shift.square().sum((1, 2))
        emptied = running[:, None] & ~filled & ~centers.isinf().any(-1)
        for group in emptied.any(1).nonzero()[:, 0].tolist():
            clusters = emptied[group].nonzero()[:, 0]
            start = int(self.starts[group])
            own = distances[start : start + int(self.sizes[group])]
            far = own.topk(min(len(clusters), len(own)))
            # A group whose points all sit on centres has no use for more.
            far = far.indices[far.values > 0]
            centers[group, clusters[: len(far)]] = self.points[start + far]
            centers[group, clusters[len(far) :]] = torch.inf
            moved[group] += own[far].sum()
        return moved

    def result(self, centers: torch.Tensor, labels: torch.Tensor, distances: torch.Tensor) -> GroupedClusters:
        """Back to the order and origin of the points that were given."""
        cell = self.groups * self.num_clusters + labels
        counts = torch.bincount(cell, minlength=self.num_groups * self.num_clusters).view(centers.shape[:2])
        centers = torch.where((counts > 0)[:, :, None], centers + self.means[:, None, :], torch.inf)
        given = torch.empty_like(labels)
        given[self.order] = labels
        inertia = torch.zeros(self.num_groups, dtype=torch.float64, device=labels.device)
        return GroupedClusters(given, centers, inertia.index_add_(0, self.groups, distances.double()))


def _check(points: torch.Tensor, groups: torch.Tensor, num_groups: int, num_clusters: int, max_rounds: int) -> None:
    if points.ndim != 2 or len(points) == 0 or groups.shape != points.shape[:1]:
        raise ValueError(
            f"`points`: expected shape (num_points, dim) and a group for each, found {tuple(points.shape)} and "
            f"{tuple(groups.shape)} groups"
        )
    if not points.isfinite().all():
        raise ValueError("`points`: expected finite values, found others")
    if groups.min() < 0 or groups.max() >= num_groups:
        raise ValueError(
            f"`groups`: expected values from 0 to {num_groups - 1}, found {int(groups.min())} to {int(groups.max())}"
        )
    for name, value in (("num_clusters", num_clusters), ("max_rounds", max_rounds)):
        if value < 1:
            raise ValueError(f"`{name}`: expected at least 1, found {value}")


__all__ = ["GroupedClusters", "grouped_kmeans"]
