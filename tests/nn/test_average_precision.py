"""Average precision against cases computed by hand, and against COCO's own code."""

from __future__ import annotations

import contextlib
import io
from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest

from sslkit.api import Boxes
from sslkit.nn.average_precision import THRESHOLDS, Detections, average_precision, overlaps

Corners = Sequence[Sequence[float]]


def truth(
    corners: Corners,
    labels: Sequence[int] | None = None,
    difficult: Sequence[int] = (),
    crowd: Sequence[int] = (),
) -> Boxes:
    count = len(corners)
    flags = np.zeros((2, count), dtype=bool)
    flags[0, list(difficult)] = True
    flags[1, list(crowd)] = True
    return Boxes(
        np.array(corners, dtype=np.float32).reshape(count, 4),
        np.array(labels if labels is not None else [0] * count, dtype=np.int64),
        flags[0],
        flags[1],
    )


def found(
    corners: Corners, scores: Sequence[float], labels: Sequence[int] | None = None
) -> Detections:
    return Detections(
        np.array(corners, dtype=np.float64).reshape(len(corners), 4),
        np.array(labels if labels is not None else [0] * len(corners), dtype=np.int64),
        np.array(scores, dtype=np.float64),
    )


A, B, FAR = (0, 0, 10, 10), (20, 20, 40, 40), (60, 60, 70, 70)


def test_overlaps_by_hand() -> None:
    boxes = np.array([[0, 0, 10, 10]], dtype=np.float64)
    others = np.array([[5, 0, 15, 10], [0, 0, 10, 10], [10, 0, 20, 10], [0, 0, 20, 20]])
    none, crowd = np.zeros(4, dtype=bool), np.ones(4, dtype=bool)
    assert overlaps(boxes, others, none)[0] == pytest.approx([1 / 3, 1.0, 0.0, 0.25])
    assert overlaps(boxes, others, crowd)[0] == pytest.approx([0.5, 1.0, 0.0, 1.0])


def test_everything_found_is_1_and_nothing_is_0() -> None:
    table = average_precision([truth([A, B])], [found([A, B], [0.9, 0.3])], 1)
    assert table.shape == (10, 1)
    assert (table == 1.0).all()
    assert (average_precision([truth([A])], [found([], [])], 1) == 0.0).all()
    assert (average_precision([truth([A])], [found([FAR], [0.9])], 1) == 0.0).all()


def test_precision_over_101_recalls() -> None:
    """Right, wrong, right, of two objects: precision 1 up to recall 0.5, then 2/3."""
    table = average_precision([truth([A, B])], [found([A, FAR, B], [0.9, 0.8, 0.7])], 1)
    assert table == pytest.approx((51 * 1.0 + 50 * 2 / 3) / 101)


def test_half_of_the_objects_found_ends_at_half_the_recall() -> None:
    table = average_precision([truth([A, B])], [found([A], [0.9])], 1)
    assert table == pytest.approx(51 / 101)


def test_a_threshold_is_reached_by_equality() -> None:
    """Overlaps of 0.5 and 0.8 with their objects."""
    detections = found([(0, 0, 10, 5), (20, 20, 40, 36)], [0.9, 0.8])
    table = average_precision([truth([A, B])], [detections], 1)[:, 0]
    assert table[0] == 1.0
    assert table[1:7] == pytest.approx(0.5 * 51 / 101)  # the first is wrong there
    assert table[7:] == pytest.approx(0.0)
    assert np.isclose(THRESHOLDS[6], 0.8)


def test_a_second_detection_of_an_object_is_wrong() -> None:
    twice = found([A, A, B], [0.9, 0.8, 0.7])
    table = average_precision([truth([A, B])], [twice], 1)
    assert table == pytest.approx((51 + 50 * 2 / 3) / 101)


def test_difficult_objects_need_not_be_found_and_are_no_error() -> None:
    objects = truth([A, B], difficult=[1])
    assert average_precision([objects], [found([A], [0.9])], 1) == pytest.approx(1.0)
    assert average_precision([objects], [found([B, A], [0.9, 0.8])], 1) == pytest.approx(1.0)
    # Only one detection is excused by a difficult object, any number by a crowd.
    twice = found([B, B, A], [0.9, 0.8, 0.7])
    assert average_precision([objects], [twice], 1) == pytest.approx(0.5)
    assert average_precision([truth([A, B], crowd=[1])], [twice], 1) == pytest.approx(1.0)


def test_an_object_is_preferred_to_a_difficult_one_that_overlaps_more() -> None:
    objects = truth([(0, 0, 10, 12), (0, 0, 10, 10)], difficult=[1])
    assert average_precision([objects], [found([A], [0.9])], 1)[0] == pytest.approx(1.0)


def test_classes_are_apart_and_one_without_objects_is_undefined() -> None:
    objects = [truth([A, B], [0, 1]), truth([FAR], [0])]
    detections = [found([A, B], [0.9, 0.9], [0, 0]), found([FAR], [0.5], [2])]
    table = average_precision(objects, detections, 3)
    assert table[:, 0] == pytest.approx(51 / 101)
    assert table[:, 1] == pytest.approx(0.0)
    assert np.isnan(table[:, 2]).all()


def test_images_without_objects_hold_wrong_detections() -> None:
    objects = [truth([A]), truth([])]
    detections = [found([A], [0.5]), found([A], [0.9])]
    assert average_precision(objects, detections, 1) == pytest.approx(0.5)


def test_lists_of_different_length_are_refused() -> None:
    with pytest.raises(ValueError, match="detections of 0 images for 1"):
        average_precision([truth([A])], [], 1)


def scenario(seed: int, images: int, classes: int) -> tuple[list[Boxes], list[Detections]]:
    """Random objects, and detections that are jittered copies of them or made up."""
    rng = np.random.default_rng(seed)
    truths, detections = [], []
    for _ in range(images):
        count = int(rng.integers(0, 9))
        start = rng.integers(0, 80, (count, 2))
        corners = np.hstack([start, start + rng.integers(4, 40, (count, 2))]).astype(np.float32)
        labels = rng.integers(0, classes, count)
        truths.append(Boxes(corners, labels, np.zeros(count, dtype=bool), rng.random(count) < 0.15))
        rows = rng.integers(0, max(count, 1), 3 * count)
        moved = corners[rows] + rng.integers(-4, 5, (len(rows), 4)) if count else corners
        extra = np.tile(np.array([5.0, 5.0, 30.0, 22.0]), (3, 1)) + rng.integers(0, 30, (3, 1))
        boxes = np.concatenate([moved, extra]).astype(np.float64)
        boxes[:, 2:] = np.maximum(boxes[:, 2:], boxes[:, :2] + 1)
        kept = labels[rows] if count else labels
        names = np.concatenate([kept, rng.integers(0, classes, 3)])
        scores = rng.integers(1, 50, len(boxes)) / 50.0  # with many ties
        detections.append(Detections(boxes, names, scores))
    return truths, detections


def coco_evaluation(truths: list[Boxes], detections: list[Detections], classes: int) -> Any:
    """Precision (T, R, C) by pycocotools."""
    coco = pytest.importorskip("pycocotools.coco", reason="pycocotools is not installed")
    evaluation = pytest.importorskip("pycocotools.cocoeval")

    def box(corners: Any) -> list[float]:
        left, top, right, bottom = (float(value) for value in corners)
        return [left, top, right - left, bottom - top]

    annotations = [
        {
            "image_id": number + 1, "category_id": int(label) + 1, "bbox": box(corners),
            "area": float(np.prod(box(corners)[2:])), "iscrowd": int(crowd),
        }
        for number, objects in enumerate(truths)
        for corners, label, crowd in zip(
            objects.corners, objects.labels, objects.crowd, strict=True
        )
    ]  # fmt: skip
    for number, annotation in enumerate(annotations):
        annotation["id"] = number + 1
    results = [
        {
            "image_id": number + 1, "category_id": int(label) + 1, "bbox": box(corners),
            "score": float(score),
        }
        for number, each in enumerate(detections)
        for corners, label, score in zip(each.corners, each.labels, each.scores, strict=True)
    ]  # fmt: skip
    with contextlib.redirect_stdout(io.StringIO()):
        annotated = coco.COCO()
        annotated.dataset = {
            "images": [{"id": number + 1} for number in range(len(truths))],
            "annotations": annotations,
            "categories": [{"id": label + 1, "name": str(label)} for label in range(classes)],
        }
        annotated.createIndex()
        run = evaluation.COCOeval(annotated, annotated.loadRes(results), "bbox")
        run.params.areaRng, run.params.areaRngLbl = [[0, 1e10]], ["all"]
        run.evaluate()
        run.accumulate()
    return run.eval["precision"][:, :, :, 0, -1]


@pytest.mark.parametrize("seed", range(6))
def test_equal_to_the_code_of_coco(seed: int) -> None:
    classes = 3
    truths, detections = scenario(seed, images=25, classes=classes)
    theirs = coco_evaluation(truths, detections, classes)
    ours = average_precision(truths, detections, classes)
    assert 0.05 < ours.mean() < 0.95
    np.testing.assert_allclose(ours, theirs.mean(axis=1), atol=1e-12)
