"""The evaluator `detection`: the detector, its training, and that it learns."""

from __future__ import annotations

from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from sslkit.api import FeatureStage, NoFeatureMapsError, RunFacts
from sslkit.builtin.evaluators.detection import Detection, _scored, draws, learning_rate, sample
from sslkit.builtin.evaluators.detector import Pyramid, pyramid_stages
from sslkit.builtin.timm_backbone import TimmBackbone
from sslkit.evaluation.features import state_digest
from sslkit.evaluation.scores import is_score
from tests.data.dense_folders import annotation_xml, scenes, write_coco, write_voc
from tests.evaluation.dense import Averages, measure, protocol

SCENES = {"name": "scenes", "label": "colour", "size": 32, "num_train": 8, "num_test": 4}
SMALL = {
    "batch_size": 2, "sizes": [32], "pyramid_width": 16, "head_width": 16, "warmup_steps": 2,
}  # fmt: skip


def network(**fields: Any) -> TimmBackbone:
    torch.manual_seed(0)
    config = TimmBackbone.Config(**{"model": "test_resnet", "stem": "small_pool", **fields})
    return TimmBackbone(config, channels=3, image_size=32).eval()


def test_a_short_training_measures_and_leaves_the_encoder_as_it_was() -> None:
    encoder = network()
    before = state_digest(encoder)
    found = []
    for torch_seed in (1, 2):
        torch.manual_seed(torch_seed)
        small = protocol("detection", SCENES, steps=3, **SMALL)
        found.append(measure(small, encoder))
    assert found[0].skipped is None
    assert set(found[0].metrics) == {"ap", "ap50", "ap75"}
    assert all(0.0 <= value < 0.5 for value in found[0].metrics.values())
    assert found[0].metrics == found[1].metrics
    assert found[0].resamples.keys() == found[0].metrics.keys()
    for name, value in found[0].metrics.items():
        resamples = found[0].resamples[name]
        assert resamples.num_images == 4
        assert float(resamples.values.min()) <= value <= float(resamples.values.max())
        assert torch.equal(resamples.values, found[1].resamples[name].values)
    assert state_digest(encoder) == before
    assert not any(parameter.grad is not None for parameter in encoder.parameters())
    (bars,) = found[0].figures["classes"].axes
    assert len(bars.patches) == 8
    assert all(is_score(name) for name in found[0].metrics)


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_it_learns_to_detect_easy_scenes() -> None:
    easy = {**SCENES, "num_train": 64, "num_test": 32, "max_objects": 2}
    fields = {**SMALL, "batch_size": 4, "pyramid_width": 32, "head_width": 64, "warmup_steps": 10}
    found = measure(protocol("detection", easy, steps=150, **fields), network())
    assert found.metrics["ap50"] > 0.25  # 0.38; after three steps it is below 0.02
    assert found.metrics["ap50"] > found.metrics["ap"] > found.metrics["ap75"]


@pytest.mark.parametrize("source", ["voc", "coco"])
def test_folders_on_disk(tmp_path: Path, source: str) -> None:
    if source == "voc":
        data = {"name": "voc", "task": "detection", "root": str(write_voc(tmp_path))}
    else:
        data = {"name": "coco", "root": str(write_coco(tmp_path))}
    found = measure(protocol("detection", data, steps=1, **SMALL), network())
    assert found.skipped is None
    assert 0.0 <= found.metrics["ap"] <= 1.0


def test_bad_annotations_are_found_before_training(tmp_path: Path) -> None:
    root = write_voc(tmp_path)
    (root / "VOC2012" / "Annotations" / "2012_val_000003.xml").write_text("<!DOCTYPE a><a/>")
    data = {"name": "voc", "task": "detection", "root": str(root)}
    found = measure(protocol("detection", data, steps=10**6, **SMALL), network())
    assert found.skipped is not None
    assert "2012_val_000003.xml: it declares a document type" in found.skipped


def test_more_objects_than_can_be_matched_are_found_before_training(tmp_path: Path) -> None:
    """50,000 of them would take 400 GB beside the anchors of one image."""
    root = write_voc(tmp_path)
    path = root / "VOC2012" / "Annotations" / "2012_train_000001.xml"
    path.write_text(annotation_xml([("cat", (1, 1, 9, 9), 0)] * 1001))
    data = {"name": "voc", "task": "detection", "root": str(root)}
    found = measure(protocol("detection", data, steps=10**6, **SMALL), network())
    assert found.skipped is not None
    assert "2012_train_000001.jpg: has 1,001 objects, and at most 1,000 are match" in found.skipped


def test_pixels_are_no_start_and_the_untrained_encoder_can_be_left_out() -> None:
    lean = protocol("detection", SCENES, untrained=False, **SMALL)
    assert lean.baselines == ()
    assert protocol("detection", SCENES, **SMALL).baselines == ("untrained",)


@pytest.mark.parametrize(
    ("encoder", "fields", "reason"),
    [
        (torch.nn.Flatten(), {}, "the encoder Flatten offers no feature maps"),
        (network(), {"stages": [4, 1]}, "stages [4, 1] have strides [16, 2]; a feature pyramid"),
        (network(), {"stages": [9]}, "ResNet has no stage 9"),
        (
            network(model="vit_tiny_patch16_224", stem="default", patch_size=8),
            {},
            "the encoder takes no images of 64 x 32 pixels: Input width",
        ),
        (network(), {"data": {"name": "synthetic", "size": 16}}, "data: synthetic has no boxes"),
        (network(), {"lr": 1e30, "steps": 5}, "the loss is"),
    ],
    ids=range(6),
)
def test_what_cannot_be_measured_is_skipped_with_its_reason(
    encoder: torch.nn.Module, fields: dict[str, Any], reason: str
) -> None:
    found = measure(protocol("detection", **{"data": SCENES, **SMALL, **fields}), encoder)
    assert found.skipped is not None
    assert reason in found.skipped
    assert "\n" not in found.skipped


def test_problems_are_found_before_a_run(tmp_path: Path) -> None:
    facts = RunFacts(100, 3, None, None, 8, 12, 120)
    data = {"name": "coco", "root": str(tmp_path / "no")}
    config = protocol("detection", data, max_size=700).config
    found = dict(Detection.problems(config, facts))
    assert set(found) == {"max_size", "data.root"}
    assert "700 is below a length of the shorter side, 800" in found["max_size"]


# --- Parts ----------------------------------------------------------------------------------------


def test_the_pyramid_takes_the_last_stage_of_each_stride() -> None:
    resnet = network(stem="small").feature_stages
    assert [stage.stride for stage in resnet] == [1, 1, 2, 4, 8]
    assert pyramid_stages(resnet) == [1, 2, 3, 4]
    assert pyramid_stages(network(stem="default").feature_stages) == [1, 2, 3, 4]
    assert pyramid_stages([FeatureStage(str(i), 8, 16) for i in range(12)]) == [11]


def test_frozen_batch_norm_stays_and_the_rest_is_trained() -> None:
    for frozen in (True, False):
        pyramid = Pyramid(network(), [1, 2, 3, 4], 8, frozen)
        before = state_digest(pyramid.encoder)
        pyramid.train()
        levels = pyramid(torch.rand(2, 3, 32, 32))
        assert list(levels) == ["0", "1", "2", "3", "pool"]
        assert [level.shape[-1] for level in levels.values()] == [16, 8, 4, 2, 1]
        assert (state_digest(pyramid.encoder) == before) == frozen  # running statistics
        trainable = [p.requires_grad for p in pyramid.encoder.parameters()]
        assert all(trainable) != frozen
        assert any(trainable)


def test_an_encoder_with_one_map_makes_a_pyramid_of_one_level() -> None:
    found = measure(protocol("detection", SCENES, steps=1, **SMALL), Averages())
    assert found.skipped is None


def test_stages_must_shrink() -> None:
    with pytest.raises(NoFeatureMapsError, match="needs stages whose strides grow"):
        Pyramid(network(stem="small"), [0, 1], 8, False)


def test_every_image_comes_once_an_epoch_in_an_order_of_its_own() -> None:
    drawn = list(draws([3, 5, 8, 9], 10, seed=0))
    images = [image for image, _ in drawn]
    assert sorted(images[:4]) == sorted(images[4:8]) == [3, 5, 8, 9]
    assert len(images) == 10
    assert drawn == list(islice(draws([3, 5, 8, 9], 40, seed=0), 10))
    assert drawn != list(draws([3, 5, 8, 9], 10, seed=1))
    flips = [flip for _, flip in draws(range(50), 200, seed=0)]
    assert 70 < sum(flips) < 130


def test_the_learning_rate_rises_and_falls_twice() -> None:
    config = Detection.Config.model_validate(
        {"data": protocol("detection", SCENES).config.data, "steps": 1200, "warmup_steps": 99}
    )
    rates = [learning_rate(config, step) for step in (0, 49, 99, 899, 900, 1099, 1100)]
    assert rates == pytest.approx([0.0002, 0.01, 0.02, 0.02, 0.002, 0.002, 0.0002])


def test_flips_take_boxes_along() -> None:
    reader = scenes(3)
    for index in range(3):
        pixels = torch.from_numpy(reader.read(index)).permute(2, 0, 1)
        image, target = sample(pixels, reader.boxes(index), True)
        assert torch.equal(image.flip(-1), pixels / 255.0)
        mask = torch.from_numpy(reader.mask(index)).flip(-1)
        for corners, label in zip(target["boxes"].int(), target["labels"], strict=True):
            left, top, right, bottom = corners.tolist()
            part = mask[top:bottom, left:right] == label  # masks and targets count from 1 alike
            assert part[:, 0].any()
            assert part[:, -1].any()


def test_scores_leave_out_classes_without_objects() -> None:
    table = np.full((10, 3), 0.5)
    table[5:, 0] = 0.1
    table[:, 2] = np.nan
    found = _scored(table, ["a", "b", "c"])
    assert found.metrics == pytest.approx({"ap": 0.4, "ap50": 0.5, "ap75": 0.3})
