"""Stems of residual networks for small images."""

from __future__ import annotations

from torch import Tensor, nn


def has_resnet_stem(model: nn.Module) -> bool:
    """Whether `use_small_stem` can work on it: a `conv1` (one convolution, or timm's deep stem)
    followed by a `maxpool`."""
    return _first_convolution(model) is not None and isinstance(
        getattr(model, "maxpool", None), nn.Module
    )


def use_small_stem(model: nn.Module, *, keep_pool: bool = False, padding: int = 1) -> None:
    """Gives a ResNet a stem that does not shrink small images.

    The first convolution becomes 3x3 with stride 1 and without bias, and the max-pool is removed
    unless `keep_pool`; everything else stays. A deep stem, whose first convolution is 3x3 already,
    keeps its weights and only loses the stride. `padding` 2 reproduces solo-learn, whose maps are
    therefore 2 pixels larger.

    Raises ValueError where the model has no such stem. Source: Chen et al. 2020, arXiv 2002.05709,
    appendix B.9.
    """
    first = _first_convolution(model)
    if first is None or not has_resnet_stem(model):
        raise ValueError(f"{type(model).__name__} has no ResNet stem (conv1 and maxpool)")
    if first.kernel_size == (3, 3):
        first.stride = (1, 1)
        first.padding = (padding, padding)
    else:
        model.conv1 = _small_convolution(first, padding)
    if not keep_pool:
        model.maxpool = nn.Identity()


def stem_strides(model: nn.Module) -> tuple[int, int] | None:
    """Strides of the first convolution (1 or 2) and of the max-pool (1 where it was removed) of a
    ResNet's stem; None for other models."""
    first = _first_convolution(model)
    if first is None or not has_resnet_stem(model):
        return None
    return min(first.stride[0], 2), 1 if isinstance(model.maxpool, nn.Identity) else 2


def _first_convolution(model: nn.Module) -> nn.Conv2d | None:
    stem = getattr(model, "conv1", None)
    if isinstance(stem, nn.Sequential) and len(stem) > 0:
        stem = stem[0]
    return stem if isinstance(stem, nn.Conv2d) else None


def _small_convolution(old: nn.Conv2d, padding: int) -> nn.Conv2d:
    weight: Tensor = old.weight
    new = nn.Conv2d(
        old.in_channels,
        old.out_channels,
        kernel_size=3,
        stride=1,
        padding=padding,
        bias=False,
        device=weight.device,
        dtype=weight.dtype,
    )
    nn.init.kaiming_normal_(new.weight, mode="fan_out", nonlinearity="relu")  # as timm's ResNets
    return new
