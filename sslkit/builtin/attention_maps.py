"""A picture of where the class token of a transformer looks."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from pydantic import PositiveInt
from torch import Tensor

from sslkit.api import Backbone, Batch, Callback, ComponentConfig, Method, Progress, RunView
from sslkit.errors import RecipeError

from .augmented_views import image_pixels

if TYPE_CHECKING:
    from matplotlib.figure import Figure


class AttentionMaps(Callback):
    """Saves `figures/attention_maps.png` after each evaluation: a row for each of the first images
    that the run trained on, as its largest view has it; beside it how much the class token of the
    encoder attends to each patch in the last block, the mean over heads and head by head, each from
    0 to its own greatest. For any backbone with `class_attention`, such as timm's transformers. The
    images are the same throughout; after a resume they are others.
    Source of the picture: Caron et al. 2021, arXiv 2104.14294."""

    class Config(ComponentConfig):
        num_images: PositiveInt = 6
        """Images shown, one per row."""
        num_heads: PositiveInt = 6
        """Heads shown, the first of them."""

    config: Config

    def __init__(self, config: Config) -> None:
        super().__init__(config)
        self._encoder: Backbone | None = None
        self._images: Tensor | None = None

    def on_start(self, run: RunView, method: Method) -> None:
        encoder = method.encoder
        layout = encoder.token_layout
        if layout is None or not layout.has_class_token:
            raise RecipeError(
                "callbacks: attention_maps needs a backbone with a class token, and "
                f"{type(encoder).__name__} as it is set has none; choose a vision transformer, "
                "such as {name: timm, model: vit_small_patch16_224}, or leave the callback out"
            )
        self._encoder = encoder

    def on_batch(self, run: RunView, batch: Batch, progress: Progress) -> None:
        if self._images is None and batch.views:
            largest = max(batch.views, key=lambda view: view.shape[-2:].numel())
            self._images = largest[: self.config.num_images].clone()

    def on_evaluation(self, run: RunView, metrics: Mapping[str, float], progress: Progress) -> None:
        if self._encoder is None or self._images is None or self._encoder.token_layout is None:
            return
        attention = self._encoder.class_attention(self._images)
        rows, columns = self._encoder.token_layout.grid(*self._images.shape[-2:])
        folder = run.files.figures
        folder.mkdir(parents=True, exist_ok=True)
        maps = attention.view(*attention.shape[:2], rows, columns)
        figure = attention_figure(self._images, maps, self.config.num_heads)
        figure.savefig(folder / "attention_maps.png")


def attention_figure(images: Tensor, maps: Tensor, num_heads: int) -> Figure:
    """Rows of images (B, C, H, W), with the mean of their maps (B, heads, rows, columns) and the
    first so many heads."""
    from matplotlib.figure import Figure  # without pyplot: no global state, the Agg canvas

    heads = maps.shape[1]
    shown = {f"mean of {heads} heads": maps.mean(1)}
    shown |= {f"head {n + 1}": maps[:, n] for n in range(min(heads, num_heads))}
    size = (1.5 * (1 + len(shown)), 1.5 * len(images) + 0.3)
    figure = Figure(figsize=size, dpi=100, layout="compressed")
    axes: Any = figure.subplots(len(images), 1 + len(shown), squeeze=False)
    for row, image in enumerate(images):
        axes[row][0].imshow(image_pixels(image), cmap="gray", vmin=0, vmax=1, aspect="equal")
        for axis, values in zip(axes[row][1:], shown.values(), strict=True):
            axis.imshow(values[row].float().cpu().numpy(), cmap="inferno", vmin=0, aspect="equal")
    for axis, title in zip(axes[0], ("image", *shown), strict=True):
        axis.set_title(title, fontsize=8)
    for axis in axes.flat:
        axis.set_axis_off()
    return figure
