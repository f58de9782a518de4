"""The evaluator `segmentation`: what it measures, on what, and what it leaves alone."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

import sslkit
from sslkit.api import IGNORED_PIXEL, PixelInput, RunFacts, SplitReader
from sslkit.builtin.evaluators.encoder_maps import Source
from sslkit.builtin.evaluators.segmentation import Segmentation, take_positions
from sslkit.builtin.timm_backbone import TimmBackbone
from sslkit.evaluation.collector import named_evaluators
from sslkit.evaluation.features import state_digest
from sslkit.evaluation.scores import is_score
from sslkit.evaluation.suite import EvaluationSuite
from sslkit.nn.segmentation import mean_intersection_over_union, pixel_confusion
from sslkit.report.final_results import FinalResults
from tests.data.dense_folders import write_voc
from tests.evaluation.dense import Averages, changed, measure, protocol
from tests.evaluation.tensor_images import TensorImages

COLOURS = {"name": "scenes", "label": "colour", "size": 32, "num_train": 48, "num_test": 24}


def network(**fields: Any) -> TimmBackbone:
    torch.manual_seed(0)
    config = TimmBackbone.Config(**{"model": "test_resnet", "stem": "small", **fields})
    return TimmBackbone(config, channels=3, image_size=32).eval()


def chance(data: dict[str, Any], constant: int = 0) -> float:
    """The score of giving every pixel the most frequent class, the background."""
    reader = protocol("segmentation", data)._data.test
    masks = torch.stack([torch.from_numpy(reader.mask(i)) for i in range(len(reader))])
    predicted = torch.full_like(masks, constant)
    classes = len(reader.mask_classes)
    return mean_intersection_over_union(pixel_confusion(masks, predicted, classes))


@pytest.mark.slow  # 7 seconds
def test_features_that_know_the_classes_and_features_that_hardly_do() -> None:
    known = measure(protocol("segmentation", COLOURS), Averages(stride=2))
    untrained = measure(protocol("segmentation", COLOURS, stage=1), network())
    pixels = protocol("segmentation", COLOURS).evaluate_pixels(PixelInput(0, torch.device("cpu")))
    by_chance = chance(COLOURS)
    assert by_chance < 0.15
    assert known.metrics["miou"] > 0.5
    assert untrained.metrics["miou"] > by_chance + 0.1
    assert pixels.metrics["miou"] > by_chance + 0.05
    for found in (known, untrained, pixels):
        assert set(found.metrics) == {"miou", "pixel_accuracy", "l2", "selection_miou"}
        assert found.metrics["pixel_accuracy"] > 0.85
    (bars,) = known.figures["classes"].axes
    assert len(bars.patches) == 9


def test_masks_of_other_images_stay_at_chance() -> None:
    """The control: each training image has the mask of the next one."""

    def next_mask(reader: SplitReader, index: int) -> NDArray[np.uint8]:
        if len(reader) == COLOURS["num_test"]:
            return reader.mask(index)
        return reader.mask((index + 1) % len(reader))

    found = measure(protocol("segmentation", changed(COLOURS, next_mask)), Averages())
    assert found.metrics["miou"] < chance(COLOURS) + 0.02


@pytest.mark.slow  # 3 seconds
def test_ignored_pixels_count_nowhere() -> None:
    """With the upper half ignored, what stands there has no part in fit or score."""

    def half(reader: SplitReader, index: int) -> NDArray[np.uint8]:
        mask = reader.mask(index).copy()
        mask[:16] = IGNORED_PIXEL
        return mask

    def nothing(reader: SplitReader, index: int) -> NDArray[np.uint8]:
        return np.full_like(reader.mask(index), IGNORED_PIXEL)

    whole = measure(protocol("segmentation", COLOURS), Averages()).metrics
    lower = measure(protocol("segmentation", changed(COLOURS, half)), Averages())
    assert lower.metrics["miou"] != whole["miou"]
    assert lower.metrics["pixel_accuracy"] > 0.85
    empty = measure(protocol("segmentation", changed(COLOURS, nothing)), Averages())
    assert empty.skipped == "needs two training images with pixels of known classes"

    def no_test(reader: SplitReader, index: int) -> NDArray[np.uint8]:
        tested = len(reader) == COLOURS["num_test"]
        return nothing(reader, index) if tested else reader.mask(index)

    class_less = measure(protocol("segmentation", changed(COLOURS, no_test)), Averages())
    assert class_less.skipped == "no test mask has a pixel of a known class"


@pytest.mark.slow  # 2 seconds
def test_it_depends_on_the_seed_alone_and_leaves_the_encoder_as_it_was() -> None:
    encoder = network()
    before = state_digest(encoder)
    scored = []
    for torch_seed, seed in ((1, 0), (2, 0), (1, 1)):
        torch.manual_seed(torch_seed)
        few = protocol("segmentation", COLOURS, stage=1, num_positions=1200, max_iterations=20)
        scored.append(measure(few, encoder, seed).metrics)
    assert scored[0] == scored[1] != scored[2]
    assert state_digest(encoder) == before


def test_positions_are_drawn_evenly_and_where_something_is_known() -> None:
    few = {**COLOURS, "num_train": 5}
    reader = protocol("segmentation", few)._data.train
    numbers = torch.arange(1024.0).view(1, 1, 32, 32)
    source = Source(lambda x: numbers.expand(len(x), -1, -1, -1), 32, torch.device("cpu"))
    taken = take_positions(source, reader, 9, most=52, seed=0)
    assert taken.images.bincount().tolist() == [10] * 5
    for number in range(5):
        rows = taken.images == number
        mask = torch.from_numpy(reader.mask(number)).flatten().long()
        places = taken.features[rows, 0].long()
        assert torch.equal(places, places.unique())
        assert torch.equal(taken.fractions[rows].argmax(dim=1), mask[places])
    others = take_positions(source, reader, 9, most=52, seed=1)
    assert not torch.equal(taken.features, others.features)
    half = taken.only(taken.images < 2)
    assert sum(len(x) for x, _ in half.blocks()) == 20


def test_features_that_are_not_finite_are_said_to_be() -> None:
    encoder = Averages()
    encoder.scale.data.fill_(float("nan"))
    found = measure(protocol("segmentation", COLOURS), encoder)
    assert found.skipped == "the feature maps are not finite"


@pytest.mark.slow  # 2 seconds
def test_the_size_of_images_and_masks_may_differ() -> None:
    """Images are stretched; masks are scored as they are."""
    at = {
        size: measure(protocol("segmentation", COLOURS, size=size), Averages(stride=4))
        for size in (32, 64)
    }
    assert at[64].metrics["miou"] > at[32].metrics["miou"] + 0.05  # a grid of twice the side


def test_voc_from_disk(tmp_path: Path) -> None:
    data = {"name": "voc", "task": "segmentation", "root": str(write_voc(tmp_path, count=6))}
    found = measure(protocol("segmentation", data), Averages(stride=2))
    assert found.skipped is None
    assert 0.0 < found.metrics["miou"] < 1.0
    (tmp_path / "VOC2012" / "SegmentationClass" / "2012_val_000001.png").write_text("x")
    broken = measure(protocol("segmentation", data), Averages(stride=2))
    assert broken.skipped is not None
    assert "2012_val_000001.png: not a whole PNG" in broken.skipped


@pytest.mark.parametrize(
    ("encoder", "fields", "reason"),
    [
        (torch.nn.Flatten(), {}, "the encoder Flatten offers no feature maps"),
        (network(), {"stage": 7}, "ResNet has no stage 7; valid: -5 to 4"),
        (
            network(model="vit_tiny_patch16_224", stem="default", patch_size=8),
            {"size": 40},
            "the encoder takes no images of 40 x 40 pixels: Input height",
        ),
        (network(), {"data": {**COLOURS, "num_test": 0}}, "data: scenes has no test images"),
        (
            network(),
            {"data": {**COLOURS, "channels": 1}},
            "images of 3 channel(s), and the data has 1",
        ),
        (network(), {"data": {"name": "synthetic", "size": 16}}, "data: synthetic has no masks"),
    ],
    ids=range(6),
)
def test_what_cannot_be_measured_is_skipped_with_its_reason(
    encoder: torch.nn.Module, fields: dict[str, Any], reason: str
) -> None:
    found = measure(protocol("segmentation", **{"data": COLOURS, **fields}), encoder)
    assert found.skipped is not None
    assert reason in found.skipped
    assert "\n" not in found.skipped


def test_problems_are_found_before_a_run(tmp_path: Path) -> None:
    def problems(**data: Any) -> list[tuple[str, str]]:
        config = protocol("segmentation", data).config
        return list(Segmentation.problems(config, RunFacts(100, 3, None, None, 8, 12, 120)))

    assert problems(**COLOURS) == []
    ((field, message),) = problems(name="voc", task="segmentation", root=str(tmp_path / "no"))
    assert field == "data.root"
    assert "expected the folder VOCdevkit" in message
    ((field, message),) = problems(name="digits")
    assert (field, "digits has no masks" in message) == ("data", True)
    ((field, message),) = problems(**COLOURS, channels=1)
    assert (field, "1 channel(s), and the encoder takes 3" in message) == ("data", True)


def test_it_stands_in_the_table_beside_the_baselines() -> None:
    few = {**COLOURS, "num_train": 8, "num_test": 4}
    suite = EvaluationSuite(
        named_evaluators([("segmentation", protocol("segmentation", few, max_iterations=5))]),
        TensorImages(torch.rand(4, 3, 32, 32), torch.rand(4, 3, 32, 32)),
    )
    trained = suite.run(Averages(), 1, final=True)
    results = FinalResults.collect(trained, suite.baselines(Averages()))
    rows = {row.metric: set(row.values) for row in results.rows}
    assert rows["miou"] == {"trained", "untrained", "pixels"}
    assert is_score("miou")
    assert is_score("pixel_accuracy")
    assert not is_score("selection_miou")
    for row in (row for row in results.rows if is_score(row.metric)):
        for found in (*row.values.values(), *row.differences.values()):
            assert found.over == "4 images"
            assert found.low is not None
            assert found.high is not None
            assert found.low < found.value < found.high
    assert "segmentation/classes" in trained.figures
    assert "eval/segmentation/miou_pixels" in results.baselines.metrics


@pytest.mark.slow
def test_in_a_run(tiny: Path) -> None:
    few = "{name: scenes, size: 16, num_train: 8, num_test: 4}"
    block = f"evaluate=[{{name: segmentation, stage: 1, data: {few}}}]"
    result = sslkit.run(tiny, overrides=[block, "train.epochs=1"])
    assert 0.0 < result.metrics["eval/segmentation/miou"] < 1.0
    assert {f"eval/segmentation/miou_{name}" for name in ("pixels", "untrained")} <= set(
        result.metrics
    )
