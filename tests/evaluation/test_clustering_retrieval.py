"""The evaluators `clustering` and `retrieval`, and the control by shuffled labels."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from sslkit.api import FeatureBank, FeatureEvaluator, FeatureInput, RunFacts, ViewSpec
from sslkit.builtin.evaluators.clustering import Clustering
from sslkit.builtin.evaluators.collapse import Collapse
from sslkit.builtin.evaluators.few_label import FewLabel
from sslkit.builtin.evaluators.knn import KNN
from sslkit.builtin.evaluators.linear import Linear
from sslkit.builtin.evaluators.retrieval import Retrieval
from sslkit.evaluation.collector import named_evaluators
from sslkit.evaluation.features import state_digest
from sslkit.evaluation.suite import EvaluationSuite
from sslkit.report.final_results import FinalResults
from tests.evaluation.tensor_images import TensorImages

CLASSES, WIDTH = 5, 8


def rows(count: int, seed: int) -> tuple[Tensor, Tensor]:
    """Rows in five directions that hardly overlap, and their class."""
    generator = torch.Generator().manual_seed(seed)
    labels = torch.arange(count) % CLASSES
    noise = 0.2 * torch.randn(count, WIDTH, generator=generator)
    return 3.0 * F.one_hot(labels, WIDTH) + noise, labels


def subject(num_train: int = 300, num_test: int = 200, seed: int = 0) -> FeatureInput:
    train, train_labels = rows(num_train, 1)
    test, test_labels = rows(num_test, 2)
    names = [str(label) for label in range(CLASSES)]
    return FeatureInput("trained", FeatureBank(train, test, train_labels, test_labels, names), seed)


def shuffled(given: FeatureInput) -> FeatureInput:
    """The same features with labels that say nothing about them."""
    bank = given.bank
    generator = torch.Generator().manual_seed(5)
    labels = [part[torch.randperm(len(part), generator=generator)]
              for part in (bank.train_labels, bank.test_labels)]  # fmt: skip
    return replace(given, bank=replace(bank, train_labels=labels[0], test_labels=labels[1]))


def test_clusters_of_clear_classes() -> None:
    found = Clustering(Clustering.Config(restarts=4)).evaluate(subject())
    assert set(found.metrics) == {"nmi", "ari", "top1"}
    assert all(len(found.draws[name]) == 4 for name in found.metrics)
    assert max(found.draws["top1"]) == 1.0
    assert max(found.draws["ari"]) == pytest.approx(1.0)
    assert found.metrics["nmi"] == pytest.approx(sum(found.draws["nmi"]) / 4)


@pytest.mark.slow  # 3 seconds
@pytest.mark.parametrize("evaluator", [Clustering, KNN, Linear, Retrieval, FewLabel])
def test_names_of_classes_that_no_image_has_change_nothing(
    evaluator: type[FeatureEvaluator],
) -> None:
    """A part of ImageNet may come with all of its thousand names."""
    given = subject()
    generator = torch.Generator().manual_seed(3)
    for features in (given.bank.train, given.bank.test):
        features.add_(torch.randn(features.shape, generator=generator))
    named = [*given.bank.class_names, *(f"name {number}" for number in range(25))]
    more = replace(given, bank=replace(given.bank, class_names=named))
    found = [evaluator(evaluator.Config()).evaluate(each).metrics for each in (given, more)]
    exact = evaluator not in (Linear, FewLabel)  # whose optimum is met to a tolerance
    assert found[1] == pytest.approx(found[0], abs=1e-12 if exact else 5e-3)


def test_more_clusters_than_images_are_refused_by_the_classes_that_occur() -> None:
    facts = RunFacts(60, 3, (8, 8), 1000, 16, 1, 1, class_sizes=(20, 20, 20))
    assert not list(Clustering.problems(Clustering.Config(num_images=3), facts))
    [(_, message)] = Clustering.problems(Clustering.Config(num_images=2), facts)
    assert "cannot make 3 clusters" in message


def test_lengths_of_features_do_not_count() -> None:
    plain, stretched = subject(), subject()
    for features in (stretched.bank.train, stretched.bank.test):
        features.mul_(torch.linspace(0.5, 9.0, len(features))[:, None])
    found = [Clustering(Clustering.Config()).evaluate(each).metrics for each in (plain, stretched)]
    assert found[0] == pytest.approx(found[1])
    found = [Retrieval(Retrieval.Config()).evaluate(each).metrics for each in (plain, stretched)]
    assert found[0] == pytest.approx(found[1])


def test_clusters_depend_on_the_seed_alone() -> None:
    hard = subject()
    hard.bank.train.add_(torch.randn(hard.bank.train.shape) * 2)
    protocol = Clustering(Clustering.Config(num_images=120))
    first = protocol.evaluate(hard).draws
    torch.manual_seed(99)
    assert protocol.evaluate(hard).draws == first
    assert protocol.evaluate(replace(hard, seed=1)).draws != first
    # Labels have no part in the clusters: other training labels change nothing.
    relabelled = replace(hard, bank=replace(hard.bank, train_labels=hard.bank.train_labels.flip(0)))
    assert protocol.evaluate(relabelled).draws == first


def test_retrieval_of_clear_classes() -> None:
    for gallery in ("test", "train"):
        protocol = Retrieval(Retrieval.Config(gallery=gallery, k=(1, 3)))
        found = protocol.evaluate(subject()).metrics
        assert set(found) == {"recall_at_1", "recall_at_3", "map"}
        assert found["recall_at_1"] == found["recall_at_3"] == 1.0
        assert found["map"] == pytest.approx(1.0)


def test_an_image_does_not_find_itself() -> None:
    """Every class has one test image: within the test split there is nothing to find."""
    found = Retrieval(Retrieval.Config()).evaluate(subject(num_test=CLASSES))
    assert found.skipped == "no query has an image of its class in the test split"
    found = Retrieval(Retrieval.Config(gallery="train")).evaluate(subject(num_test=CLASSES))
    assert found.metrics["recall_at_1"] == 1.0


def test_fewer_queries_search_the_whole_gallery() -> None:
    every, some = subject(), subject()
    scores = Retrieval(Retrieval.Config()).evaluate(every).metrics
    few = Retrieval(Retrieval.Config(num_queries=20))
    assert few.evaluate(some).metrics == few.evaluate(some).metrics
    assert few.evaluate(some).metrics["map"] == pytest.approx(scores["map"], abs=0.02)


@pytest.mark.parametrize(
    ("protocol", "highest"),
    [
        (KNN(KNN.Config(k=20)), {"top1": 0.32}),
        (Linear(Linear.Config()), {"top1": 0.32}),
        (Clustering(Clustering.Config()), {"top1": 0.34, "nmi": 0.08, "ari": 0.05}),
        (Retrieval(Retrieval.Config()), {"map": 0.26}),
        (Retrieval(Retrieval.Config(gallery="train")), {"map": 0.26}),
    ],
    ids=["knn", "linear", "clustering", "retrieval-test", "retrieval-train"],
)
def test_shuffled_labels_are_at_chance(
    protocol: FeatureEvaluator, highest: dict[str, float]
) -> None:
    """Chance is 0.2. On the true labels the same evaluators are near 1."""
    truth = protocol.evaluate(subject()).metrics
    control = protocol.evaluate(shuffled(subject())).metrics
    for name, value in highest.items():
        assert truth[name] > 0.8
        assert control[name] < value


def test_what_cannot_be_measured_is_said() -> None:
    one_class = subject()
    bank = one_class.bank
    zeros = [torch.zeros_like(part) for part in (bank.train_labels, bank.test_labels)]
    bank = replace(bank, train_labels=zeros[0], test_labels=zeros[1])
    one_class = replace(one_class, bank=bank)
    assert Clustering(Clustering.Config()).evaluate(one_class).skipped
    few = subject(num_train=3)
    found = Clustering(Clustering.Config()).evaluate(few)
    assert found.skipped == "3 training images cannot make 5 clusters"
    facts = RunFacts(100, 3, (8, 8), CLASSES, 10, 10, 10, (ViewSpec(8),))
    ((where, _),) = Clustering.problems(Clustering.Config(num_images=3), facts)
    assert where == "num_images"
    ((where, _),) = Retrieval.problems(Retrieval.Config(k=(1, 1)), facts)
    assert where == "k"


def test_beside_the_baselines_and_without_changing_the_encoder() -> None:
    """Images whose class is a colour that the baselines see too."""
    labels = torch.arange(60) % 3
    generator = torch.Generator().manual_seed(0)
    images = 0.2 + 0.6 * torch.eye(3)[labels][:, :, None, None].expand(-1, -1, 6, 6)
    images = images + 0.05 * torch.randn(60, 3, 1, 1, generator=generator)
    torch.manual_seed(0)
    encoder = nn.Sequential(
        nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten()
    ).train()
    suite = EvaluationSuite(
        named_evaluators(
            [
                ("clustering", Clustering(Clustering.Config(restarts=3))),
                ("retrieval", Retrieval(Retrieval.Config())),
                ("collapse", Collapse(Collapse.Config(policy="stop"))),
            ]
        ),
        TensorImages(images, images.flip(0), labels, labels.flip(0), ["red", "green", "blue"]),
    )
    digest, generator_state = state_digest(encoder), torch.get_rng_state()
    trained, baselines = suite.run(encoder, 1, final=True), suite.baselines(encoder)
    assert not trained.errors
    assert not baselines.errors
    assert state_digest(encoder) == digest
    assert encoder.training
    assert torch.equal(torch.get_rng_state(), generator_state)
    for name in ("clustering/nmi", "clustering/top1", "retrieval/recall_at_1", "retrieval/map"):
        for key in (f"eval/{name}_pixels", f"eval/{name}_untrained"):
            assert 0.3 < baselines.metrics[key] <= 1.0 + 1e-9
        assert f"eval/{name}" in trained.metrics
    results = FinalResults.collect(trained, baselines)
    shown = {row[0]: row for row in results.table()[1]}
    assert set(shown) == {
        *(f"clustering {name}" for name in ("nmi", "ari", "top1")),
        *(f"retrieval {name}" for name in ("recall_at_1", "recall_at_5", "recall_at_10", "map")),
    }
    assert "[" in shown["clustering top1"][3]
    assert shown["clustering top1"][-1].startswith("3 draws, ")
    assert shown["retrieval map"][-1].endswith("images")
