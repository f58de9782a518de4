"""A picture of what a method makes of hidden or damaged images."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import TYPE_CHECKING, Any, Protocol, cast, runtime_checkable

from pydantic import PositiveInt
from torch import Tensor, nn

from sslkit.api import Batch, Callback, ComponentConfig, Method, Progress, RunView
from sslkit.errors import RecipeError
from sslkit.nn.modes import eval_mode

if TYPE_CHECKING:
    from matplotlib.figure import Figure


@runtime_checkable
class MakesPictures(Protocol):
    """A method whose work can be looked at, of whatever package."""

    def pictures(self, batch: Batch) -> Mapping[str, Tensor]:
        """title -> images (B, C, S, S) in [0, 1], such as the image, what is seen of it, and what
        was made of that. Changes nothing."""


class Reconstructions(Callback):
    """Saves `figures/reconstructions.png` after each evaluation: a row for each of the first images
    that the run trained on, a column for each of the pictures that the method makes of it, by its
    `pictures(batch)`. The images are the same throughout; after a resume they are others."""

    class Config(ComponentConfig):
        num_images: PositiveInt = 8
        """Images shown, one per row."""

    config: Config

    def __init__(self, config: Config) -> None:
        super().__init__(config)
        self._method: MakesPictures | None = None
        self._batch: Batch | None = None

    def on_start(self, run: RunView, method: Method) -> None:
        if not isinstance(method, MakesPictures):
            raise RecipeError(
                f"callbacks: reconstructions needs a method that makes pictures, and "
                f"{type(method).__name__} makes none; leave the callback out"
            )
        self._method = method

    def on_batch(self, run: RunView, batch: Batch, progress: Progress) -> None:
        if self._batch is None and batch.views:
            part = batch.select(slice(0, self.config.num_images))
            self._batch = replace(part, views=tuple(view.clone() for view in part.views))

    def on_evaluation(self, run: RunView, metrics: Mapping[str, float], progress: Progress) -> None:
        if self._method is None or self._batch is None:
            return
        folder = run.files.figures
        folder.mkdir(parents=True, exist_ok=True)
        with eval_mode(cast(nn.Module, self._method)):  # nothing is dropped
            pictures = self._method.pictures(self._batch)
        pictures_figure(pictures).savefig(folder / "reconstructions.png")


def pictures_figure(pictures: Mapping[str, Tensor]) -> Figure:
    """Rows of images, a column with its title for each of the pictures."""
    from matplotlib.figure import Figure  # without pyplot: no global state, the Agg canvas

    rows = min(len(images) for images in pictures.values())
    size = (1.5 * len(pictures), 1.5 * rows + 0.3)
    figure = Figure(figsize=size, dpi=100, layout="compressed")
    axes = figure.subplots(rows, len(pictures), squeeze=False)
    for column, (title, images) in enumerate(pictures.items()):
        shown = images.detach().float().clamp(0.0, 1.0).cpu().numpy()
        for row in range(rows):
            axis: Any = axes[row][column]
            image = shown[row]
            pixels = image[0] if len(image) < 3 else image[:3].transpose(1, 2, 0)
            axis.imshow(pixels, cmap="gray", vmin=0, vmax=1, aspect="equal")
            axis.set_axis_off()
        axes[0][column].set_title(title, fontsize=8)
    return figure
