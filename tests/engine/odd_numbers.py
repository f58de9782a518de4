"""Steps whose numbers are not finite, each in one of its parts, and what is to be said of them."""

from __future__ import annotations

import math
import os
from typing import Any

import pytest
from torch import Tensor, nn

from sslkit.api import LossInput, Progress
from sslkit.builtin.augmentations import SimCLRAugmentation
from sslkit.builtin.losses import NTXent
from sslkit.builtin.mlp_head import MLPHead
from sslkit.builtin.simclr import SimCLR
from sslkit.engine.optimization import Optimization
from sslkit.nn.functional import nt_xent


def spoil_one(tensor: Tensor) -> None:
    tensor[(0,) * tensor.ndim] = math.nan


class Faults:
    """Breaks one step (counted from 1) of any run, in one of its parts."""

    def __init__(self, patch: pytest.MonkeyPatch) -> None:
        self.patch = patch
        self.at = -1
        self.now = 0
        self.rank: int | None = None
        """The rank that has the fault; None: all have it."""
        begin = SimCLR.before_step

        def before_step(method: SimCLR, progress: Progress) -> None:
            self.now = progress.step + 1
            begin(method, progress)

        patch.setattr(SimCLR, "before_step", before_step)

    def on(self, step_after: int = 0) -> bool:
        here = self.rank is None or os.environ["RANK"] == str(self.rank)
        return here and self.now + step_after == self.at

    def loss(self) -> None:
        def forward(loss: NTXent, inputs: LossInput) -> Tensor:
            value = nt_xent(inputs.views[0], inputs.views[1], 0.5)
            return value * (math.nan if self.on() else 1.0)

        self.patch.setattr(NTXent, "forward", forward)

    def activation(self) -> None:
        forward = MLPHead.forward

        def broken(head: MLPHead, features: Tensor) -> Tensor:
            return forward(head, features) + (math.inf if self.on() else 0.0)

        self.patch.setattr(MLPHead, "forward", broken)

    def gradient(self) -> None:
        """The loss stays as it was: its gradient alone is NaN."""

        def forward(loss: NTXent, inputs: LossInput) -> Tensor:
            z = inputs.views[0]
            if self.on():
                z = z + (z - z.detach()).abs().sqrt()  # 0, with the gradient inf * 0
            return nt_xent(z, inputs.views[1], 0.5)

        self.patch.setattr(NTXent, "forward", forward)

    def after_backward(self) -> None:
        def spoil(method: SimCLR, progress: Progress) -> None:
            if self.on():
                spoil_one(next(method.backbone.parameters()).grad)

        self.patch.setattr(SimCLR, "after_backward", spoil)

    def optimizer(self) -> None:
        step = Optimization.step

        def spoil(optimization: Optimization) -> None:
            step(optimization)
            if self.on():
                spoil_one(optimization.groups[0].params[0][1].data)

        self.patch.setattr(Optimization, "step", spoil)

    def buffer(self) -> None:
        def spoil(method: SimCLR, progress: Progress, carry: Any) -> None:
            if self.on():
                norms = [m for m in method.modules() if isinstance(m, nn.BatchNorm2d)]
                norms[0].running_var[0] = math.inf

        self.patch.setattr(SimCLR, "after_step", spoil)

    def input(self) -> None:
        photometric = SimCLRAugmentation.photometric

        def spoil(augmentation: Any, view: int, images: Tensor, params: Any) -> Tensor:
            made = photometric(augmentation, view, images, params)
            # The views of a step are made before `before_step` is called.
            return made * math.nan if view == 1 and self.now and self.on(1) else made

        self.patch.setattr(SimCLRAugmentation, "photometric", spoil)


CAUSES = {
    "loss": (r"the output of loss \(NTXent\) is nan; see method\.loss\.temperature", "step"),
    "activation": (r"the output of head \(MLPHead\) is inf", "step"),
    "gradient": (
        r"the gradient at the input of loss \(NTXent\) is nan, though the loss is",
        "step",
    ),
    "after_backward": (r"the gradient of 'backbone\.model\.conv1\.0\.weight' was nan", "step"),
    "optimizer": (
        r"the weights 'backbone\.[\w.]+' hold nan, made so by the optimiser",
        "after step",
    ),
    "buffer": (r"the buffer 'backbone\.[\w.]+running_var' holds inf, loss and grad", "after step"),
    "input": (r"view 1 of the batch holds nan", "step"),
}
