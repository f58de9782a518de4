"""What is logged of a step beside its loss: what the method says of it, and what its losses say."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from sslkit.api import Loss, LossInput, Method, StepOutput
from sslkit.errors import PluginError
from sslkit.randomness import seeded

Metrics = dict[str, Tensor | float]


def read_metrics(method: Method, output: StepOutput, seed: int, step: int) -> Metrics:
    """The values of a step's metrics, cut loose from whatever they are computed from or share
    memory with, without waiting for the device. Random numbers that they draw are not those of
    training.

    Raises PluginError where a loss gives no mapping."""
    with torch.no_grad(), seeded(seed, "metrics", step):
        own = dict(output.metrics)
        found = {**loss_metrics(method, output), **own}
        return {
            name: value.detach().clone() if isinstance(value, Tensor) else value
            for name, value in found.items()
        }


def loss_metrics(method: Method, output: StepOutput) -> Metrics:
    """`Loss.metrics` of every loss in `output.losses`, each the mean over its calls. A name that
    several losses give begins with where each stands in the method: `local_loss/top1`."""
    found = {
        loss: _mean_over_calls([_metrics_of(loss, inputs) for inputs in given])
        for loss, given in calls_of_losses(output).items()
    }
    times = Counter(name for metrics in found.values() for name in metrics)
    places = {module: name.replace(".", "/") for name, module in method.named_modules()}
    return {
        f"{places.get(loss, type(loss).__name__)}/{name}" if times[name] > 1 else name: value
        for loss, metrics in found.items()
        for name, value in metrics.items()
    }


def calls_of_losses(output: StepOutput) -> dict[Loss, list[LossInput]]:
    """Each loss of a step with what it was given, one for each call, without gradients."""
    calls: dict[Loss, list[LossInput]] = {}
    for loss, inputs in output.losses:
        calls.setdefault(loss, []).append(inputs.detach())
    return calls


def _metrics_of(loss: Loss, inputs: LossInput) -> Mapping[str, Tensor | float]:
    metrics = loss.metrics(inputs)
    if not isinstance(metrics, Mapping):
        raise PluginError(
            f"loss: {type(loss).__name__}.metrics gave a {type(metrics).__name__}; valid is a "
            "mapping of a name to a number"
        )
    return metrics


def _mean_over_calls(calls: Sequence[Mapping[str, Tensor | float]]) -> Metrics:
    if len(calls) == 1:
        return dict(calls[0])
    names = dict.fromkeys(name for metrics in calls for name in metrics)
    return {name: _mean([each[name] for each in calls if name in each]) for name in names}


def _mean(values: Sequence[Any]) -> Any:
    """The mean; what is no number is left as it is, for the contract to refuse."""
    for value in values:
        if not isinstance(value, (int, float, Tensor)):
            return value
    return sum(values[1:], values[0]) / len(values)
