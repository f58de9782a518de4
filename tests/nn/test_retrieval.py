from __future__ import annotations

import math
from itertools import permutations

import pytest
import torch
import torch.nn.functional as F
from sklearn.metrics import average_precision_score
from torch import Tensor

from sslkit.nn import retrieval
from sslkit.nn.retrieval import score_retrieval


def data(rows: int, classes: int = 4, width: int = 6, seed: int = 0) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    labels = torch.randint(classes, (rows,), generator=generator)
    features = torch.randn(rows, width, generator=generator)
    return features + F.one_hot(labels, width), labels


def slow(
    queries: Tensor, query_labels: Tensor, gallery: Tensor, labels: Tensor, own: Tensor | None
) -> tuple[dict[int, float], float, int]:
    """One query at a time, by the definitions."""
    recalls: dict[int, list[bool]] = {1: [], 5: []}
    precisions = []
    for number, (query, label) in enumerate(zip(queries, query_labels.tolist(), strict=True)):
        similarity = F.cosine_similarity(query[None], gallery)
        rows = [row for row in range(len(gallery)) if own is None or row != int(own[number])]
        rows.sort(key=lambda row: (-float(similarity[row]), row))
        relevant = [int(labels[row]) == label for row in rows]
        if not any(relevant):
            continue
        for k, found in recalls.items():
            found.append(any(relevant[:k]))
        ranks = [rank for rank, hit in enumerate(relevant, start=1) if hit]
        precisions.append(sum(n / rank for n, rank in enumerate(ranks, start=1)) / len(ranks))
    counted = len(precisions)
    recall = {k: sum(found) / counted for k, found in recalls.items()}
    return recall, sum(precisions) / counted, counted


@pytest.mark.parametrize("block", [1 << 22, 130])
@pytest.mark.parametrize("gallery_block", [1 << 28, 60])
@pytest.mark.parametrize("within", [True, False])
def test_scores_are_those_of_the_definitions(
    within: bool, block: int, gallery_block: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(retrieval, "_BLOCK_ELEMENTS", block)
    monkeypatch.setattr(retrieval, "_GALLERY_ELEMENTS", gallery_block)
    gallery, labels = data(45)
    labels[7] = 9  # a class of one image: nothing to be found for it within the set
    rows = torch.tensor([0, 3, 7, 8, 20, 44])
    queries, query_labels = (gallery[rows], labels[rows]) if within else data(30, seed=1)
    own = rows if within else None
    found = score_retrieval(queries, query_labels, gallery, labels, ks=(1, 5), own=own)
    recall, precision, counted = slow(queries, query_labels, gallery, labels, own)
    assert found.queries == counted == (5 if within else 30)
    assert found.recall == pytest.approx(recall)
    assert found.mean_average_precision == pytest.approx(precision)


def test_average_precision_is_that_of_scikit_learn() -> None:
    gallery, labels = data(60)
    queries, query_labels = data(10, seed=1)
    similarity = F.normalize(queries) @ F.normalize(gallery).T
    expected = [
        average_precision_score((labels == label).numpy(), row.numpy())
        for row, label in zip(similarity, query_labels, strict=True)
    ]
    found = score_retrieval(queries, query_labels, gallery, labels, ks=(1,))
    assert found.mean_average_precision == pytest.approx(sum(expected) / len(expected))


def test_closed_forms() -> None:
    gallery = torch.tensor([[1.0, 0.0], [1.0, 0.1], [1.0, 0.2], [1.0, 0.3]])
    labels = torch.tensor([0, 1, 0, 1])
    query = torch.tensor([[2.0, 0.0]])  # ranks the gallery in its order
    found = score_retrieval(query, torch.tensor([1]), gallery, labels, ks=(1, 2, 9))
    assert found.recall == {1: 0.0, 2: 1.0, 9: 1.0}
    assert found.mean_average_precision == pytest.approx((1 / 2 + 2 / 4) / 2)


def test_equal_similarities_have_the_mean_over_all_orders() -> None:
    """Against every order of the rows, one by one."""
    query = torch.tensor([[1.0, 0.0]])
    gallery = torch.tensor([[1.0, 0.0], [1.0, 0.5], [2.0, 1.0], [3.0, 1.5], [4.0, 2.0], [0.0, 1.0]])
    labels = torch.tensor([1, 0, 1, 0, 1, 0])  # the first, four that tie, and the last
    precisions, recalls = [], dict.fromkeys((1, 2, 3, 5), 0.0)
    orders = list(permutations((1, 2, 3, 4)))
    for order in orders:
        hits = [rank for rank, row in enumerate((0, *order, 5), start=1) if labels[row] == 0]
        precisions.append(sum(n / rank for n, rank in enumerate(hits, start=1)) / len(hits))
        for k in recalls:
            recalls[k] += (hits[0] <= k) / len(orders)
    found = score_retrieval(query, torch.tensor([0]), gallery, labels, ks=tuple(recalls))
    assert found.mean_average_precision == pytest.approx(sum(precisions) / len(precisions))
    assert found.recall == pytest.approx(recalls)


@pytest.mark.parametrize("points", [1, 3])
@pytest.mark.parametrize("within", [True, False])
def test_the_order_of_collapsed_features_decides_nothing(within: bool, points: int) -> None:
    generator = torch.Generator().manual_seed(0)
    prototypes = torch.randn(points, 37, generator=generator)
    gallery, labels = prototypes[torch.arange(203) % points], torch.randint(10, (203,))
    queries, asked = (gallery, labels) if within else (prototypes, torch.arange(points))
    found = []
    for order in (labels.argsort(), torch.randperm(203, generator=generator)):
        own = order.argsort() if within else None
        found.append(
            score_retrieval(queries, asked, gallery[order], labels[order], ks=(1, 5), own=own)
        )
    torch.testing.assert_close(found[0].precisions, found[1].precisions, equal_nan=True)
    for k in (1, 5):
        torch.testing.assert_close(found[0].recalls[k], found[1].recalls[k], equal_nan=True)
    if within and points == 1:  # of n others r are relevant, anywhere: its expectation
        own_class = labels.bincount()[labels].double() - 1
        expected = sum((1 + (own_class - 1) * (j - 1) / 201) / j for j in range(1, 203)) / 202
        torch.testing.assert_close(found[0].precisions, expected)
        torch.testing.assert_close(found[0].recalls[1], own_class / 202)


def test_no_relevant_image_at_all() -> None:
    gallery, labels = data(5)
    found = score_retrieval(gallery[:2], torch.tensor([8, 9]), gallery, labels, ks=(1,))
    assert found.queries == 0
    assert math.isnan(found.mean_average_precision)
    assert math.isnan(found.recall[1])
