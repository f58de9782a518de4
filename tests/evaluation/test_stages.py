"""The evaluator that measures every stage of a backbone."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from sslkit.api import Backbone, RunFacts, resolve_component
from sslkit.host.plugins import load_plugins
from tests.evaluation.image_subjects import Network, protocol, study

FEW = {"name": "knn", "k": 3}


def resnet() -> Backbone:
    block = {"name": "timm", "model": "test_resnet", "normalize": "none"}
    torch.manual_seed(0)
    slot = resolve_component(load_plugins().registry, "backbone", block)
    made: Backbone = slot.build(channels=3, image_size=8)
    return made.eval()


def nearest(train: Tensor, labels: Tensor, test: Tensor) -> Tensor:
    """The class of the training row at the smallest angle."""
    cosines = torch.nn.functional.cosine_similarity(
        test.double()[:, None], train.double()[None], dim=2
    )
    return labels[cosines.argmax(1)]


def test_a_stage_is_its_map_averaged_over_positions() -> None:
    """Against what the layers of the network give to hooks of torch's."""
    encoder, given = resnet(), study(60, 30)
    one = {"name": "knn", "k": 1}
    suite = given.suite(("stages", {"evaluator": one, "stages": [1, -1]}), ("knn", {"k": 1}))
    found = suite.run(encoder, 1, final=True).metrics
    images, kept = suite._images, []
    handle = encoder.get_submodule("model.layer1").register_forward_hook(
        lambda module, inputs, output: kept.append(output.mean((2, 3)))
    )
    banks = []
    for split in ("train", "test"):
        kept.clear()
        images.features(encoder, split)
        banks.append(torch.cat(kept))
    handle.remove()
    right = nearest(banks[0], images.labels("train"), banks[1]) == images.labels("test")
    assert found["eval/stages/top1_stage_1"] == pytest.approx(float(right.double().mean()))
    assert found["eval/stages/top1_stage_4"] == found["eval/knn/top1"]
    assert {name for name in found if name.startswith("eval/stages/top1")} == {
        "eval/stages/top1_stage_1", "eval/stages/top1_stage_4"
    }  # fmt: skip


def test_all_stages_are_the_default_and_any_evaluator_of_features_will_do() -> None:
    given = study(60, 30).suite(
        ("stages", {"evaluator": {"name": "few_label", "labels_per_class": [5], "draws": 3}})
    )
    found = given.run(resnet(), 1, final=True)
    for stage in range(5):
        name = f"eval/stages/top1_5_stage_{stage}"
        assert 0.0 <= found.metrics[name] <= 1.0


def test_what_has_no_such_stage_is_skipped_with_the_reason() -> None:
    given = study(30, 30)
    beyond = given.suite(("stages", {"evaluator": FEW, "stages": [7]})).run(resnet(), 1, final=True)
    assert beyond.skipped["stages"] == "the backbone has no stage 7; valid: -5 to 4"
    without = given.suite(("stages", {"evaluator": FEW})).run(Network(), 1, final=True)
    assert without.skipped["stages"] == "Network has no stages"


@pytest.mark.parametrize(
    ("inner", "field"),
    [
        ({"name": "finetune"}, "evaluator"),
        ({"name": "knn", "layer": 1}, "evaluator.layer"),
        ({"name": "knn", "every_epochs": 2}, "evaluator.every_epochs"),
        ({"name": "linear"}, None),
    ],
)
def test_what_it_refuses_before_a_run(inner: dict[str, Any], field: str | None) -> None:
    facts = RunFacts(60, 3, (8, 8), 3, 8, 7, 7)
    evaluator = protocol("stages", evaluator=inner)
    found = [path for path, _ in type(evaluator).problems(evaluator.config, facts)]
    assert found == [] if field is None else found[0] == field
