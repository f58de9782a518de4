"""Faster R-CNN on a copy of an encoder, by torchvision's parts.

torchvision takes seconds to import, so it is imported where it is used.
"""

from __future__ import annotations

import copy
from collections import OrderedDict
from collections.abc import Sequence
from typing import Any

from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from sslkit.api import Backbone, FeatureStage, NoFeatureMapsError

_ASPECTS = (0.5, 1.0, 2.0)
_ANCHOR_STRIDES = 8
"""Side of a level's anchors in strides: 32 px at stride 4, as Lin et al. 2017 (arXiv:1612.03144)
have it for images of 800 px."""
_MOST_LEVELS = 4


def pyramid_stages(stages: Sequence[FeatureStage]) -> list[int]:
    """The stages that a feature pyramid is built on: the last one of each stride, at most the four
    coarsest. For a ResNet its four blocks, for a ViT its last one."""
    last = {stage.stride: number for number, stage in enumerate(stages)}
    return [last[stride] for stride in sorted(last)[-_MOST_LEVELS:]]


class Pyramid(nn.Module):
    """A copy of an encoder, and the feature pyramid on its maps (Lin et al. 2017): level "0" is the
    finest, "pool" halves the coarsest once more."""

    def __init__(self, encoder: Backbone, stages: Sequence[int], width: int, frozen: bool) -> None:
        """frozen: BatchNorm keeps the statistics and the weights that the encoder has."""
        from torchvision.ops.feature_pyramid_network import FeaturePyramidNetwork, LastLevelMaxPool

        super().__init__()
        self.encoder = copy.deepcopy(encoder)
        self.stages = tuple(stages)
        chosen = [encoder.feature_stages[stage] for stage in stages]
        self.strides = [stage.stride for stage in chosen]
        if self.strides != sorted(set(self.strides)):
            raise NoFeatureMapsError(
                f"stages {list(stages)} have strides {self.strides}; a feature pyramid needs "
                "stages whose strides grow"
            )
        self.out_channels = width
        self.pyramid: nn.Module = FeaturePyramidNetwork(
            [stage.channels for stage in chosen], width, extra_blocks=LastLevelMaxPool()
        )
        self._frozen = frozen
        self.encoder.requires_grad_(True)
        if frozen:
            for layer in self._batch_norms():
                layer.requires_grad_(False)

    def forward(self, images: Tensor) -> OrderedDict[str, Tensor]:
        maps = self.encoder.feature_maps(images, self.stages)
        levels = OrderedDict((str(number), level) for number, level in enumerate(maps))
        found: OrderedDict[str, Tensor] = self.pyramid(levels)
        return found

    def train(self, mode: bool = True) -> Pyramid:
        super().train(mode)
        if self._frozen:
            for layer in self._batch_norms():
                layer.eval()
        return self

    def _batch_norms(self) -> list[nn.Module]:
        return [layer for layer in self.encoder.modules() if isinstance(layer, _BatchNorm)]


def faster_rcnn(
    pyramid: Pyramid,
    *,
    num_classes: int,
    channels: int,
    sizes: Sequence[int],
    max_size: int,
    head_width: int,
) -> Any:
    """torchvision's Faster R-CNN (Ren et al. 2015, arXiv:1506.01497) with its defaults, but for
    anchors that follow the strides of the pyramid. Classes are 1 to `num_classes`; 0 is the
    background. sizes: of the shorter side; training takes one of them at random for each image,
    testing the last one."""
    from torchvision.models.detection import FasterRCNN
    from torchvision.models.detection.faster_rcnn import FastRCNNPredictor, TwoMLPHead
    from torchvision.models.detection.rpn import AnchorGenerator
    from torchvision.ops import MultiScaleRoIAlign

    strides = [*pyramid.strides, 2 * pyramid.strides[-1]]
    anchors = tuple((_ANCHOR_STRIDES * stride,) for stride in strides)
    levels = [str(number) for number in range(len(pyramid.strides))]
    side = 7
    return FasterRCNN(
        pyramid,
        min_size=tuple(sizes),
        max_size=max_size,
        image_mean=[0.0] * channels,  # the encoder normalises by itself
        image_std=[1.0] * channels,
        rpn_anchor_generator=AnchorGenerator(anchors, (_ASPECTS,) * len(anchors)),
        box_roi_pool=MultiScaleRoIAlign(levels, output_size=side, sampling_ratio=2),
        box_head=TwoMLPHead(pyramid.out_channels * side**2, head_width),
        box_predictor=FastRCNNPredictor(head_width, num_classes + 1),
    )
