"""What is wrong, or rarely meant, in the config of a timm backbone, before the network is built."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import nn

from sslkit.api import RunFacts
from sslkit.errors import CheckpointError, first_line_of
from sslkit.nn.stem import has_resnet_stem

from .timm_layers import blocks
from .timm_network import adapt_stem, create
from .timm_source import HUB
from .timm_statistics import statistics
from .timm_weights import read_starting_weights, trained_statistics

_TINY_IMAGE = 64
"""Up to this many pixels the stem for 224 px loses too much (Chen et al. 2020, B.9)."""


def normalization_problems(config: Any, channels: int) -> Iterator[tuple[str, str]]:
    """Statistics of another number of channels than the images have."""
    given = len(statistics(config, channels)[0])
    if given != channels:
        yield (
            "normalize",
            f"statistics of {given} channel(s), but the images have {channels}: "
            "use none, or give mean and std with one value per channel",
        )


def network_problems(config: Any, channels: int, sizes: list[int]) -> Iterator[tuple[str, str]]:
    """Builds the model without memory (on the meta device) and sends each view size through."""
    try:
        with torch.device("meta"):
            model = create(config, channels, sizes[0], pretrained=False)
    except Exception as error:  # timm raises whatever its models raise; the user gets one line
        yield (
            _blamed_field(config, error),
            f"timm cannot build {config.model}: {first_line_of(error)}",
        )
        return
    yield from _stem_problems(model, config)
    if config.recompute and not blocks(model):
        yield "recompute", f"timm knows no blocks of {config.model}: set it to false"
    adapt_stem(model, config)
    for size in sizes:
        reason = _refusal(model, channels, size)
        if reason:
            yield "model", f"{config.model} cannot take {size} px views: {reason}"
    try:
        if not config.model.startswith(HUB):  # downloaded when the network is built, not before
            read_starting_weights(model, config)
    except CheckpointError as error:
        yield "model" if config.weights is None else "weights", str(error)


def _refusal(model: nn.Module, channels: int, size: int) -> str | None:
    """Why a model on the meta device cannot take views of this size, or None."""
    patch = getattr(getattr(model, "patch_embed", None), "patch_size", None)
    if isinstance(patch, tuple) and size % patch[0] != 0:
        return f"not a multiple of its patch size, {patch[0]}"
    try:
        with torch.no_grad():
            model.eval()(torch.empty(2, channels, size, size, device="meta"))
    except NotImplementedError:
        # Not the model's fault: some operation has no form without data. Before the first step the
        # real model takes two images (`check_encoder`), and refuses there if it must.
        return None
    except Exception as error:
        return first_line_of(error)
    return None


def _stem_problems(model: nn.Module, config: Any) -> Iterator[tuple[str, str]]:
    if config.stem == "default":
        return
    if not has_resnet_stem(model):
        yield "stem", f"{config.stem} is for ResNets, and {config.model} is none: use default"
    elif config.pretrained and isinstance(model.conv1, nn.Conv2d):
        yield (
            "stem",
            f"{config.stem} replaces the first convolution, which would drop its pretrained "
            "weights: use default, or start from weights trained with this stem",
        )


def start_warnings(config: Any, facts: RunFacts) -> Iterator[tuple[str, str]]:
    """What was done with the names in a weight file, and statistics that are not the weights'."""
    trained = trained_statistics(config.model) if config.pretrained else None
    if trained is not None and not _equal(trained, statistics(config, facts.channels)):
        mean, std = ([round(value, 6) for value in values] for values in trained)
        yield (
            "normalize",
            f"the weights of {config.model} were trained with other statistics of the pixels; "
            f"set normalize: {{mean: {mean}, std: {std}}}",
        )
    if config.weights is not None and facts.views:
        with torch.device("meta"):
            model = create(config, facts.channels, max(facts.views[0].sides), pretrained=False)
        adapt_stem(model, config)
        found = read_starting_weights(model, config)
        if found is not None and (note := found.note()):
            yield "weights", note


def stem_warnings(config: Any, facts: RunFacts) -> Iterator[tuple[str, str]]:
    """Small images that lose most of their pixels before the first block."""
    size = max((max(view.sides) for view in facts.views), default=0)
    trained = config.pretrained or config.weights is not None
    if config.stem != "default" or trained or not 0 < size <= _TINY_IMAGE:
        return
    with torch.device("meta"):
        first = getattr(create(config, facts.channels, size, pretrained=False), "conv1", None)
    if isinstance(first, nn.Conv2d) and first.kernel_size[0] >= 7 and first.stride[0] >= 2:
        yield (
            "stem",
            f"{config.model} begins with the stem for 224 px: views of {size} px have "
            f"{size // 4} px left before its first block; set stem: small",
        )


def _equal(one: Sequence[Sequence[float]], other: Sequence[Sequence[float]]) -> bool:
    """Whether statistics are the same, rounding apart."""
    return [[round(v, 3) for v in values] for values in one] == [
        [round(v, 3) for v in values] for values in other
    ]


def _blamed_field(config: Any, error: Exception) -> str:
    """The field whose name the message of an error holds, for the position in the recipe."""
    text = str(error)
    for name in config.model_args:
        if name in text:
            return f"model_args.{name}"
    for argument, name in (
        ("drop_path_rate", "drop_path_rate"), ("patch_size", "patch_size"), ("pool", "pool"),
    ):  # fmt: skip
        if argument in text:
            return name
    return "model"
