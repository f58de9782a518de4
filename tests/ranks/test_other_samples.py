"""Samples that are no plain labelled images (streams, series, images with a pretext label or with
none) and callbacks that watch: two ranks do as one."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from sslkit.api import (
    Batch,
    Callback,
    DataSource,
    DataSourceConfig,
    Progress,
    RunView,
    SplitReader,
    StepOutput,
)
from sslkit.builtin.augmentations import SimCLRAugmentation
from sslkit.builtin.sources.synthetic import Synthetic
from sslkit.engine.step import train_step
from sslkit.engine.training import Training
from sslkit.errors import PluginError
from sslkit.parallel.world import World
from sslkit.runs.folder import held_by_first
from tests.data.streams import Numbers
from tests.ranks.curves import BN_HEAD, METHODS, begin, curve, doubled, make, slot
from tests.ranks.differences import of_tensors
from tests.ranks.forked import on_ranks
from tests.ranks.sketches import SKETCHES, _Sketch
from tests.ranks.test_curves import assert_curve

SIMCLR = "method=" + METHODS["simclr"].format(head=BN_HEAD)
PARTS = "train.micro_batch_size=8"


class Stream(DataSource):
    """Images without end, of which 96 are an epoch. Two are damaged: one of each rank's."""

    Config = DataSourceConfig

    def open(self, split: str) -> SplitReader | None:
        return Numbers(96, shuffle=24, damaged=(17, 101)) if split == "train" else None


class Telling(SimCLRAugmentation):
    """Says what it has done to the first view."""

    def targets(self, params: Sequence[Mapping[str, Tensor]]) -> dict[str, Tensor]:
        return {"flip": params[0]["flip"].long(), "box": params[0]["box"].float()}


class Pretext(_Sketch):
    """Predicts what was done to a view: a class, and numbers."""

    def objective(
        self, embeddings: Mapping[str, Tensor], batch: Batch, progress: Progress
    ) -> StepOutput:
        z, box = embeddings["z"][:, 0], batch.targets["box"]
        placed = (z[:, 2:6] - box.to(z.dtype) / 16).square().mean()
        return StepOutput(F.cross_entropy(z[:, :2], batch.targets["flip"]) + placed)


class Supervised(_Sketch):
    """Predicts labels, where images have one."""

    def objective(
        self, embeddings: Mapping[str, Tensor], batch: Batch, progress: Progress
    ) -> StepOutput:
        z, labels = embeddings["z"], batch.labels
        assert labels is not None
        known = labels >= 0
        assert 0 < known.sum() < len(known)
        loss = F.cross_entropy(z[:, 0], labels.clamp_min(0), reduction="none")
        return StepOutput((loss * known).sum() / known.sum())


@pytest.fixture(autouse=True)
def _sketches_of_this_file(monkeypatch: pytest.MonkeyPatch) -> None:
    for cls in (Pretext, Supervised):
        monkeypatch.setitem(SKETCHES, cls.__name__.lower(), cls)


SERIES = [
    "data={name: waves, num_train: 96, num_test: 16, length: 32}",
    "augmentation={name: series, length: 24, flip: 0.3}",
    "backbone={name: resnet1d, width: 4, blocks: [1, 1]}",
    SIMCLR,
]
CASES: dict[str, tuple[str, list[str], Mapping[str, Any]]] = {
    "stream": ("simclr", [SIMCLR], {"data": slot(Stream, max_corrupt_fraction=0.1)}),
    "stream, in parts": (
        "simclr",
        [SIMCLR, PARTS],
        {"data": slot(Stream, max_corrupt_fraction=0.1)},
    ),
    "series": ("simclr", SERIES, {}),
    "targets": ("pretext", [PARTS], {"augmentation": slot(Telling, size=16)}),
    "few labels": ("supervised", [PARTS], {}),
}
Work = Any
"""(a training) -> what it is to leave."""


def on(size: int, name: str, work: Work) -> list[Any]:
    method, overrides, slots = CASES[name]

    def rank(world: World) -> Any:
        with held_by_first(world, lambda: begin(Path(folder))) as run:
            return work(make(run, method, overrides, world, slots=slots))

    with TemporaryDirectory() as folder:
        ends = on_ranks(rank, size)
    for end in ends:
        if isinstance(end, BaseException):
            raise end
    return ends


@pytest.fixture
def few_labels(monkeypatch: pytest.MonkeyPatch) -> None:
    """Two thirds of the training images have none."""
    opened = Synthetic.open

    def open_partly(self: Synthetic, split: Any) -> SplitReader | None:
        reader = opened(self, split)
        if reader is not None and reader.labels is not None and split == "train":
            reader.labels = np.where(np.arange(len(reader)) % 3 == 0, reader.labels, -1)
        return reader

    monkeypatch.setattr(Synthetic, "open", open_partly)


@pytest.mark.usefixtures("few_labels")
@pytest.mark.parametrize("name", CASES)
def test_two_ranks_train_as_one(name: str) -> None:
    """Into the second epoch of six steps."""
    (alone,) = on(1, name, lambda t: curve(t, 8))
    for found in on(2, name, lambda t: curve(t, 8)):
        assert_curve(found, alone, name)


@pytest.mark.slow  # 2 seconds
@pytest.mark.usefixtures("few_labels")
def test_the_online_probe_learns_from_the_labelled_images_of_all_ranks() -> None:
    def probed(t: Training) -> dict[str, Tensor]:
        curve(t, 4)
        assert t.learner.probe is not None
        return dict(t.learner.probe.classifier.state_dict())

    (alone,) = on(1, "few labels", probed)
    first, second = on(2, "few labels", probed)
    assert float(alone["1.weight"].abs().max()) > 0.01
    assert of_tensors(first, alone, least=0.01) < 1e-6  # in float32
    assert of_tensors(second, first, least=0.01) == 0.0


# --- Callbacks ------------------------------------------------------------------------------------


class Gradients(Callback):
    """The length of the gradient, and random numbers that it has no business with."""

    def on_gradients(
        self, run: RunView, gradients: Mapping[str, Tensor], progress: Progress
    ) -> dict[str, float]:
        torch.rand(3)
        squares = [float(gradient.square().sum()) for gradient in gradients.values()]
        return {"length": sum(squares) ** 0.5, "tensors": len(squares)}


class Halving(Callback):
    """Changes what it should watch, in the second step."""

    def on_gradients(
        self, run: RunView, gradients: Mapping[str, Tensor], progress: Progress
    ) -> None:
        if progress.step == 1:
            next(iter(gradients.values())).mul_(0.5)


def watched(t: Training) -> tuple[list[dict[str, float]], list[float]]:
    """What callbacks say of three steps, and the losses."""
    numbers, losses = [], []
    for _, batch in zip(range(3), t.loader.epoch(0), strict=False):
        output, _ = train_step(t, doubled(batch), log=True)
        t.progress = t.progress.next()
        numbers.append(t.output.callbacks.take_numbers())
        losses.append(float(output.loss))
    return numbers, losses


def with_callback(monkeypatch: pytest.MonkeyPatch, cls: type[Callback]) -> str:
    monkeypatch.setitem(CASES, "watched", ("simclr", [SIMCLR, PARTS], {"callbacks": (slot(cls),)}))
    return "watched"


@pytest.mark.slow  # 2 seconds
def test_a_callback_sees_the_gradient_of_all_ranks(monkeypatch: pytest.MonkeyPatch) -> None:
    name = with_callback(monkeypatch, Gradients)
    ((expected, losses),) = on(1, name, watched)
    (found, of_first), (none, of_second) = on(2, name, watched)
    for there, here in zip(found, expected, strict=True):
        assert there == pytest.approx(here, rel=1e-12)
        assert here["callback/gradients/length"] > 1e-3
    assert none == [{}, {}, {}]  # rank 0 alone calls it
    assert of_first == of_second == pytest.approx(losses, rel=1e-12)


def test_a_callback_that_changes_a_gradient_ends_all_ranks(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    name = with_callback(monkeypatch, Halving)
    with pytest.raises(PluginError, match=r"Halving\.on_gradients changed the gradient of "):
        on(2, name, watched)
