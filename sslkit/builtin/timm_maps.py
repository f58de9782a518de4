"""Feature maps of timm models."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import Tensor, nn

from sslkit.api import FeatureStage, NoFeatureMapsError
from sslkit.nn.stem import stem_strides


def feature_stages(model: nn.Module) -> tuple[FeatureStage, ...]:
    """Where `take_feature_maps` can take features, first to last; empty where timm knows no such
    places. Strides are timm's, corrected where a ResNet's stem was changed for small images."""
    if not hasattr(model, "forward_intermediates"):
        return ()
    described: Any = getattr(model, "feature_info", None)
    info: Sequence[dict[str, Any]] = getattr(described, "info", described) or ()
    before, after = _spared(model)  # the first stage of a ResNet lies before the max-pool
    return tuple(
        FeatureStage(
            str(stage["module"]),
            int(stage["num_chs"]),
            int(stage["reduction"]) // (before if number == 0 else before * after),
        )
        for number, stage in enumerate(info)
    )


def _spared(model: nn.Module) -> tuple[int, int]:
    """How much less than as published a ResNet's first convolution and its max-pool shrink."""
    strides = stem_strides(model)
    if strides is None or strides == (2, 2):
        return 1, 1
    return 2 // strides[0], 2 // strides[1]


def take_feature_maps(model: nn.Module, images: Tensor, stages: Sequence[int]) -> list[Tensor]:
    """One (B, channels, H, W) for each stage. images: normalised, as the model expects them."""
    known = feature_stages(model)
    if not known:
        raise NoFeatureMapsError(f"timm knows no feature maps of {type(model).__name__}")
    for stage in stages:
        if not -len(known) <= stage < len(known):
            raise NoFeatureMapsError(
                f"{type(model).__name__} has no stage {stage}; valid: {-len(known)} to "
                f"{len(known) - 1}"
            )
    wanted = [stage % len(known) for stage in stages]
    taken = sorted(set(wanted))
    maps: list[Tensor] = model.forward_intermediates(  # type: ignore[operator]
        images, indices=taken, norm=True, stop_early=True, intermediates_only=True
    )
    return [maps[taken.index(stage)] for stage in wanted]
