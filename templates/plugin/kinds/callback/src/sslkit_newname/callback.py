"""The strength of gradients by part of the method."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping

import torch
from pydantic import PositiveInt
from sslkit.api import Callback, ComponentConfig, Progress, RunView
from torch import Tensor


class NewName(Callback):
    """The norm of the gradient of each part of the method, and its share of all.

    A callback watches: it changes no weight, gradient or view. It keeps nothing, so that a run that
    is resumed logs the same."""

    class Config(ComponentConfig):
        depth: PositiveInt = 1
        """Words of a parameter's name that make a part: 1 `backbone`, 2 `backbone.layer1`."""

    config: Config

    def on_gradients(
        self, run: RunView, gradients: Mapping[str, Tensor], progress: Progress
    ) -> Mapping[str, Tensor]:
        squares: dict[str, list[Tensor]] = defaultdict(list)
        for name, gradient in gradients.items():
            words = name.split(".")[:-1] or [name]  # without `weight` and `bias`
            part = ".".join(words[: self.config.depth])
            squares[part].append(gradient.float().square().sum())
        sums = {part: torch.stack(each).sum() for part, each in squares.items()}
        total = sum(sums.values(), torch.zeros(())).clamp_min(torch.finfo(torch.float32).tiny)
        norms = {part: each.sqrt() for part, each in sums.items()}
        shares = {f"{part}/share": each / total for part, each in sums.items()}
        return {**norms, **shares}
