"""Callbacks that break one law each."""

from __future__ import annotations

import random
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor

from sslkit.api import Batch, Callback, Method, Progress, RunView


class Sound(Callback):
    """Logs the norm of the gradient and the mean of a batch, and counts its images."""

    def on_start(self, run: RunView, method: Method) -> None:
        self.method = method
        self.images = 0
        self.mean = 0.0

    def on_batch(self, run: RunView, batch: Batch, progress: Progress) -> None:
        self.images += len(batch)
        self.mean = float(batch.views[0].mean())

    def on_gradients(
        self, run: RunView, gradients: Mapping[str, Tensor], progress: Progress
    ) -> Mapping[str, float | Tensor]:
        return {"norm": torch.stack([g.norm() for g in gradients.values()]).norm()}

    def on_step(
        self, run: RunView, metrics: Mapping[str, float], progress: Progress
    ) -> Mapping[str, float | Tensor]:
        return {"images": float(self.images), "noise": torch.rand(()), "mean": self.mean}

    def on_evaluation(
        self, run: RunView, metrics: Mapping[str, float], progress: Progress
    ) -> Mapping[str, float | Tensor]:
        return {"scores": float(len(metrics))}


class ClipsWeights(Sound):
    """Writes to a parameter."""

    def on_step(self, run: RunView, metrics: Mapping[str, float], progress: Progress) -> Any:
        for parameter in self.method.parameters():
            parameter.clamp_(-1.0, 1.0)
        return super().on_step(run, metrics, progress)


class LeavesEvalMode(Sound):
    """Looks at the features, in evaluation, and stays there."""

    def on_step(self, run: RunView, metrics: Mapping[str, float], progress: Progress) -> Any:
        self.method.eval()
        return super().on_step(run, metrics, progress)


class WritesThroughData(Sound):
    """Writes to a parameter in a way that torch does not count."""

    def on_step(self, run: RunView, metrics: Mapping[str, float], progress: Progress) -> Any:
        for parameter in self.method.parameters():
            parameter.data.mul_(0.99)
        return super().on_step(run, metrics, progress)


class WritesThroughNumpy(Sound):
    """Mirrors a view in the array that shares its memory."""

    def on_batch(self, run: RunView, batch: Batch, progress: Progress) -> None:
        array = batch.views[0].numpy()
        array[:] = array[..., ::-1].copy()
        super().on_batch(run, batch, progress)


class DrawsFromNumpy(Sound):
    """Chooses what it looks at by numpy's generator."""

    def on_batch(self, run: RunView, batch: Batch, progress: Progress) -> None:
        self.row = np.random.randint(len(batch))  # noqa: NPY002
        super().on_batch(run, batch, progress)


class SeedsPython(Sound):
    """Seeds the generator of all."""

    def on_start(self, run: RunView, method: Method) -> None:
        random.seed(0)
        super().on_start(run, method)


class NeedsTheFirstStep(Sound):
    """Looks for what the first step made, and is lost after a resume."""

    def on_batch(self, run: RunView, batch: Batch, progress: Progress) -> None:
        if progress.step == 0:
            self.first = batch.views[0].mean().item()
        self.drift = batch.views[0].mean().item() - self.first
        super().on_batch(run, batch, progress)


class IsSilentAfterAResume(Sound):
    """Logs only where it saw the first step."""

    def on_batch(self, run: RunView, batch: Batch, progress: Progress) -> None:
        self.began_at = getattr(self, "began_at", progress.step)
        super().on_batch(run, batch, progress)

    def on_step(self, run: RunView, metrics: Mapping[str, float], progress: Progress) -> Any:
        return super().on_step(run, metrics, progress) if self.began_at == 0 else None


class CountsPasses(Sound):
    """Logs the mean of what each pass of the encoder gives, under the number of the pass."""

    def on_start(self, run: RunView, method: Method) -> None:
        super().on_start(run, method)
        self.passes: list[float] = []
        method.encoder.register_forward_hook(self.note)

    def note(self, encoder: torch.nn.Module, given: object, features: Tensor) -> None:
        if encoder.training:
            self.passes.append(float(features.detach().mean()))

    def on_batch(self, run: RunView, batch: Batch, progress: Progress) -> None:
        self.passes.clear()
        super().on_batch(run, batch, progress)

    def on_step(self, run: RunView, metrics: Mapping[str, float], progress: Progress) -> Any:
        return {f"pass_{number}": mean for number, mean in enumerate(self.passes)}


class KeepsTheBatch(Sound):
    """Keeps the views for a picture."""

    def on_batch(self, run: RunView, batch: Batch, progress: Progress) -> None:
        self.shown = batch.views[0][:4]
        super().on_batch(run, batch, progress)


class KeepsGradients(Sound):
    """Keeps the gradients to compare the next with."""

    def on_gradients(
        self, run: RunView, gradients: Mapping[str, Tensor], progress: Progress
    ) -> Mapping[str, float | Tensor]:
        self.last = dict(gradients)
        return super().on_gradients(run, gradients, progress)


class ReturnsVectors(Sound):
    """Returns what is no number."""

    def on_step(self, run: RunView, metrics: Mapping[str, float], progress: Progress) -> Any:
        return {"weights": torch.zeros(3)}
