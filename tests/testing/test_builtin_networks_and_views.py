"""Backbones, heads and augmentations that come with sslkit meet the laws of their kind."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import pytest

from sslkit.testing import Check, checks

CONFIGURATIONS: Sequence[tuple[str, Mapping[str, Any]]] = (
    ("backbone:timm", {"model": "test_resnet"}),
    ("backbone:timm", {"model": "test_vit", "pool": "avg", "drop_path_rate": 0.1}),
    ("backbone:timm", {"model": "test_convnext", "recompute": True, "normalize": "none"}),
    ("backbone:timm", {"model": "resnet18", "stem": "small", "init": "torch"}),
    ("head:mlp", {}),
    ("head:mlp", {"num_layers": 3, "hidden_norm": "ln", "output_norm": "none", "out_dim": 7}),
    ("head:mlp", {"num_layers": 1, "output_norm": "bn_no_affine", "init": "normal_0.01"}),
    ("augmentation:crop_flip", {"size": 17, "num_views": 2}),
    ("augmentation:simclr", {"size": 24}),
    ("augmentation:crop_flip", {"size": 160}),  # larger than the images that it is tried on
    (
        "augmentation:simclr",
        {
            "size": 32,
            "rotation_degrees": 30.0,
            "solarize_probability": 0.5,
            "views": [{"interpolation": "bilinear"}, {"size": 16, "role": "local", "count": 2}],
        },
    ),
    (
        "augmentation:simclr",  # for grey images too
        {"size": 20, "hue": 0.0, "saturation": 0.0, "grayscale_probability": 0.0, "blur": False},
    ),
)


def every_check() -> list[Any]:
    """A check of each law on each configuration, slow ones marked."""
    return [
        pytest.param(
            check,
            marks=pytest.mark.slow if check.law.slow else (),  # by what the law says of itself
            id=f"{component}-{number}-{check}",
        )
        for number, (component, fields) in enumerate(CONFIGURATIONS)
        for check in checks(component, **fields)
    ]


@pytest.mark.slow  # 30 seconds
@pytest.mark.parametrize("check", every_check())
def test_laws(check: Check) -> None:
    check()
