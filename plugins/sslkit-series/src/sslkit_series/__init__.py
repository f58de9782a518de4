"""One-dimensional series for sslkit: the sources `waves` and `series_folder`, the augmentation
`series` and the backbone `resnet1d`. Samples are (C, L) float32; methods, heads, losses and
evaluators are those of the core and of other packages, unchanged."""

from __future__ import annotations

from collections.abc import Mapping

from sslkit import hookimpl

sslkit_interface = 2


@hookimpl
def register_datasets() -> Mapping[str, str]:
    return {
        "waves": "sslkit_series.waves:Waves",
        "series_folder": "sslkit_series.series_folder:SeriesFolder",
    }


@hookimpl
def register_augmentations() -> Mapping[str, str]:
    return {"series": "sslkit_series.series_views:SeriesViews"}


@hookimpl
def register_backbones() -> Mapping[str, str]:
    return {"resnet1d": "sslkit_series.resnet1d:ResNet1d"}
