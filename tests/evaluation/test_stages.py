"""The evaluators that measure parts of a backbone: every stage, or the last blocks."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from sslkit.api import Backbone, RunFacts, resolve_component
from sslkit.builtin.evaluators.last_blocks import _LastBlocks
from sslkit.host.plugins import load_plugins
from tests.evaluation.image_subjects import Network, protocol, study

FEW = {"name": "knn", "k": 3}


def resnet() -> Backbone:
    block = {"name": "timm", "model": "test_resnet", "normalize": "none"}
    torch.manual_seed(0)
    slot = resolve_component(load_plugins().registry, "backbone", block)
    made: Backbone = slot.build(channels=3, image_size=8)
    return made.eval()


def vit(**fields: Any) -> Backbone:
    """Its final norm has a scale and a shift."""
    block = {"name": "timm", "model": "test_vit", "patch_size": 4, "normalize": "none", **fields}
    torch.manual_seed(0)
    slot = resolve_component(load_plugins().registry, "backbone", block)
    made: Backbone = slot.build(channels=3, image_size=8)
    for parameter in made.get_submodule("model.norm").parameters():
        torch.nn.init.normal_(parameter, 1.0, 0.3)
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


def test_last_blocks_are_those_of_timm_but_for_scale_and_shift() -> None:
    encoder, images = vit(pool="token"), torch.rand(5, 3, 8, 8)
    model: Any = encoder.get_submodule("model")
    expected = model.get_intermediate_layers(images, n=3, norm=True, return_prefix_tokens=True)
    with torch.no_grad():
        found = _LastBlocks(encoder, 3, patches=True)(images)
    width = model.embed_dim
    assert found.shape == (5, 4 * width)
    for part, (patches, prefix) in zip(found.split(width, dim=1)[:3], expected, strict=True):
        torch.testing.assert_close(part * model.norm.weight + model.norm.bias, prefix[:, 0])
        last = patches.mean(dim=1)
    mean = found.split(width, dim=1)[3]
    torch.testing.assert_close(mean * model.norm.weight + model.norm.bias, last)


def test_another_evaluator_reads_the_last_blocks() -> None:
    inner = {"evaluator": {"name": "knn", "k": 1}, "count": 1}
    found = study(60, 30).suite(("last_blocks", inner)).run(vit(pool="token"), 1, final=True)
    assert found.metrics["eval/last_blocks/top1"] > 0.5


@pytest.mark.parametrize(
    ("network", "count", "reason"),
    [
        (resnet, 1, "TimmBackbone has no class token"),
        (Network, 1, "Network has no class token"),
        (lambda: vit(pool="token"), 99, "count 99 is above the 6 blocks there are"),
        (lambda: vit(pool="avg", model_args={"class_token": False}), 1, "TimmBackbone has no"),
    ],
)
def test_networks_without_such_blocks_are_skipped_with_the_reason(
    network: Callable[[], nn.Module], count: int, reason: str
) -> None:
    fields = {"evaluator": FEW, "count": count}
    found = study(30, 30).suite(("last_blocks", fields)).run(network(), 1, final=True)
    assert found.skipped["last_blocks"].startswith(reason)
