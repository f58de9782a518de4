from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from sslkit.builtin.protocols.knn import KNN
from sslkit.interfaces import Facts, FeatureBank, Subject
from sslkit.nn import classification
from sslkit.nn.classification import (
    knn_predict,
    mean_class_accuracy,
    nearest_rows,
    top1_accuracy,
)


def slow_knn(
    train: Tensor, labels: Tensor, query: Tensor, classes: int, k: int, temperature: float
) -> int:
    """One query, in plain Python on float64; ties between neighbours to the first index."""
    q = (query.double() / query.double().norm()).tolist()
    rows = (train.double() / train.double().norm(dim=1, keepdim=True)).tolist()
    cosines = [sum(a * b for a, b in zip(q, row, strict=True)) for row in rows]
    nearest = sorted(range(len(rows)), key=lambda i: (-round(cosines[i], 6), i))[:k]
    scores = [0.0] * classes
    for i in nearest:
        scores[int(labels[i])] += math.exp(cosines[i] / temperature)
    return max(range(classes), key=lambda c: (round(scores[c], 4), -c))


@pytest.mark.parametrize("k", [1, 3, 10, 40])
def test_agrees_with_a_slow_reference_in_several_chunks(
    k: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(classification, "_BLOCK_ELEMENTS", 7 * 40)  # 7 queries at once
    generator = torch.Generator().manual_seed(0)
    train = torch.randn(40, 6, generator=generator)
    labels = torch.randint(4, (40,), generator=generator)
    queries = torch.randn(30, 6, generator=generator)
    fast = knn_predict(train, labels, queries, num_classes=4, k=k, temperature=0.1)
    slow = [slow_knn(train, labels, query, 4, k, 0.1) for query in queries]
    assert fast.tolist() == slow


def test_ties_go_to_the_first_index() -> None:
    train = torch.tensor([[1.0, 0.0]] * 50 + [[0.0, 1.0]] * 50)
    labels = torch.arange(100)
    queries = torch.tensor([[1.0, 0.0], [0.0, 1.0]])
    for k in (1, 2, 10):  # all of the first k of 50 equal rows vote alike: the lowest class wins
        predictions = knn_predict(train, labels, queries, num_classes=100, k=k, temperature=0.1)
        assert predictions.tolist() == [0, 50]
    # 3 of class 1 come first, 47 of class 0 after them: the first three decide.
    labels = torch.tensor([1, 1, 1] + [0] * 97)
    assert knn_predict(train, labels, queries[:1], num_classes=2, k=3, temperature=0.1) == 1
    assert knn_predict(train, labels, queries[:1], num_classes=2, k=7, temperature=0.1) == 0


def test_one_neighbour_on_the_training_set_is_perfect() -> None:
    train = torch.randn(300, 16, generator=torch.Generator().manual_seed(0))
    labels = torch.arange(300) % 7
    predictions = knn_predict(train, labels, train, num_classes=7, k=1, temperature=0.1)
    assert top1_accuracy(predictions, labels) == 1.0


def test_k_above_the_bank_counts_every_row_and_a_small_temperature_is_finite() -> None:
    train = torch.tensor([[1.0, 0.0], [0.9, 0.1], [-1.0, 0.0]])
    labels = torch.tensor([0, 1, 2])
    query = torch.tensor([[1.0, 0.01]])
    assert knn_predict(train, labels, query, num_classes=3, k=99, temperature=1e-3) == 0


def test_collapsed_features_predict_one_class() -> None:
    train, labels = torch.ones(500, 8), torch.arange(500) % 5
    predictions = knn_predict(
        train, labels, torch.ones(9, 8), num_classes=5, k=200, temperature=0.1
    )
    assert predictions.tolist() == [0] * 9


def _subject(labels: Tensor, test_labels: Tensor, num: int = 600) -> Subject:
    generator = torch.Generator().manual_seed(0)
    centres = 3.0 * torch.randn(4, 12, generator=generator)
    true, true_test = torch.arange(num) % 4, torch.arange(400) % 4
    bank = FeatureBank(
        centres[true] + torch.randn(num, 12, generator=generator),
        centres[true_test] + torch.randn(400, 12, generator=generator),
        labels,
        test_labels,
        list("abcd"),
    )
    return Subject("trained", bank, seed=0)


def test_protocol_learns_labels_and_is_at_chance_with_shuffled_ones() -> None:
    labels, test_labels = torch.arange(600) % 4, torch.arange(400) % 4
    found = KNN(KNN.Config(k=20)).evaluate(_subject(labels, test_labels))
    assert found.metrics["top1"] > 0.97
    assert found.metrics["mean_per_class"] == pytest.approx(found.metrics["top1"])  # balanced
    shuffled = labels[torch.randperm(600, generator=torch.Generator().manual_seed(3))]
    found = KNN(KNN.Config(k=20)).evaluate(_subject(shuffled, test_labels))
    assert abs(found.metrics["top1"] - 0.25) < 0.09  # 4 standard errors


def test_mean_class_accuracy_weighs_classes_alike() -> None:
    labels = torch.tensor([0] * 8 + [2] * 2)  # class 1 does not occur
    predictions = torch.tensor([0] * 8 + [0, 2])
    assert top1_accuracy(predictions, labels) == 0.9
    assert mean_class_accuracy(predictions, labels) == 0.75


def test_k_above_the_bank_is_refused_at_validation() -> None:
    def facts(num_images: int, num_classes: int | None) -> Facts:
        return Facts(num_images, 3, (8, 8), num_classes, 16, 1, 1)

    assert not list(KNN.problems(KNN.Config(), facts(200, 10)))
    assert not list(KNN.problems(KNN.Config(), facts(120, None))), "it will be skipped anyway"
    [(field, message)] = KNN.problems(KNN.Config(), facts(120, 10))
    assert field == "k"
    assert "k 200 is above the bank of 120" in message


@pytest.mark.parametrize("k", [1, 7, 30])
@pytest.mark.parametrize("bank_rows", [30, 64, 199])
def test_a_bank_in_blocks_has_the_same_neighbours(
    k: int, bank_rows: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    generator = torch.Generator().manual_seed(0)
    # Of length 4 and therefore exact: 17 different similarities, so that ties cross all blocks.
    train, queries = (torch.randint(2, (n, 16), generator=generator) * 2.0 - 1 for n in (200, 40))
    cosines = (queries @ train.T / 16).double()
    expected = cosines.sort(dim=1, descending=True, stable=True).indices[:, :k].sort(dim=1).values
    monkeypatch.setattr(classification, "_BANK_ROWS", bank_rows)
    monkeypatch.setattr(classification, "_BLOCK_ELEMENTS", 9 * bank_rows)
    similarity, neighbours = nearest_rows(train, queries, k=k, device=train.device)
    assert torch.equal(neighbours, expected)
    assert torch.equal(similarity.double(), cosines.gather(1, expected))


def test_the_sieve_finds_the_highest_values() -> None:
    generator = torch.Generator().manual_seed(0)
    similarity = torch.randint(400, (50, 1003), generator=generator).float()  # many ties
    for k in (1, 3, 14):
        values, columns = classification._highest(similarity, k)
        order = similarity.sort(dim=1, descending=True, stable=True).indices[:, :k].sort(dim=1)
        assert torch.equal(columns, order.values)
        assert torch.equal(values, similarity.gather(1, columns))
