from __future__ import annotations

import itertools

import numpy as np
import pytest
import torch
from sklearn.cluster import KMeans
from sklearn.metrics import adjusted_rand_score, normalized_mutual_info_score
from torch import Tensor

from sslkit.nn import clustering
from sslkit.nn.clustering import (
    adjusted_rand_index,
    contingency,
    kmeans,
    matched_accuracy,
    nearest_centres,
    normalized_mutual_information,
)


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def blobs(k: int, each: int, width: int = 5, spread: float = 0.1) -> tuple[Tensor, Tensor]:
    """Rows in k far groups, shuffled, and their group."""
    centres = 5.0 * torch.randn(k, width, generator=generator(1))
    labels = torch.arange(k).repeat(each)[torch.randperm(k * each, generator=generator(2))]
    return centres[labels] + spread * torch.randn(k * each, width, generator=generator(3)), labels


def draws(k: int, seed: int = 0) -> Tensor:
    return torch.rand(k, generator=generator(seed), dtype=torch.float64)


def test_far_groups_are_found() -> None:
    features, labels = blobs(4, 30)
    found = kmeans(features, draws(4))
    clusters, distances = nearest_centres(features, found.centres)
    assert matched_accuracy(contingency(labels, clusters, 4, 4)) == 1.0
    assert found.inertia == pytest.approx(float(distances.double().sum()))
    for cluster in range(4):
        torch.testing.assert_close(found.centres[cluster], features[clusters == cluster].mean(0))


@pytest.mark.parametrize("block", [1 << 24, 37])
def test_iterations_are_those_of_scikit_learn(block: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """From the same starts, on rows without structure, where many iterations are needed."""
    monkeypatch.setattr(clustering, "_BLOCK_ELEMENTS", block)
    features = torch.randn(400, 6, generator=generator())
    starts = clustering._starts(features, draws(7))
    expected = KMeans(7, init=starts.numpy(), n_init=1, tol=0.0, max_iter=300, algorithm="lloyd")
    expected.fit(features.numpy())
    found = kmeans(features, draws(7), max_iterations=300)
    assert found.inertia == pytest.approx(expected.inertia_, rel=1e-5)
    torch.testing.assert_close(found.centres, torch.from_numpy(expected.cluster_centers_).float())
    assert found.iterations > 5


def test_distances_are_those_of_all_pairs() -> None:
    features = torch.randn(50, 4, generator=generator())
    centres = torch.randn(9, 4, generator=generator(1))
    clusters, distances = nearest_centres(features, centres)
    expected = torch.cdist(features, centres).square().min(dim=1)
    assert torch.equal(clusters, expected.indices)
    torch.testing.assert_close(distances, expected.values, rtol=1e-4, atol=1e-5)


def test_equal_draws_give_equal_bits_and_others_others() -> None:
    features = torch.randn(300, 6, generator=generator())
    first, again = kmeans(features, draws(8)), kmeans(features, draws(8))
    assert torch.equal(first.centres, again.centres)
    assert not torch.equal(first.centres, kmeans(features, draws(8, seed=1)).centres)


def test_starts_are_drawn_by_squared_distance() -> None:
    """Rows at 0, 0, 0, 1 and 3: after the start at 0 the others are taken with 1 : 9."""
    features = torch.tensor([[0.0], [0.0], [0.0], [1.0], [3.0]])
    second = [
        float(clustering._starts(features, torch.tensor([0.1, draw], dtype=torch.float64))[1])
        for draw in np.arange(0.005, 1.0, 0.01)
    ]
    assert second.count(1.0) == 10
    assert second.count(3.0) == 90


def test_a_cluster_that_lost_its_rows_goes_on_elsewhere() -> None:
    features = torch.tensor([[0.0], [0.1], [5.0], [9.0]])
    clusters = torch.tensor([0, 0, 0, 2])
    distances = torch.tensor([0.0, 0.01, 25.0, 0.0])
    centres = clustering._means(features, clusters, distances, 3)
    torch.testing.assert_close(centres, torch.tensor([[1.7], [5.0], [9.0]]))


def test_equal_rows_and_too_few_rows() -> None:
    found = kmeans(torch.ones(6, 3), draws(3))
    assert found.inertia == 0.0
    assert bool(found.centres.isfinite().all())
    with pytest.raises(ValueError, match="4 clusters cannot be made of 3 rows"):
        kmeans(torch.ones(3, 3), draws(4))


# --- Agreement ------------------------------------------------------------------------------------


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize(("classes", "k"), [(4, 4), (3, 7), (6, 2)])
def test_agreement_is_that_of_scikit_learn(seed: int, classes: int, k: int) -> None:
    labels = torch.randint(classes, (200,), generator=generator(seed))
    noise = torch.randint(k, (200,), generator=generator(seed + 100))
    clusters = torch.where(
        torch.rand(200, generator=generator(seed + 200)) < 0.5, labels % k, noise
    )
    table = contingency(labels, clusters, classes, k)
    assert int(table.sum()) == 200
    nmi = normalized_mutual_info_score(labels.numpy(), clusters.numpy())
    ari = adjusted_rand_score(labels.numpy(), clusters.numpy())
    assert normalized_mutual_information(table) == pytest.approx(nmi, abs=1e-12)
    assert adjusted_rand_index(table) == pytest.approx(ari, abs=1e-12)


def test_matching_is_the_best_of_all() -> None:
    table = torch.randint(20, (5, 5), generator=generator())
    best = max(
        sum(int(table[row, column]) for row, column in enumerate(columns))
        for columns in itertools.permutations(range(5))
    )
    assert matched_accuracy(table) == best / int(table.sum())


def test_closed_forms() -> None:
    same = torch.diag(torch.tensor([3, 4, 5]))[:, [2, 0, 1]]
    assert normalized_mutual_information(same) == pytest.approx(1.0)
    assert adjusted_rand_index(same) == 1.0
    assert matched_accuracy(same) == 1.0
    independent = torch.full((2, 2), 5)
    assert normalized_mutual_information(independent) == pytest.approx(0.0, abs=1e-12)
    assert adjusted_rand_index(independent) == pytest.approx(-1 / 18)
    assert matched_accuracy(independent) == 0.5
    one = torch.tensor([[7]])
    assert normalized_mutual_information(one) == 1.0
    assert adjusted_rand_index(one) == 1.0
