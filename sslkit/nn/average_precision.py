"""Average precision of detections, by the definition of COCO (Lin et al. 2014, arXiv:1405.0312, and
the evaluation code that was published with it).

Shapes: M annotated objects and D detections of an image, T thresholds, C classes, r resamples.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import nan
from typing import Any, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

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

    image: int
    scores: Floats  # (D,)
    hits: NDArray[np.bool_]  # (T, D)
    ignored: NDArray[np.bool_]  # (T, D)
    wanted: int  # objects that should be found


@dataclass(frozen=True)
class Matches:
    """Which detections hit which objects, and in which images: average precision follows from it,
    on these images and on any that are drawn from them."""

    by_class: Sequence[Sequence[_Matched]]
    num_thresholds: int

    @classmethod
    def of(
        cls,
        truths: Sequence[Boxes],
        found: Sequence[Detections],
        num_classes: int,
        thresholds: NDArray[np.float64] = THRESHOLDS,
    ) -> Matches:
        """Arguments as for `average_precision`."""
        if len(truths) != len(found):
            raise ValueError(f"detections of {len(found)} images for {len(truths)} annotated ones")
        by_class = [
            [
                _match(image, truth, detections, label, thresholds)
                for image, (truth, detections) in enumerate(zip(truths, found, strict=True))
                if (truth.labels == label).any() or (detections.labels == label).any()
            ]
            for label in range(num_classes)
        ]
        return cls(by_class, len(thresholds))

    @property
    def width(self) -> int:
        """Detections of the class that has most."""
        return max((sum(len(m.scores) for m in each) for each in self.by_class), default=0)

    def average_precision(self) -> NDArray[np.float64]:
        """(T, C), see `average_precision`."""
        table = np.full((self.num_thresholds, len(self.by_class)), np.nan)
        for label, matched in enumerate(self.by_class):
            wanted = sum(each.wanted for each in matched)
            if wanted:
                table[:, label] = _precision(matched, wanted)
        return table

    def drawn(self, counts: Tensor) -> Tensor:
        """(r, T, C) average precision where images were drawn more than once, or not.

        counts: (r, M) float64, how often each image was drawn."""
        table = counts.new_full((len(counts), self.num_thresholds, len(self.by_class)), nan)
        for label, matched in enumerate(self.by_class):
            if any(each.wanted for each in matched):
                table[:, :, label] = _drawn_precision(matched, counts)
        return table


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
    return Matches.of(truths, found, num_classes, thresholds).average_precision()


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


def _match(image: int, truth: Boxes, found: Detections, label: int, thresholds: Floats) -> _Matched:
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
    return _Matched(image, found.scores[rows], hits, ignored, int((~spared).sum()))


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


def _drawn_precision(matched: Sequence[_Matched], counts: Tensor) -> Tensor:
    """(r, T) the average precision of one class, NaN where no object of it was drawn. Precision is
    taken at hits alone: it falls everywhere else."""
    scores = np.concatenate([each.scores for each in matched])
    order = np.argsort(-scores, kind="stable")
    images = np.repeat([each.image for each in matched], [len(each.scores) for each in matched])
    hits = np.concatenate([each.hits for each in matched], axis=1)[:, order]
    ignored = np.concatenate([each.ignored for each in matched], axis=1)[:, order]
    weights = counts[:, torch.from_numpy(images[order])]
    objects = counts.new_tensor([each.wanted for each in matched])
    wanted = counts[:, [each.image for each in matched]] @ objects
    seen = weights.cumsum(dim=1)
    recalls = torch.from_numpy(_RECALLS).repeat(len(counts), 1)
    found = counts.new_empty(len(counts), len(hits))
    for t, (hit, spared) in enumerate(zip(hits, ignored, strict=True)):
        at = torch.from_numpy(hit.nonzero()[0])
        right = weights[:, at].cumsum(dim=1)
        counted = seen[:, at]
        if spared.any():
            places = torch.from_numpy(spared.nonzero()[0])
            before = F.pad(weights[:, places].cumsum(dim=1), (1, 0))
            counted = counted - before[:, torch.searchsorted(places, at)]
        precision = right / counted.clamp_min(1.0)
        envelope = precision.flip(1).cummax(dim=1).values.flip(1)
        places = torch.searchsorted(right / wanted[:, None], recalls)
        found[:, t] = F.pad(envelope, (0, 1)).gather(1, places).mean(dim=1)
    return torch.where(wanted[:, None] > 0.0, found, nan)
