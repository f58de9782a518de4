"""Whether an export makes the features of the encoder."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from sslkit.errors import ExportError

from .preprocessing import read_preprocess
from .sample_images import Probe
from .source import ExportSource

TOLERANCE = 1e-5
"""Difference, as a part of the feature scale: about a hundred roundings of float32, and far below
what any change of a weight, of the preprocessing or of an operation makes."""

Embed = Callable[[Tensor], Tensor]
"""(B, C, S, S) images, or (B, *shape) other samples, to (B, F) float32, for any B."""


@dataclass(frozen=True)
class Difference:
    """How far two sets of features are from one another."""

    largest: float
    """Largest absolute difference of a feature."""
    scale: float
    """Root mean square of the encoder's features."""

    @property
    def relative(self) -> float:
        """The largest difference in units of the scale."""
        return self.largest / self.scale if self.scale > 0.0 else self.largest

    def words(self) -> str:
        """The end of a sentence that says that the features are equal."""
        return f"to {self.relative:.1e} of their scale" if self.largest else "to the bit"


def reference(source: ExportSource, probe: Probe) -> Tensor:
    """The encoder's own features, (N, F). Raises ExportError where they are not finite."""
    images = probe.batch(source.encoder.preparation)
    features = _embed(lambda part: source.encoder(part).float(), images)
    if not features.isfinite().all():
        raise ExportError(
            f"{source.path}: its encoder makes features that are not finite, on {probe.origin}; "
            "see whether the run has diverged"
        )
    return features


def compare(expected: Tensor, embed: Embed, folder: Path, probe: Probe) -> Difference:
    """Embeds the images as the files of the export say.

    Raises ExportError where the features have another shape."""
    preprocess, normalization_inside = read_preprocess(folder)
    images = probe.batch(preprocess)
    if not normalization_inside and preprocess is not None:
        mean, std = torch.tensor(preprocess.mean), torch.tensor(preprocess.std)
        images = (images - mean.view(-1, 1, 1)) / std.view(-1, 1, 1)
    found = _embed(embed, images)
    if found.shape != expected.shape:
        raise ExportError(
            f"{tuple(found.shape)} features, where the encoder makes {tuple(expected.shape)}"
        )
    difference = (found.double() - expected.double()).abs().max()
    return Difference(float(difference), float(expected.double().square().mean().sqrt()))


def _embed(embed: Embed, images: Tensor) -> Tensor:
    """Features of all images, in batches of 1, 2 and the rest: any number must do."""
    with torch.no_grad():
        parts = [images[:1], images[1:3], images[3:]]
        return torch.cat([embed(part) for part in parts if len(part)])
