"""Annotated objects of an image."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True)
class Boxes:
    """The annotated objects of one image, M of them."""

    corners: NDArray[np.float32]
    """(M, 4) left, top, right, bottom in pixels; right > left, bottom > top."""
    labels: NDArray[np.int64]
    """(M,) positions in `HasBoxes.box_classes`."""
    difficult: NDArray[np.bool_]
    """(M,) True: need not be found, and is no error where it is (VOC's `difficult`)."""
    crowd: NDArray[np.bool_]
    """(M,) True: a region with many objects of the class; like `difficult`, and any number of
    detections inside it is no error (COCO's `iscrowd`)."""

    def __len__(self) -> int:
        return len(self.labels)
