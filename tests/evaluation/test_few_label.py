from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch
from torch import Tensor

from sslkit.api import FeatureBank, FeatureInput, RunFacts
from sslkit.builtin.evaluators import few_label
from sslkit.builtin.evaluators.few_label import FewLabel, draw_labelled
from sslkit.evaluation.statistics import mean_interval, paired_difference


def bank(spread: float, *, classes: int = 4, num: int = 200, noise_seed: int = 0) -> FeatureBank:
    generator = torch.Generator().manual_seed(noise_seed)

    def split(count: int) -> tuple[Tensor, Tensor]:
        labels = torch.arange(count) % classes
        noise = spread * torch.randn(count, 16, generator=generator)
        return 2.0 * torch.eye(classes, 16)[labels] + noise, labels

    (train, labels), (test, test_labels) = split(num), split(200)
    return FeatureBank(train, test, labels, test_labels, [str(i) for i in range(classes)])


def measured(data: FeatureBank, **config: object) -> dict[str, list[float]]:
    found = FewLabel(FewLabel.Config(**config)).evaluate(FeatureInput("trained", data, seed=0))
    assert found.skipped is None
    for name, values in found.draws.items():
        assert found.metrics[name] == pytest.approx(math.fsum(values) / len(values))
    return {name: list(values) for name, values in found.draws.items()}


def test_more_labels_and_better_features_score_higher() -> None:
    good, poor = measured(bank(0.8)), measured(bank(1.6))
    assert list(good) == ["top1_1", "top1_5", "top1_10"]
    assert all(len(values) == 20 for values in good.values())
    means = {name: mean_interval(values).mean for name, values in good.items()}
    assert means["top1_1"] < means["top1_5"] < means["top1_10"]
    assert paired_difference(good["top1_5"], poor["top1_5"]).low > 0.1


def test_shuffled_labels_stay_at_chance() -> None:
    data = bank(0.5, num=2000)
    order = torch.randperm(2000, generator=torch.Generator().manual_seed(0))
    shuffled = replace(data, train_labels=data.train_labels[order])
    values = measured(shuffled, labels_per_class=(5,), draws=200)["top1_5"]
    assert abs(mean_interval(values).mean - 0.25) < 0.06  # a draw's deviation is about 0.2
    assert mean_interval(measured(data, labels_per_class=(5,))["top1_5"]).low > 0.9


def test_draws_are_balanced_nested_and_keyed_by_the_seed() -> None:
    labels = torch.tensor([3, 0, 0, 3, 1, 0, 1, 3, 1, 0])  # class 2 does not occur
    chosen = draw_labelled(labels, 3, draws=50, seed=7)
    assert chosen.shape == (50, 3, 3)
    assert (labels[chosen] == torch.tensor([0, 1, 3])[None, :, None]).all()
    assert all(len(set(draw.flatten().tolist())) == 9 for draw in chosen)
    assert len({tuple(draw.flatten().tolist()) for draw in chosen}) > 40
    assert torch.equal(draw_labelled(labels, 1, draws=50, seed=7), chosen[:, :, :1])
    assert torch.equal(draw_labelled(labels, 3, draws=2, seed=7), chosen[:2])
    assert not torch.equal(draw_labelled(labels, 3, draws=50, seed=8), chosen)
    # Each of the four images of class 0 is drawn about equally often: 3 of 4 times.
    counts = draw_labelled(labels, 3, draws=400, seed=1)[:, 0].flatten().bincount(minlength=10)
    assert ((counts[[1, 2, 5, 9]] / 400 - 0.75).abs() < 0.09).all()


def test_subjects_share_their_draws_and_other_seeds_do_not(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[Tensor] = []
    fit = few_label._scored

    def spy(data: FeatureBank, mean: Tensor, chosen: Tensor, l2: float) -> few_label._Right:
        seen.append(chosen)
        return fit(data, mean, chosen, l2)

    monkeypatch.setattr(few_label, "_scored", spy)
    protocol = FewLabel(FewLabel.Config(labels_per_class=(5,)))
    for seed, spread in ((0, 0.5), (0, 2.0), (1, 0.5)):
        protocol.evaluate(FeatureInput("trained", bank(spread), seed))
    assert torch.equal(seen[0], seen[1])
    assert not torch.equal(seen[0], seen[2])


def test_fitting_draws_in_blocks_changes_nothing_that_matters(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    whole = measured(bank(1.0), labels_per_class=(5,))["top1_5"]
    monkeypatch.setattr(few_label, "_BLOCK_ELEMENTS", 3 * 20 * 16)  # 3 draws at once
    parts = measured(bank(1.0), labels_per_class=(5,))["top1_5"]
    assert parts == pytest.approx(whole, abs=0.011)


@pytest.mark.slow  # 2 seconds
def test_intervals_cover_the_mean_of_many_draws() -> None:
    data = bank(1.2, num=4000)
    values = measured(data, labels_per_class=(1,), draws=1200)["top1_1"]
    truth = math.fsum(values) / len(values)
    groups = [mean_interval(values[i : i + 20]) for i in range(0, 1200, 20)]
    covered = sum(low <= truth <= high for _, low, high in groups)
    assert covered / len(groups) > 0.86  # 60 intervals of 95 %: three standard errors


def test_small_classes_leave_sizes_out_and_say_so() -> None:
    data = bank(0.5, num=24)  # 6 images per class
    given = FewLabel(FewLabel.Config()).evaluate(FeatureInput("trained", data, seed=0))
    assert list(given.metrics) == ["top1_1", "top1_5"]
    assert given.notes == [
        "10 labels per class left out: 4 of 4 classes have fewer (the smallest 6)"
    ]
    protocol = FewLabel(FewLabel.Config(labels_per_class=(7,)))
    found = protocol.evaluate(FeatureInput("trained", data, seed=0))
    assert found.skipped == (
        "the smallest class has 6 labelled training images, fewer than any of [7]"
    )


def test_scores_of_images_are_means_over_draws() -> None:
    found = FewLabel(FewLabel.Config()).evaluate(FeatureInput("trained", bank(1.0), seed=0))
    for name, value in found.metrics.items():
        scores = found.per_image[name].values
        assert float(scores.mean()) == pytest.approx(value)
        assert set((scores * 20).round(decimals=6).frac().tolist()) == {0.0}


def test_impossible_sizes_are_refused_at_validation() -> None:
    facts = RunFacts(60, 3, (8, 8), 10, 16, 1, 1)
    assert not list(FewLabel.problems(FewLabel.Config(labels_per_class=(1, 6)), facts))
    [(field, message)] = FewLabel.problems(FewLabel.Config(), facts)
    assert field == "labels_per_class"
    assert "take at most 6" in message
    [(_, message)] = FewLabel.problems(FewLabel.Config(labels_per_class=(5, 5)), facts)
    assert "twice" in message


def test_only_classes_with_images_count_at_validation() -> None:
    """Two classes of a thousand names, and 60 of 5,000 images with a label."""
    facts = RunFacts(5000, 3, (8, 8), 1000, 16, 1, 1, class_sizes=(30, 30))
    assert not list(FewLabel.problems(FewLabel.Config(labels_per_class=(10, 30)), facts))
    [(_, message)] = FewLabel.problems(FewLabel.Config(labels_per_class=(31,)), facts)
    assert "2 classes are more than the 60 labelled" in message
    assert message.endswith("take at most 30")
