"""Fine-tuning: learning rates by depth, determinism, and what it must leave alone."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import Tensor

from sslkit.api import EvaluationImages, ImageInput, RunFacts, ViewSpec
from sslkit.builtin.evaluators.finetune import Finetune
from sslkit.builtin.evaluators.supervised_training import Classifier, FineTuningConfig
from sslkit.builtin.evaluators.supervised_training import _train as train
from sslkit.evaluation.features import state_digest
from tests.evaluation.image_subjects import Network, projection, protocol, study

QUICK: dict[str, Any] = {"epochs": 4, "batch_size": 32, "optimizer": {"name": "sgd", "lr": 0.1}}


def metrics(encoder: Network | None = None, **changes: Any) -> dict[str, float]:
    study_fields = {
        name: changes.pop(name) for name in ("seed", "shuffled", "num_test") if name in changes
    }
    suite = study(**study_fields).suite(("finetune", {**QUICK, **changes}))
    return dict(suite.run(encoder or Network(), 1, final=True).metrics)


def test_it_learns_and_the_encoder_keeps_every_bit() -> None:
    encoder = Network().train()
    encoder.stem.requires_grad_(False)  # as a frozen layer or a momentum teacher
    before = state_digest(encoder)
    found = metrics(encoder)
    assert found["eval/finetune/top1"] > 0.9
    assert found["eval/finetune/mean_per_class"] == pytest.approx(
        found["eval/finetune/top1"], abs=1e-6
    )
    assert 0.0 < found["eval/finetune/train_loss"] < 0.9
    assert state_digest(encoder) == before
    assert encoder.training
    assert not next(encoder.stem.parameters()).requires_grad


def test_it_is_the_same_to_the_bit_and_follows_the_seed() -> None:
    first = metrics()
    torch.manual_seed(99)  # what the training run happens to have drawn
    encoder = Network()
    torch.manual_seed(77)
    assert metrics(encoder) == first
    assert metrics(seed=1)["eval/finetune/train_loss"] != first["eval/finetune/train_loss"]


def test_shuffled_labels_stay_at_chance() -> None:
    found = metrics(shuffled=True, num_test=360)
    assert abs(found["eval/finetune/top1"] - 1 / 3) < 0.1  # 4 standard errors of 360 images


def test_the_untrained_encoder_is_the_only_baseline() -> None:
    suite = study().suite(("finetune", QUICK))
    baselines = suite.baselines(Network(seed=5))
    assert set(baselines.evaluations) == {"untrained"}
    assert baselines.metrics["eval/finetune/top1_untrained"] > 0.8
    assert "perf/evaluation_seconds_finetune" in baselines.cost
    assert not any(name.startswith("features/pixels") for name in baselines.timings)


def test_the_test_split_is_looked_at_once_and_its_labels_never(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    given = study()
    passes = []
    inner = type(given.suite()._images).preprocessed  # type: ignore[attr-defined]

    def spy(self: EvaluationImages, split: Any, *args: Any, **kwargs: Any) -> Iterator[Tensor]:
        passes.append(split)
        return inner(self, split, *args, **kwargs)

    monkeypatch.setattr(type(given.suite()._images), "preprocessed", spy)
    first = given.suite(("finetune", QUICK)).run(Network(), 1, final=True).metrics
    assert passes == ["test"]
    assert given.test.labels is not None
    given.test.labels[:] = (given.test.labels + 1) % 3
    second = given.suite(("finetune", QUICK)).run(Network(), 1, final=True).metrics
    assert second["eval/finetune/top1"] < 0.2
    assert second["eval/finetune/train_loss"] == first["eval/finetune/train_loss"]


def test_images_without_labels_are_left_out() -> None:
    given = study()
    assert given.train.labels is not None
    assert given.test.labels is not None
    given.train.labels[100:] = -1
    given.test.labels[::2] = -1
    found = given.suite(("finetune", {**QUICK, "epochs": 20})).run(Network(), 1, final=True)
    assert not found.skipped
    assert found.metrics["eval/finetune/top1"] > 0.8


def test_a_loss_that_diverges_is_reported() -> None:
    given = study(60, 30).suite(
        ("finetune", {**QUICK, "optimizer": {"name": "sgd", "lr": 1e30, "momentum": 0.0}})
    )
    found = given.run(Network(), 1, final=True)
    assert "lower optimizer.lr" in found.skipped["finetune"]
    assert not found.errors


def test_learning_rates_fall_with_depth_and_the_classifier_has_its_own() -> None:
    given = study().suite()
    layers = projection()
    subject = ImageInput("trained", Network(), given._images, 0, layers)
    classifier = Classifier(subject, 1)
    groups = classifier.param_groups(layer_decay=0.5, head_lr_scale=3.0)
    assert [group.lr_scale for group in groups] == [0.125, 0.25, 0.5, 3.0]
    assert [[name for name, _ in group.params] for group in groups[:2]] == [
        ["stem.0.weight", "stem.1.weight", "stem.1.bias"], ["body.0.weight", "body.0.bias"]
    ]  # fmt: skip
    assert classifier.head.in_features == 16
    assert not classifier.head.weight.any()
    listed = {id(p) for group in groups for _, p in group.params}
    assert listed == {id(p) for p in classifier.parameters()}
    assert not listed & {id(p) for p in (*subject.encoder.parameters(), *layers[0].parameters())}


def test_a_small_decay_moves_the_stem_less() -> None:
    given = study().suite()
    moved = {}
    for decay in (1.0, 0.01):
        config = protocol("finetune", **{**QUICK, "layer_decay": decay}).config
        assert isinstance(config, FineTuningConfig)
        subject = ImageInput("trained", Network(), given._images, 0)
        network = Classifier(subject, 0)
        train(network, subject.images, config, torch.arange(64), epochs=1)
        change = network.encoder.stem[0].weight - subject.encoder.stem[0].weight
        moved[decay] = float(change.detach().norm())
    assert 0.0 < moved[0.01] < 0.01 * moved[1.0]


def facts(**changes: Any) -> RunFacts:
    fields = {
        "num_images": 1000, "channels": 3, "image_size": (8, 8), "num_classes": 10,
        "batch_size": 100, "steps_per_epoch": 10, "total_steps": 100,
    }  # fmt: skip
    return RunFacts(**{**fields, **changes})


def test_what_is_rarely_meant_is_said_before_the_run() -> None:
    config = protocol("finetune", every_epochs=2).config
    said = dict(Finetune.warnings(config, facts()))
    assert "each time 30 epochs" in said["every_epochs"]
    assert "6.0 times the images" in said["epochs"]
    assert not dict(Finetune.warnings(protocol("finetune").config, facts(total_steps=10_000)))
    assert "30,000 images" in str(Finetune.plan_facts(config, facts())["fine-tuning"])
    large = protocol("finetune", augmentation={"name": "crop_flip", "size": 16})
    views = facts(total_steps=10_000, views=(ViewSpec(8), ViewSpec(8)))
    assert "views of 16 px" in dict(Finetune.warnings(large.config, views))["augmentation"]
    two = protocol("finetune", augmentation={"name": "crop_flip", "size": 8, "num_views": 2})
    ((field, message),) = Finetune.problems(two.config, facts())
    assert field == "augmentation"
    assert "1 view" in message


def test_its_parts_are_judged_by_its_own_steps() -> None:
    config = protocol("finetune", epochs=3, batch_size=250).config
    inside = Finetune.facts_inside(config, facts())
    assert (inside.batch_size, inside.steps_per_epoch, inside.total_steps) == (250, 4, 12)


def test_only_images_with_a_label_are_counted() -> None:
    config, few = protocol("finetune", epochs=3).config, facts(class_sizes=(30, 30))
    assert "180 images" in str(Finetune.plan_facts(config, few)["fine-tuning"])
    assert Finetune.facts_inside(config, few).num_images == 60
    assert not dict(Finetune.warnings(config, few)), "360 of the 10,000 images of the run"
