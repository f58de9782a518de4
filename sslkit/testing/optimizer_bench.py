"""An optimiser on the bench: parameters of every kind of shape, and gradients for them."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.amp.grad_scaler import GradScaler

from sslkit.api import Method, Optimizer, ParamGroup, Progress, Schedule, ScheduledNumber
from sslkit.engine.optimization import Optimization
from sslkit.randomness import seeded

from .small_runs import Tensors, copied

_BATCH = 256


class Shapes(nn.Module):
    """Parameters of every kind of shape, in two groups: a matrix and a bias, and what is trained at
    half the rate, without weight decay."""

    def __init__(self) -> None:
        super().__init__()
        draw = torch.Generator().manual_seed(0)

        def made(*shape: int) -> nn.Parameter:
            return nn.Parameter(0.5 + torch.randn(shape, generator=draw))

        self.weight, self.bias = made(6, 5), made(6)
        self.kernel = nn.Parameter(
            made(4, 3, 2, 2).data.contiguous(memory_format=torch.channels_last)
        )
        self.token, self.scale = made(1, 1, 5), made()

    def param_groups(self) -> list[ParamGroup]:
        named = list(self.named_parameters())
        return [
            ParamGroup(named[:2]),
            ParamGroup(named[2:], lr_scale=0.5, weight_decay_scale=0.0),
        ]


class OptimizerBench:
    """An optimiser with something to train."""

    def __init__(
        self,
        optimizer: Optimizer,
        *,
        lr: float = 1e-3,
        weight_decay: float = 0.01,
        scaled: bool = False,
        dtype: torch.dtype = torch.float32,
    ) -> None:
        """lr, weight_decay: what the groups are made with. scaled: as in float16."""
        self.shapes, self.taken = Shapes().to(dtype), 0
        config = optimizer.config
        made = type(optimizer)(
            config.model_copy(
                update={
                    "lr": lr, "lr_scaling": "none", "exclude_bias_and_norm": True,
                    "weight_decay": ScheduledNumber(weight_decay),
                }
            )
        )  # fmt: skip
        scaler = GradScaler("cpu", init_scale=1024.0) if scaled else None
        with seeded(0, "optimizer"):
            self.optimization = Optimization(
                cast(Method, self.shapes), made, _Constant(None), batch_size=_BATCH, scaler=scaler
            )

    @property
    def groups(self) -> Sequence[dict[str, Any]]:
        """Those of the torch optimiser."""
        return self.optimization.optimizer.param_groups

    def parameters(self) -> Iterator[tuple[str, nn.Parameter]]:
        return self.shapes.named_parameters()

    def values(self) -> Tensors:
        """What the parameters are now."""
        return copied(dict(self.shapes.named_parameters()))

    def give_gradients(self, size: float = 1.0) -> None:
        """Gradients that follow from the number of the step."""
        draw = torch.Generator().manual_seed(self.taken)
        for parameter in self.shapes.parameters():
            drawn = torch.randn(parameter.shape, generator=draw)
            parameter.grad = torch.empty_like(parameter).copy_(_scaled(drawn, size))
        scaler = self.optimization.scaler
        if scaler is not None:
            scaler.scale(torch.zeros(()))  # as before a backward pass: it begins with the first
        self.taken += 1

    def take(self, count: int, size: float = 1.0) -> None:
        """So many steps."""
        for _ in range(count):
            self.give_gradients(size)
            with seeded(0, "step", self.taken):
                self.optimization.step()

    def distance_from_goal(self) -> float:
        """Half the squared distance of all parameters from zero."""
        return sum(0.5 * float(p.detach().square().sum()) for p in self.shapes.parameters())

    def descend(self) -> None:
        """A step against the gradient of `distance_from_goal`."""
        for parameter in self.shapes.parameters():
            parameter.grad = parameter.detach().clone()
        with seeded(0, "step"):
            self.optimization.step()


def _scaled(values: Tensor, size: float) -> Tensor:
    return torch.zeros_like(values) if size == 0.0 else values * size


class _Constant(Schedule):
    """The peak, at every step."""

    def factor(self, progress: Progress) -> float:
        return 1.0
