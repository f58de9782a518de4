from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from sslkit.api import FeatureBank, FeatureInput, RunFacts
from sslkit.builtin.evaluators.knn import KNN
from sslkit.nn import classification
from sslkit.nn.classification import (
    Vote,
    knn_correct,
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
    slow = torch.tensor([slow_knn(train, labels, query, 4, k, 0.1) for query in queries])
    for wrong in range(4):
        right = correct(train, labels, queries, (slow + wrong) % 4, num_classes=4, k=k)
        assert right.tolist() == [float(wrong == 0)] * 30


def correct(
    train: Tensor, labels: Tensor, queries: Tensor, asked: Tensor, temperature: float = 0.1,
    *, num_classes: int, k: int,
) -> Tensor:  # fmt: skip
    return knn_correct(train, labels, queries, asked, Vote(k, temperature, num_classes))


def test_ties_share_their_places_and_have_one_answer() -> None:
    # The mean vote over all orders of two A and one B is for A; a fair draw of one row would not
    # always be.
    train = torch.tensor([[1.0, 0.0]] * 3 + [[0.0, 1.0]])
    labels, queries = torch.tensor([0, 0, 1, 1]), torch.tensor([[1.0, 0.0]] * 2)
    found = correct(train, labels, queries, torch.tensor([0, 1]), num_classes=2, k=1)
    assert found.tolist() == [1.0, 0.0]


def test_ties_do_not_depend_on_order_or_number() -> None:
    train = torch.tensor([[1.0, 0.0]] * 50 + [[0.0, 1.0]] * 50)
    queries = torch.tensor([[1.0, 0.0], [0.0, 1.0]])
    # Of one class each, the first 50 share all votes, and any of them is as good as another.
    for k in (1, 2, 10):
        right = correct(
            train, torch.arange(100), queries, torch.tensor([7, 7]), num_classes=100, k=k
        )
        assert right.tolist() == pytest.approx([1 / 50, 0.0])
    # 3 of class 1 come first, 47 of class 0 after them: all share the three places.
    labels = torch.tensor([1, 1, 1] + [0] * 97)
    for k in (3, 7):
        assert correct(train, labels, queries[:1], torch.tensor([0]), num_classes=2, k=k) == 1.0
    # 25 each of two classes: either is right once in two times, whatever its number.
    labels = torch.tensor([0] * 25 + [1] * 25 + [2] * 50)
    for asked, expected in ((0, 0.5), (1, 0.5), (2, 0.0)):
        right = correct(train, labels, queries[:1], torch.tensor([asked]), num_classes=3, k=5)
        assert right == expected


@pytest.mark.parametrize("points", [1, 2, 7])
@pytest.mark.parametrize("k", [1, 5, 60])
def test_the_order_of_collapsed_features_decides_nothing(points: int, k: int) -> None:
    generator = torch.Generator().manual_seed(0)
    prototypes = torch.randn(points, 37, generator=generator)
    labels = torch.arange(211) % 4
    train = prototypes[torch.randint(points, (211,), generator=generator)]
    queries, asked = prototypes[torch.arange(30) % points], torch.arange(30) % 4
    found = correct(train, labels, queries, asked, num_classes=4, k=k)
    for order in (labels.argsort(), torch.randperm(211, generator=generator)):
        again = correct(train[order], labels[order], queries, asked, num_classes=4, k=k)
        torch.testing.assert_close(again, found)


def test_ties_across_blocks_share_their_places(monkeypatch: pytest.MonkeyPatch) -> None:
    generator = torch.Generator().manual_seed(0)
    # Of length 4 and therefore exact: 17 different similarities, so that ties cross all blocks.
    train, queries = (torch.randint(2, (n, 16), generator=generator) * 2.0 - 1 for n in (200, 40))
    labels, asked = torch.arange(200) % 5, torch.arange(40) % 5
    settings = {"num_classes": 5, "k": 20}
    whole = correct(train, labels, queries, asked, **settings)
    monkeypatch.setattr(classification, "_BANK_ROWS", 64)
    monkeypatch.setattr(classification, "_BLOCK_ELEMENTS", 9 * 64)
    assert torch.equal(correct(train, labels, queries, asked, **settings), whole)
    cosines = (queries.double() @ train.double().T) / 16
    for row, (values, label) in enumerate(zip(cosines, asked.tolist(), strict=True)):
        last = values.topk(20).values[-1]
        above, level = values > last, values == last
        share = (20 - int(above.sum())) / int(level.sum())
        weights = ((values - values.max()) / 0.1).exp() * (above + share * level)
        votes = torch.zeros(5, dtype=torch.float64).index_add_(0, labels, weights)
        assert whole[row] == float(votes.argmax() == label)


def test_one_neighbour_on_the_training_set_is_perfect() -> None:
    train = torch.randn(300, 16, generator=torch.Generator().manual_seed(0))
    labels = torch.arange(300) % 7
    assert correct(train, labels, train, labels, num_classes=7, k=1).mean() == 1.0


def test_k_above_the_bank_counts_every_row_and_a_small_temperature_is_finite() -> None:
    train = torch.tensor([[1.0, 0.0], [0.9, 0.1], [-1.0, 0.0]])
    labels = torch.tensor([0, 1, 2])
    query = torch.tensor([[1.0, 0.01]])
    assert correct(train, labels, query, torch.tensor([0]), 1e-3, num_classes=3, k=99) == 1.0


def test_collapsed_features_are_at_chance() -> None:
    train, labels = torch.ones(500, 8), torch.arange(500) % 5
    asked = torch.arange(9) % 5
    right = correct(train, labels, torch.ones(9, 8), asked, num_classes=5, k=200)
    assert right.tolist() == pytest.approx([0.2] * 9)


def _subject(labels: Tensor, test_labels: Tensor, num: int = 600) -> FeatureInput:
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
    return FeatureInput("trained", bank, seed=0)


def test_evaluator_learns_labels_and_is_at_chance_with_shuffled_ones() -> None:
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
    def facts(num_images: int, num_classes: int | None) -> RunFacts:
        return RunFacts(num_images, 3, (8, 8), num_classes, 16, 1, 1)

    assert not list(KNN.problems(KNN.Config(), facts(200, 10)))
    assert not list(KNN.problems(KNN.Config(), facts(120, None))), "it will be skipped anyway"
    [(field, message)] = KNN.problems(KNN.Config(), facts(120, 10))
    assert field == "k"
    assert "k 200 is above the bank of 120" in message


def test_k_above_a_class_is_said_at_validation_and_in_the_report() -> None:
    facts = RunFacts(300, 3, (8, 8), 3, 16, 1, 1, class_sizes=(250, 30, 5))
    assert not list(KNN.problems(KNN.Config(k=20), facts))
    [(field, message)] = KNN.warnings(KNN.Config(k=20), facts)
    assert field == "k"
    assert "20 neighbours are more than the 5 images of the smallest class" in message
    assert message.endswith("take well below 5")
    tiny = RunFacts(3, 3, (8, 8), 2, 2, 1, 1, class_sizes=(2, 1))
    [(_, message)] = KNN.warnings(KNN.Config(k=3), tiny)
    assert "the 1 image of the smallest class" in message
    assert message.endswith("take 1, or more images")
    [(_, message)] = KNN.problems(KNN.Config(k=290), facts)
    assert "bank of 285 labelled training images" in message
    subject = _subject(torch.arange(600) % 4, torch.arange(400) % 4)
    assert not KNN(KNN.Config(k=150)).evaluate(subject).notes
    (note,) = KNN(KNN.Config(k=200)).evaluate(subject).notes
    assert "more than the training images of 4 of 4 classes (the smallest has 150)" in note


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
