"""A picture of what the encoder sees: the views of the first batch of a run."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray
from pydantic import PositiveInt

from sslkit.api import Batch, Callback, ComponentConfig, Method, Progress, RunView

if TYPE_CHECKING:
    from matplotlib.figure import Figure


class AugmentedViewsConfig(ComponentConfig):
    """Fields of the `augmented_views` callback."""

    num_images: PositiveInt = 8
    """Images shown, one per row."""


class AugmentedViews(Callback):
    """Saves `figures/augmented_views.png` in the run folder: one row per image of the first batch,
    one column per view. Images of one channel are shown in grey; of more than three channels, the
    first three."""

    Config = AugmentedViewsConfig
    config: AugmentedViewsConfig

    def __init__(self, config: AugmentedViewsConfig) -> None:
        super().__init__(config)
        self._saved = False

    def on_start(self, run: RunView, method: Method) -> None:
        self._saved = (run.run_dir / "figures" / "augmented_views.png").exists()

    def on_batch(self, run: RunView, batch: Batch, progress: Progress) -> None:
        if self._saved or not batch.views:
            return
        self._saved = True
        path = run.run_dir / "figures" / "augmented_views.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        views_figure(batch, self.config.num_images).savefig(path)


def views_figure(batch: Batch, num_images: int) -> Figure:
    """Rows of images, columns of views, each view in its own size and without interpolation."""
    from matplotlib.figure import Figure  # without pyplot: no global state, the Agg canvas

    num_rows, num_views = min(num_images, len(batch)), len(batch.views)
    figure = Figure(figsize=(1.5 * num_views, 1.5 * num_rows + 0.3), dpi=100, layout="compressed")
    axes = figure.subplots(num_rows, num_views, squeeze=False)
    for column, view in enumerate(batch.views):
        for row in range(num_rows):
            axis: Any = axes[row][column]
            axis.imshow(image_pixels(view[row]), cmap="gray", vmin=0, vmax=1, aspect="equal")
            axis.set_axis_off()
        axes[0][column].set_title(f"view {column} ({view.shape[-1]} px)", fontsize=8)
    return figure


def image_pixels(image: Any) -> NDArray[np.float32]:
    """(C, S, S) to what imshow takes: (S, S) for one or two channels, else (S, S, 3)."""
    pixels: NDArray[np.float32] = image.detach().float().clamp(0.0, 1.0).cpu().numpy()
    return pixels[0] if len(pixels) < 3 else pixels[:3].transpose(1, 2, 0)
