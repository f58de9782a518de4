from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

from sslkit.api import FeatureBank, FeatureEvaluator, FeatureInput
from sslkit.builtin.evaluators import linear_solvers
from sslkit.builtin.evaluators.knn import KNN
from sslkit.builtin.evaluators.linear import Linear
from sslkit.builtin.evaluators.linear_solvers import LBFGS
from sslkit.nn import logistic_regression, standardised
from sslkit.nn.lbfgs import minimize
from sslkit.nn.linear_sgd import fit_by_sgd
from sslkit.nn.logistic_regression import (
    LinearClassifiers,
    cross_entropy_gradient,
    fit_logistic_regression,
)
from sslkit.nn.penalty_search import LabelledRows, fit_penalties
from sslkit.nn.stratified import stratified_folds


def clusters(num: int, spread: float, seed: int = 0) -> tuple[Tensor, Tensor]:
    """(num, 8) features of 4 classes on well separated centres, and their labels."""
    generator = torch.Generator().manual_seed(seed)
    labels = torch.arange(num) % 4
    centres = 4.0 * torch.eye(4, 8)
    return centres[labels] + spread * torch.randn(num, 8, generator=generator), labels


def subject(train_labels: Tensor | None = None) -> FeatureInput:
    train, labels = clusters(400, spread=0.7)
    test, test_labels = clusters(200, spread=0.7, seed=1)
    labels = labels if train_labels is None else train_labels
    return FeatureInput(
        "trained", FeatureBank(train, test, labels, test_labels, list("abcd")), seed=0
    )


def test_separable_classes_are_separated_and_shuffled_labels_stay_at_chance() -> None:
    found = Linear(Linear.Config()).evaluate(subject())
    assert found.metrics["top1"] > 0.99
    assert found.metrics["l2"] in Linear.Config().l2
    _, labels = clusters(400, 0.0)
    shuffled = labels[torch.randperm(400, generator=torch.Generator().manual_seed(0))]
    found = Linear(Linear.Config()).evaluate(subject(shuffled))
    assert abs(found.metrics["top1"] - 0.25) < 0.13  # 4 standard errors of 200 images


def test_the_result_is_the_same_to_the_bit_when_repeated() -> None:
    protocol = Linear(Linear.Config())
    assert protocol.evaluate(subject()).metrics == protocol.evaluate(subject()).metrics


def test_the_test_split_has_no_part_in_the_fit_or_the_choice(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    fitted: list[tuple[int, int]] = []

    def spy(rows: LabelledRows, l2: Sequence[float], **kwargs: Any) -> LinearClassifiers:
        fitted.append((sum(len(features) for features, _ in rows.blocks()), len(l2)))
        return fit_penalties(rows, l2=l2, **kwargs)

    monkeypatch.setattr(linear_solvers, "fit_penalties", spy)
    first = Linear(Linear.Config(selection_folds=5)).evaluate(subject())
    # The grid on every four fifths, then the choice on all of the training split.
    assert fitted == [(320, 6)] * 5 + [(400, 1)]
    assert first.metrics["selection_images"] == 400
    given = subject()
    wrong = (given.bank.test_labels + 1) % 4
    other = FeatureBank(
        given.bank.train, given.bank.test, given.bank.train_labels, wrong, list("abcd")
    )
    second = Linear(Linear.Config(selection_folds=5)).evaluate(
        FeatureInput("trained", other, seed=0)
    )
    assert second.metrics["top1"] < 0.01
    for chosen in ("l2", "selection_top1"):
        assert second.metrics[chosen] == first.metrics[chosen]


def test_folds_are_stratified_and_keyed_by_the_seed() -> None:
    labels = torch.tensor([0] * 50 + [1] * 21 + [2] * 2 + [4] * 1)
    folds = stratified_folds(labels, 10, seed=3)
    sizes = folds[folds >= 0].bincount()
    assert (int(sizes.min()), int(sizes.max())) == (7, 8)  # 73 images with another of their class
    assert folds[-1] == -1, "the only image of a class is always fitted on"
    for label, count in ((0, 50), (1, 21), (2, 2)):
        of_class = folds[labels == label]
        assert (of_class >= 0).all()
        of_class = of_class.bincount(minlength=10)
        assert of_class.max() - of_class.min() <= 1
        assert of_class.sum() == count
    assert torch.equal(stratified_folds(labels, 10, seed=3), folds)
    assert not torch.equal(stratified_folds(labels, 10, seed=4), folds)


def test_folds_are_judged_until_there_are_enough_images(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(linear_solvers, "_JUDGED", 100)
    found = Linear(Linear.Config(selection_folds=10)).evaluate(subject()).metrics
    assert found["selection_images"] == 120
    monkeypatch.setattr(linear_solvers, "_JUDGED", 1)
    found = Linear(Linear.Config(selection_folds=10)).evaluate(subject()).metrics
    assert found["selection_images"] == 40, "one part where images are many"


def test_equal_accuracies_go_to_the_lowest_cross_entropy() -> None:
    train, labels = clusters(400, spread=0.05)
    bank = FeatureBank(train, train, labels, labels, list("abcd"))
    grid = (10.0, 1.0, 1e-2, 1e-4)  # all of them right everywhere
    found = Linear(Linear.Config(l2=grid)).evaluate(FeatureInput("trained", bank, seed=0)).metrics
    assert found["selection_top1"] == 1.0
    assert found["l2"] == 1e-4  # the surer the better, where nothing is wrong
    noisy = train + 1.3 * torch.randn(400, 8, generator=torch.Generator().manual_seed(0))
    bank = FeatureBank(noisy, noisy, labels, labels, list("abcd"))
    solver = LBFGS((1e-3, 1.0000001e-3), 500)  # one model twice: only rounding tells them apart
    data, _ = linear_solvers.standardised_splits(bank)
    chosen = linear_solvers.choose_and_fit(data, 4, solver, 10, 0)
    assert chosen is not None
    assert chosen.selection_top1 > 0.8


def overlapping(rows: int, seed: int) -> tuple[Tensor, Tensor]:
    """(rows, 64) features of 10 classes, of unequal scale: 300 rows are separable, and a weak
    penalty then overfits."""
    generator = torch.Generator().manual_seed(seed)
    labels = torch.arange(rows) % 10
    centres = torch.randn(10, 64, generator=torch.Generator().manual_seed(99))
    scale = torch.logspace(0, -1.5, 64)
    noise = torch.randn(rows, 64, generator=generator)
    return (0.45 * centres[labels] + noise) * scale, labels


@pytest.mark.slow  # 4 seconds
def test_the_seed_of_the_selection_hardly_moves_the_accuracy() -> None:
    train, labels = overlapping(300, 0)
    test, test_labels = overlapping(1000, 1)
    bank = FeatureBank(train, test, labels, test_labels, [str(c) for c in range(10)])
    found = [
        Linear(Linear.Config()).evaluate(FeatureInput("trained", bank, seed=seed)).metrics
        for seed in range(5)
    ]
    best = max(
        Linear(Linear.Config(l2=(l2,)))
        .evaluate(FeatureInput("trained", bank, seed=0))
        .metrics["top1"]
        for l2 in Linear.Config().l2
    )
    accuracies = [each["top1"] for each in found]
    assert max(accuracies) - min(accuracies) <= 0.005
    assert min(accuracies) > best - 0.01


def test_one_image_per_class_is_skipped_with_the_reason() -> None:
    bank = FeatureBank(torch.eye(3), torch.eye(3), torch.arange(3), torch.arange(3), list("abc"))
    found = Linear(Linear.Config()).evaluate(FeatureInput("trained", bank, seed=0))
    assert found.skipped == "no class has two labelled images to choose settings with"


def test_gradient_agrees_with_autograd_over_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(logistic_regression, "BLOCK_ELEMENTS", 2 * 3 * 4)  # 4 rows at once
    x = torch.randn(2, 11, 5, dtype=torch.float64)
    y = torch.randint(3, (2, 11))
    weight = torch.randn(2, 3, 5, dtype=torch.float64, requires_grad=True)
    bias = torch.randn(2, 3, dtype=torch.float64, requires_grad=True)
    logits = x @ weight.mT + bias[:, None]
    expected = 2 * torch.nn.functional.cross_entropy(logits.flatten(0, 1), y.flatten())
    expected.backward()
    loss, by_weight, by_bias = cross_entropy_gradient(x, y, weight.detach(), bias.detach())
    torch.testing.assert_close(loss, expected.detach())
    torch.testing.assert_close(by_weight, weight.grad)
    torch.testing.assert_close(by_bias, bias.grad)


def test_batched_fits_agree_with_scikit_learn() -> None:
    sklearn = pytest.importorskip("sklearn.linear_model")
    x, y = clusters(60, spread=2.0)
    features, labels = torch.stack([x[:30], x[30:]]), torch.stack([y[:30], y[30:]])
    found = fit_logistic_regression(features, labels, 4, l2=0.05)
    for problem in range(2):
        reference = sklearn.LogisticRegression(C=1 / (30 * 0.05), tol=1e-7, max_iter=1000)
        reference.fit(features[problem].numpy(), labels[problem].numpy())
        coefficients = torch.tensor(reference.coef_, dtype=torch.float32)
        torch.testing.assert_close(found.weight[problem], coefficients, atol=2e-3, rtol=1e-2)
        query, _ = clusters(200, spread=2.0, seed=5)
        agree = found.predict(problem, query).numpy() == reference.predict(query.numpy())
        assert agree.mean() > 0.99


def test_every_penalty_reaches_the_optimum_of_scikit_learn() -> None:
    sklearn = pytest.importorskip("sklearn.linear_model")
    x, y = overlapping(500, 0)
    x = (x - x.mean(dim=0)) / x.std(dim=0, correction=0)
    test, test_labels = overlapping(1000, 1)
    penalties = Linear.Config().l2
    found = fit_penalties(LabelledRows(lambda: [(x, y)], 500, 10), l2=penalties, tolerance=1e-4)
    for problem, l2 in enumerate(penalties):
        reference = sklearn.LogisticRegression(C=1 / (500 * l2), tol=1e-9, max_iter=20_000)
        reference.fit(x.double().numpy(), y.numpy())

        def loss(weight: Tensor, bias: Tensor, l2: float = l2) -> float:
            entropy = torch.nn.functional.cross_entropy(x.double() @ weight.T + bias, y)
            return float(entropy + l2 / 2 * weight.square().sum())

        lowest = loss(torch.from_numpy(reference.coef_), torch.from_numpy(reference.intercept_))
        reached = loss(found.weight[problem].double(), found.bias[problem].double())
        assert lowest * (1 - 1e-6) < reached < lowest * (1 + 1e-4), l2
        right = reference.predict(test.double().numpy()) == test_labels.numpy()
        ours = found.predict(problem, test) == test_labels
        assert abs(float(ours.double().mean()) - right.mean()) <= 0.003, l2
    assert found.converged


def test_turned_features_have_the_optimum_of_the_features(monkeypatch: pytest.MonkeyPatch) -> None:
    """Features of 64 columns, 64 further ones that follow from them and 8 that never vary: passes
    are 64 wide, and the classifier of all 136 is the one that an unturned search finds."""
    x, labels = overlapping(300, seed=1)
    mixed = x @ torch.randn(64, 64, generator=torch.Generator().manual_seed(2))
    features = torch.cat([x, mixed, torch.ones(300, 8)], dim=1)
    bank = FeatureBank(features, features, labels, labels, [str(label) for label in range(10)])
    data, _ = linear_solvers.standardised_splits(bank)
    monkeypatch.setattr(linear_solvers, "_FINAL_TOLERANCE", 1e-7)
    grid = [{"l2": value} for value in (1.0, 1e-2, 1e-4)]

    def fitted() -> tuple[int, LinearClassifiers]:
        solver = LBFGS((1.0, 1e-2, 1e-4), 2000)
        prepared = solver.prepare(data, 10)
        return prepared.width, solver.restored(solver.fit(prepared, 10, grid, final=True))

    width, turned = fitted()
    monkeypatch.setattr(standardised, "_BLOCK_ELEMENTS", 136 * 299)
    unturned_width, plain = fitted()
    assert (width, unturned_width) == (64, 136)
    ((block, _), *_) = data.blocks()
    scale = plain.weight.flatten(1).norm(dim=1)
    distance = (turned.weight - plain.weight).flatten(1).norm(dim=1)
    assert (distance < 2e-3 * scale).all()
    assert torch.equal(turned.predict_all(block), plain.predict_all(block))


def test_a_fit_that_does_not_reach_its_optimum_is_reported() -> None:
    train, labels = overlapping(500, 0)
    bank = FeatureBank(train, train, labels, labels, [str(c) for c in range(10)])
    given = FeatureInput("trained", bank, seed=0)
    found = Linear(Linear.Config(l2=(1e-5,), max_iterations=3)).evaluate(given)
    assert "raise max_iterations" in found.notes[0]
    assert not Linear(Linear.Config(l2=(1e-5,))).evaluate(given).notes


def test_penalties_fitted_together_are_those_fitted_alone() -> None:
    x, y = clusters(120, spread=2.0)
    penalties = [0.5, 0.05, 1e-3]
    blocks: list[tuple[Tensor, Tensor]] = list(
        zip(torch.split(x, 50), torch.split(y, 50), strict=True)
    )
    together = fit_penalties(LabelledRows(lambda: blocks, 120, 4), l2=penalties, tolerance=1e-6)
    assert together.converged
    for problem, l2 in enumerate(penalties):
        alone = fit_logistic_regression(x[None], y[None], 4, l2=l2, max_iterations=500)
        torch.testing.assert_close(together.weight[problem], alone.weight[0], atol=5e-3, rtol=2e-2)
        weight = together.weight[problem, None].double()
        _, gradient, _ = cross_entropy_gradient(
            x[None].double(), y[None], weight, together.bias[problem, None].double()
        )
        assert float((gradient + l2 * weight).abs().max()) < 5e-5
    queries, _ = clusters(50, spread=2.0, seed=9)
    expected = torch.stack([together.predict(problem, queries) for problem in range(3)])
    assert torch.equal(together.predict_all(queries), expected)


def test_features_in_blocks_made_anew_give_the_same_probe(monkeypatch: pytest.MonkeyPatch) -> None:
    whole = Linear(Linear.Config()).evaluate(subject()).metrics
    monkeypatch.setattr(standardised, "_BLOCK_ELEMENTS", 8 * 70)  # 70 rows at once
    parts = Linear(Linear.Config()).evaluate(subject()).metrics
    assert parts == pytest.approx(whole, abs=0.011)


def test_minimize_shortens_steps_and_solves_badly_scaled_problems() -> None:
    scales = torch.tensor([[1.0, 100.0, 1e-3], [5.0, 1.0, 1.0]], dtype=torch.float64)
    optimum = torch.tensor([1.0, -2.0, 3.0], dtype=torch.float64)
    shortened = []

    def objective(problems: Sequence[int], points: Tensor) -> tuple[list[float], Tensor]:
        s, away = scales[list(problems)], points - optimum
        values = (s * (away.square() + 1.0).sqrt()).sum(dim=1)
        shortened.append(len(problems))
        return values.tolist(), s * away / (away.square() + 1.0).sqrt()

    def solved(problem: int, value: float, gradient: Tensor) -> bool:
        return float(gradient.abs().max()) <= 1e-9

    start = torch.full((2, 3), 40.0).double()
    found = minimize(objective, start, lambda problem, vector: vector, solved, max_iterations=500)
    torch.testing.assert_close(found.points, optimum.expand(2, 3), atol=1e-5, rtol=0)
    assert found.found == (True, True)
    assert found.passes == len(shortened)
    assert shortened[0] == 2
    assert shortened[-1] == 1, "a solved problem is left out"


@pytest.mark.slow  # 2 seconds
def test_features_that_are_all_equal_are_at_chance() -> None:
    bank = subject().bank
    for value in (0.0, 0.3, 1e4):
        train, test = torch.full_like(bank.train, value), torch.full_like(bank.test, value)
        collapsed = replace(subject(), bank=replace(bank, train=train, test=test))
        for protocol in (Linear(Linear.Config()), by_sgd()):
            assert protocol.evaluate(collapsed).metrics["top1"] <= 0.25


# --- SGD ------------------------------------------------------------------------------------------


def by_sgd(**changes: Any) -> Linear:
    return Linear(Linear.Config(solver="sgd", epochs=20, batch_size=64, **changes))


@pytest.mark.slow  # 3 seconds
def test_sgd_learns_reports_its_choice_and_stays_at_chance_on_shuffled_labels() -> None:
    found = by_sgd(lr=(0.1,), weight_decay=(0.0, 1e30)).evaluate(subject()).metrics
    assert found["top1"] > 0.99
    assert (found["lr"], found["weight_decay"]) == (0.1, 0.0)
    assert found["selection_top1"] > 0.95
    assert "l2" not in found
    _, labels = clusters(400, 0.0)
    shuffled = labels[torch.randperm(400, generator=torch.Generator().manual_seed(0))]
    assert abs(by_sgd().evaluate(subject(shuffled)).metrics["top1"] - 0.25) < 0.13
    assert by_sgd().evaluate(subject()).metrics == by_sgd().evaluate(subject()).metrics


def test_sgd_chooses_on_held_out_training_rows(monkeypatch: pytest.MonkeyPatch) -> None:
    fitted: list[tuple[int, int, bool]] = []
    given = subject()

    def spy(data: standardised.Standardised, *args: Any, lr: Any, **kwargs: Any) -> Any:
        fitted.append((len(data), len(lr), data.features is given.bank.train))
        return fit_by_sgd(data, *args, lr=lr, **kwargs)

    monkeypatch.setattr(linear_solvers, "fit_by_sgd", spy)
    protocol = by_sgd(lr=(0.1, 0.01), weight_decay=(0.0, 1e-3, 1e-2), selection_folds=2)
    first = protocol.evaluate(given).metrics
    assert fitted == [(200, 6, True), (200, 6, True), (400, 1, True)]
    assert given.bank.test_labels is not None
    given.bank.test_labels.copy_((given.bank.test_labels + 1) % 4)
    second = protocol.evaluate(given).metrics
    assert second["top1"] < 0.01
    for chosen in ("lr", "weight_decay", "selection_top1"):
        assert second[chosen] == first[chosen]


# --- Layers of the projection head ----------------------------------------------------------------


@pytest.mark.parametrize(
    "protocol", [Linear(Linear.Config(layer=1)), KNN(KNN.Config(k=5, layer=1))]
)
def test_probes_measure_layers_of_the_projection_head(protocol: FeatureEvaluator) -> None:
    blind = torch.nn.Linear(8, 3)
    torch.nn.init.zeros_(blind.weight)
    sharp = torch.nn.Linear(8, 4)
    with torch.no_grad():
        sharp.weight.copy_(torch.eye(4, 8))
    assert protocol.projection_layer == 1
    assert protocol.baselines == ("untrained",)
    for layer, low, high in ((sharp, 0.9, 1.0), (blind, 0.0, 0.4)):
        given = replace(subject(), projection_layers=(layer,))
        found = protocol.evaluate(given).metrics
        assert low <= found["top1_projector_1"] <= high
        assert all(name.endswith("_projector_1") for name in found)
    assert Linear(Linear.Config()).baselines == ("pixels", "untrained")
