"""Average precision of detections, by the definition of COCO (Lin et al. 2014, arXiv:1405.0312, and
the evaluation code that was published with it).

Shapes: M annotated objects and D detections of an image, T thresholds, C classes.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from .boxes import Boxes

THRESHOLDS: NDArray[np.float64] = np.linspace(0.5, 0.95, 10)
"""Least overlaps (intersection over union) at which a detection counts as right."""
_RECALLS = np.linspace(0.0, 1.0, 101)
_MOST_DETECTIONS = 100

Floats = NDArray[np.floating[Any]]


@dataclass(frozen=True)
class Detections:
    """What a detector found in one image."""

    corners: Floats
    """(D, 4) left, top, right, bottom in pixels."""
    labels: NDArray[np.int64]
    """(D,) class indices."""
    scores: Floats
    """(D,) the higher the surer."""


class _Matched(NamedTuple):
    """The detections of one class in one image, best first."""

    scores: Floats  # (D,)
    hits: NDArray[np.bool_]  # (T, D)
    ignored: NDArray[np.bool_]  # (T, D)
    wanted: int  # objects that should be found


def average_precision(
    truths: Sequence[Boxes],
    found: Sequence[Detections],
    num_classes: int,
    thresholds: NDArray[np.float64] = THRESHOLDS,
) -> NDArray[np.float64]:
    """(T, C): for every threshold and class, precision averaged over 101 recalls from 0 to 1, each
    the highest at that recall or a larger one. NaN for a class without objects.

    truths and found: one entry for each image. The 100 surest detections of a class in an image
    count. In the order of their scores they take the object of their class that they overlap most,
    if it is free; a detection that takes a difficult object or lies in a crowd (overlap there is
    the part of the detection inside) counts neither as right nor as wrong."""
    if len(truths) != len(found):
        raise ValueError(f"detections of {len(found)} images for {len(truths)} annotated ones")
    table = np.full((len(thresholds), num_classes), np.nan)
    for label in range(num_classes):
        matched = [
            _match(truth, detections, label, thresholds)
            for truth, detections in zip(truths, found, strict=True)
            if (truth.labels == label).any() or (detections.labels == label).any()
        ]
        wanted = sum(each.wanted for each in matched)
        if wanted:
            table[:, label] = _precision(matched, wanted)
    return table


def overlaps(found: Floats, objects: Floats, crowd: NDArray[np.bool_]) -> NDArray[np.float64]:
    """(D, M) intersection over union of corners (D, 4) and (M, 4); over the area of the detection
    for a crowd."""
    found, objects = found.astype(np.float64)[:, None], objects.astype(np.float64)[None]
    sides = np.minimum(found[..., 2:], objects[..., 2:]) - np.maximum(
        found[..., :2], objects[..., :2]
    )
    shared = sides.clip(0.0).prod(axis=-1)
    area = (found[..., 2:] - found[..., :2]).prod(axis=-1)
    others = (objects[..., 2:] - objects[..., :2]).prod(axis=-1)
    whole = np.where(crowd, area, area + others - shared)
    found_overlaps: NDArray[np.float64] = np.divide(
        shared, whole, out=np.zeros_like(shared), where=whole > 0.0
    )
    return found_overlaps


def _match(truth: Boxes, found: Detections, label: int, thresholds: Floats) -> _Matched:
    rows = np.flatnonzero(found.labels == label)
    rows = rows[np.argsort(-found.scores[rows], kind="stable")][:_MOST_DETECTIONS]
    objects = np.flatnonzero(truth.labels == label)
    crowd = truth.crowd[objects]
    spared = crowd | truth.difficult[objects]
    hits = np.zeros((len(thresholds), len(rows)), dtype=np.bool_)
    ignored = np.zeros_like(hits)
    overlap = overlaps(found.corners[rows], truth.corners[objects], crowd)
    free = np.ones((len(thresholds), len(objects)), dtype=np.bool_)
    least = np.minimum(thresholds, 1.0 - 1e-10)[:, None]
    for d, row in enumerate(overlap):
        possible = free & (row >= least)
        if not possible.any():
            continue
        # Objects that should be found come first, then the greatest overlap, then the last.
        ranks = np.where(possible, row + 2.0 * ~spared, -1.0)
        best = ranks.shape[1] - 1 - ranks[:, ::-1].argmax(axis=1)
        (taking,) = possible.any(axis=1).nonzero()
        chosen = best[taking]
        hits[taking, d] = ~spared[chosen]
        ignored[taking, d] = spared[chosen]
        free[taking, chosen] = crowd[chosen]
    return _Matched(found.scores[rows], hits, ignored, int((~spared).sum()))


def _precision(matched: Sequence[_Matched], wanted: int) -> NDArray[np.float64]:
    """(T,) the average precision of one class."""
    scores = np.concatenate([each.scores for each in matched])
    order = np.argsort(-scores, kind="stable")
    hits = np.concatenate([each.hits for each in matched], axis=1)[:, order]
    ignored = np.concatenate([each.ignored for each in matched], axis=1)[:, order]
    right = np.cumsum(hits, axis=1, dtype=np.float64)
    wrong = np.cumsum(~hits & ~ignored, axis=1, dtype=np.float64)
    recall = right / wanted
    precision = right / np.maximum(right + wrong, np.finfo(np.float64).tiny)
    envelope = np.maximum.accumulate(precision[:, ::-1], axis=1)[:, ::-1]
    result = np.zeros(len(hits))
    for t, (reached, best) in enumerate(zip(recall, envelope, strict=True)):
        places = np.searchsorted(reached, _RECALLS, side="left")
        result[t] = best[places[places < len(best)]].sum() / len(_RECALLS)
    return result
