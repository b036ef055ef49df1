import numpy as np
import pytest
import torch
from sklearn.cluster import KMeans

from mbgen_hf.item_ids.grouped_kmeans import grouped_kmeans


NUM_GROUPS, NUM_CLUSTERS = 5, 7


@pytest.fixture(scope="module")
def grouped():
    """Groups of very different sizes far from the origin, one of them (3) empty."""
    generator = torch.Generator().manual_seed(0)
    sizes = [900, 40, 7, 0, 300]
    groups = torch.repeat_interleave(torch.arange(5), torch.tensor(sizes))
    groups = groups[torch.randperm(len(groups), generator=generator)]
    hills = 3 * torch.randn(5 * 6, 8, generator=generator) + 50
    hill = groups * 6 + torch.randint(0, 6, (len(groups),), generator=generator)
    return hills[hill] + torch.randn(len(groups), 8, generator=generator), groups


def test_every_point_is_with_the_nearest_center_of_its_group(grouped):
    points, groups = grouped
    found = grouped_kmeans(points, groups, NUM_GROUPS, NUM_CLUSTERS)
    for point, group, label in zip(points.double(), groups.tolist(), found.labels.tolist(), strict=True):
        distances = (found.centers[group].double() - point).square().sum(1)
        assert distances[label] <= distances.min() + 1e-3
    for group in range(NUM_GROUPS):
        own = points[groups == group].double()
        chosen = found.centers[group, found.labels[groups == group]].double()
        assert found.inertia[group] == pytest.approx((own - chosen).square().sum().item(), rel=1e-4, abs=1e-3)


def test_centers_are_the_means_of_their_points(grouped):
    points, groups = grouped
    found = grouped_kmeans(points, groups, NUM_GROUPS, NUM_CLUSTERS, max_rounds=200, tolerance=0.0)
    for group in range(NUM_GROUPS):
        for cluster in range(NUM_CLUSTERS):
            mine = points[(groups == group) & (found.labels == cluster)]
            if len(mine):
                torch.testing.assert_close(found.centers[group, cluster], mine.mean(0), atol=1e-3, rtol=0)
            else:
                assert found.centers[group, cluster].isinf().all()


def test_it_clusters_as_well_as_scikit_learn(grouped):
    points, groups = grouped
    ours = [grouped_kmeans(points, groups, NUM_GROUPS, NUM_CLUSTERS, seed).inertia.sum() for seed in range(8)]
    theirs = [
        sum(
            KMeans(NUM_CLUSTERS, n_init=1, random_state=seed).fit(points[groups == group].numpy()).inertia_
            for group in (0, 1, 2, 4)
        )
        for seed in range(8)
    ]
    assert np.mean(ours) == pytest.approx(np.mean(theirs), rel=0.03)


def test_small_groups_get_a_cluster_for_each_point(grouped):
    points, groups = grouped
    found = grouped_kmeans(points, groups, NUM_GROUPS, NUM_CLUSTERS)
    assert sorted(found.labels[groups == 2].tolist()) == list(range(7))
    repeated = torch.tensor([[1.0, 1.0]] * 5 + [[4.0, 4.0]] * 2)
    found = grouped_kmeans(repeated, torch.zeros(7, dtype=torch.long), 1, 4)
    assert len(set(found.labels[:5].tolist())) == len(set(found.labels[5:].tolist())) == 1
    assert found.inertia.item() == 0 and (~found.centers[0].isinf().any(1)).sum() == 2


def test_a_group_does_not_depend_on_the_others(grouped):
    """Two far groups with the same points: neither pulls at the other's centres."""
    points, groups = grouped
    own = points[groups == 0]
    both = torch.cat([own, own + 1000])
    labels = torch.arange(2).repeat_interleave(len(own))
    found = grouped_kmeans(both, labels, 2, NUM_CLUSTERS)
    spread = (own - own.mean(0)).square().sum()
    assert (found.inertia < 0.7 * spread).all()


def test_the_seed_decides_and_repeats(grouped):
    points, groups = grouped
    one, two, other = (grouped_kmeans(points, groups, NUM_GROUPS, NUM_CLUSTERS, seed) for seed in (1, 1, 2))
    assert torch.equal(one.labels, two.labels) and torch.equal(one.centers, two.centers)
    assert not torch.equal(one.labels, other.labels)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"points": torch.zeros(3)}, "`points`: expected shape"),
        ({"points": torch.full((4, 2), torch.nan)}, "`points`: expected finite"),
        ({"groups": torch.tensor([0, 1, 2, 0])}, "`groups`: expected values from 0 to 1"),
        ({"num_clusters": 0}, "`num_clusters`: expected at least 1"),
    ],
)
def test_bad_input_is_refused(change, message):
    arguments = {"points": torch.zeros(4, 2), "groups": torch.tensor([0, 1, 1, 0]), "num_groups": 2, "num_clusters": 2}
    with pytest.raises(ValueError, match=message):
        grouped_kmeans(**arguments | change)
