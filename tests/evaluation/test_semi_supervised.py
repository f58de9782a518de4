"""1 % and 10 % of the labels: who is drawn, what is chosen on what, and what stays at chance."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

from sslkit.api import ImageInput, RunFacts
from sslkit.builtin.evaluators import semi_supervised
from sslkit.builtin.evaluators.linear_solvers import LBFGS, Chosen, choose_and_fit
from sslkit.builtin.evaluators.semi_supervised import SemiSupervised
from sslkit.evaluation.features import state_digest
from sslkit.nn.standardised import Standardised
from tests.evaluation.image_subjects import Network, Study, projection, protocol, study

SMALL: dict[str, Any] = {
    "fractions": [0.1, 0.5], "draws": 2, "epochs": [25, 6], "batch_size": 32,
    "optimizer": {"name": "sgd", "lr": 0.1},
}  # fmt: skip
PROBE = {**SMALL, "ways": ["probe"]}


def run(given: Study, fields: dict[str, Any], encoder: Network | None = None) -> Any:
    suite = given.suite(("semi_supervised", fields))
    return suite.run(encoder or Network(), 1, True, projection())


def test_both_ways_learn_and_the_encoder_keeps_every_bit() -> None:
    encoder = Network()
    before = state_digest(encoder)
    found = run(study(), SMALL, encoder)
    stem = "eval/semi_supervised/top1"
    assert found.metrics[f"{stem}_10pct_probe"] > 0.6
    assert found.metrics[f"{stem}_50pct_finetune"] > 0.75
    draws = found.evaluations["trained"]["semi_supervised"].draws
    assert {len(values) for values in draws.values()} == {2}
    assert found.metrics["eval/semi_supervised/log10_l2_10pct_probe"] == pytest.approx(
        sum(draws["log10_l2_10pct_probe"]) / 2
    )
    assert "selection_top1_50pct_probe" in draws
    assert "train_loss_10pct_finetune" in draws
    assert state_digest(encoder) == before
    assert run(study(), SMALL).metrics == found.metrics


@pytest.mark.slow  # 3 seconds
def test_baselines_are_pixels_for_the_probe_and_scratch_for_both() -> None:
    baselines = study().suite(("semi_supervised", SMALL)).baselines(Network(), projection())
    assert not baselines.skipped
    names = {"top1_10pct_probe", "top1_50pct_probe"}
    pixels = baselines.evaluations["pixels"]["semi_supervised"]
    assert {name for name in pixels.metrics if name.startswith("top1")} == names
    untrained = baselines.evaluations["untrained"]["semi_supervised"]
    assert {"top1_10pct_finetune", "top1_50pct_finetune"} <= set(untrained.metrics)


@pytest.mark.slow  # 2 seconds
def test_fine_tuning_alone_takes_no_features() -> None:
    suite = study().suite(("semi_supervised", {**SMALL, "ways": ["finetune"]}))
    found = suite.run(Network(), 1, True, projection())
    assert set(found.timings) == {"semi_supervised/trained"}
    baselines = suite.baselines(Network(), projection())
    assert set(baselines.evaluations) == {"untrained"}


@pytest.mark.slow  # 3 seconds
def test_shuffled_labels_stay_at_chance() -> None:
    found = run(study(num_test=360, shuffled=True), SMALL).metrics
    accuracies = {name: found[name] for name in found if "/top1" in name}
    assert len(accuracies) == 4
    for name, value in accuracies.items():
        assert abs(value - 1 / 3) < 0.1, name  # 4 standard errors of 360 images


@pytest.mark.slow  # 4 seconds
def test_all_subjects_and_both_ways_get_the_same_balanced_labels(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    given = study()
    probed: list[list[int]] = []
    tuned: list[list[int]] = []

    def fit(data: Standardised, *args: Any) -> Chosen | None:
        assert data.rows is not None
        probed.append(data.rows.tolist())
        return choose_and_fit(data, *args)

    def tune(given: ImageInput, config: Any, rows: Tensor, **kwargs: Any) -> Any:
        tuned.append(rows.tolist())
        return fine_tune(given, config, rows, **{**kwargs, "epochs": 1})

    fine_tune = semi_supervised.fine_tune
    monkeypatch.setattr(semi_supervised, "choose_and_fit", fit)
    monkeypatch.setattr(semi_supervised, "fine_tune", tune)
    assert given.train.labels is not None
    given.train.labels[:30] = -1  # rows of features are then not positions of images
    suite = given.suite(("semi_supervised", SMALL))
    suite.run(Network(), 1, True, projection())
    suite.baselines(Network(), projection())
    pixels_untrained_trained = [probed[i : i + 4] for i in range(0, 12, 4)]
    assert pixels_untrained_trained[0] == pixels_untrained_trained[1] == probed[8:]
    assert [[i + 30 for i in rows] for rows in probed[:4]] == tuned[:4] == tuned[4:]
    labels = given.train.labels
    assert labels[torch.tensor(tuned[0])].bincount().tolist() == [7, 7, 7]
    assert set(tuned[0]) < set(tuned[2]), "the 10 % are among the 50 % of the same draw"
    assert tuned[0] != tuned[1]


@pytest.mark.slow  # 3 seconds
def test_the_penalty_is_chosen_without_the_test_split(monkeypatch: pytest.MonkeyPatch) -> None:
    given = study()
    first = run(given, PROBE).metrics
    assert given.test.labels is not None
    given.test.labels[:] = (given.test.labels + 1) % 3
    second = run(given, PROBE).metrics
    for name in ("log10_l2_10pct_probe", "selection_top1_10pct_probe"):
        assert second[f"eval/semi_supervised/{name}"] == first[f"eval/semi_supervised/{name}"]
    assert second["eval/semi_supervised/top1_50pct_probe"] < 0.2

    seen: list[Standardised] = []
    fit = LBFGS.fit

    def spy(self: LBFGS, data: Standardised, *args: Any, **kwargs: Any) -> Any:
        seen.append(data)
        return fit(self, data, *args, **kwargs)

    monkeypatch.setattr(LBFGS, "fit", spy)
    run(given, {**PROBE, "fractions": [0.5], "epochs": [1], "draws": 1})
    *folds, final = seen
    fitting = folds[0]
    assert len(folds) == 5
    assert fitting.features is final.features, "training features both times"
    assert len(fitting.features) == 120, "the chosen rows, turned to their axes"
    assert fitting.rows is not None
    assert (len(fitting), len(final)) == (96, 120)
    assert 0 <= int(fitting.rows.min()) < int(fitting.rows.max()) < 120


@pytest.mark.slow  # 2 seconds
def test_from_a_layer_of_the_projection_head() -> None:
    fields = {**SMALL, "from_layer": 1, "fractions": [0.5], "epochs": [4], "draws": 2}
    suite = study().suite(("semi_supervised", fields))
    found = suite.run(Network(), 1, True, projection())
    stem = "eval/semi_supervised/top1_50pct"
    assert found.metrics[f"{stem}_probe_projector_1"] > 0.5
    assert found.metrics[f"{stem}_finetune_projector_1"] > 0.6
    assert suite.baselines(Network(), projection()).evaluations.keys() == {"untrained"}


def test_too_few_labels_are_left_out_and_said() -> None:
    found = run(study(), {**PROBE, "fractions": [0.01, 0.5]})
    (note,) = found.notes["semi_supervised"]
    assert "2 of 240 labels are fewer than 3 classes" in note
    assert "eval/semi_supervised/top1_50pct_probe" in found.metrics
    assert not any("_1pct" in name for name in found.metrics)
    found = run(study(), {**PROBE, "fractions": [0.0125], "epochs": [1]})  # 3 labels
    reason = "3 labels are one of a class: none is left to choose l2 with"
    assert found.skipped == {"semi_supervised": reason}


@pytest.mark.slow  # 2 seconds
def test_fine_tuning_that_diverges_does_not_lose_the_probe() -> None:
    wild = {"name": "sgd", "lr": 1e30, "momentum": 0.0}
    result = run(study(), {**SMALL, "optimizer": wild})
    assert any("lower optimizer.lr" in note for note in result.notes["semi_supervised"])
    found = result.metrics
    assert "eval/semi_supervised/top1_10pct_probe" in found
    assert "eval/semi_supervised/top1_10pct_finetune" not in found


def facts(num_images: int = 1000, total_steps: int = 100) -> RunFacts:
    return RunFacts(num_images, 3, (8, 8), 10, 100, 10, total_steps)


def test_what_cannot_work_or_is_rarely_meant_is_said_before_the_run() -> None:
    def problems(**fields: Any) -> dict[str, str]:
        return dict(SemiSupervised.problems(protocol("semi_supervised", **fields).config, facts()))

    assert not problems()
    assert "give one for each" in problems(epochs=[3])["epochs"]
    assert not problems(epochs=[3], ways=["probe"])
    assert "names one twice" in problems(fractions=[0.1, 0.1])["fractions"]

    config = protocol("semi_supervised", every_epochs=1).config
    said = dict(SemiSupervised.warnings(config, facts(num_images=500)))
    assert "5, fewer than one of each of 10 classes" in said["fractions"]
    assert "draws of fine-tuning" in said["every_epochs"]
    assert (
        "times the images" in dict(SemiSupervised.warnings(config, facts(total_steps=10)))["draws"]
    )
    # 3 draws of 60 epochs of 10 images and 30 epochs of 100
    stated = SemiSupervised.plan_facts(config, facts())
    assert "10,800 images" in str(stated["semi-supervised fine-tuning"])


def test_parts_of_the_labels_are_parts_of_the_images_that_have_one() -> None:
    """60 of 1,000 images of two classes have a label, and the data names ten classes."""
    few = replace(facts(), class_sizes=(30, 30))
    config = protocol("semi_supervised", fractions=[0.01, 0.1], epochs=[60, 30]).config
    said = dict(SemiSupervised.warnings(config, few))
    assert "0.01 of 60 labels are 1, fewer than one of each of 2 classes" in said["fractions"]
    # 3 draws of 60 epochs of 1 image and 30 epochs of 6
    assert "720 images" in str(SemiSupervised.plan_facts(config, few))
    assert SemiSupervised.facts_inside(config, few).num_images == 6
