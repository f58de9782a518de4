"""The collapse monitor on real images: healthy runs go on, and encoders that give every image the
same features are stopped. These tasks have no trivial solution, and so no safeguard to remove: a
collapse is a network that has died, with the loss at the level of chance."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from sslkit_pretext.denoising import DenoisingAutoencoder
from sslkit_pretext.jigsaw import Jigsaw
from sslkit_pretext.rotnet import RotNet
from torch import Tensor

from sslkit.api import Batch
from sslkit.engine.display import Silent
from sslkit.errors import TrainingError
from sslkit.workflows.train import start

RECIPE = """\
name: pretext-digits
data: {name: digits}
augmentation: {name: crop_flip, size: 16, crop_scale: [0.6, 1.0], flip: 0.0}
backbone: {name: timm, model: test_resnet, normalize: none}
method: METHOD
optimizer: {name: adamw, lr: 2e-3, weight_decay: 0.01}
train: {epochs: 2, batch_size: 128, device: cpu, loader_threads: 0, online_probe: null}
evaluate:
  - {name: collapse, every_epochs: 1, policy: stop}
tracking: {name: none}
"""
JIGSAW = """{name: jigsaw, num_permutations: 4, tile_size: 4,
  tile_head: {name: mlp, num_layers: 1, out_dim: 32, output_norm: bn},
  head: {name: mlp, num_layers: 1, out_dim: 4, output_norm: none, output_bias: true}}"""
DENOISING = """{name: denoising,
  decoder: {name: conv_decoder, size: 16, channels: 1, width: 32}}"""
METHODS = {
    "rotnet": (RotNet, "{name: rotnet}", "pretext_top1", 0.6),
    "jigsaw": (Jigsaw, JIGSAW, "pretext_top1", 0.4),
    "denoising": (DenoisingAutoencoder, DENOISING, "explained_variance", 0.0),
}
"""Name -> class, block, and what it reaches soon: 0.25 and 0 would be the levels of chance."""


@pytest.fixture(params=METHODS)
def method(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture
def recipe(method: str, tmp_path: Path) -> Path:
    torch.set_num_threads(1)
    path = tmp_path / "digits.yaml"
    text = RECIPE.replace("METHOD", METHODS[method][1])
    path.write_text(text + f"runs_dir: {tmp_path / 'runs'}\n")
    return path


def of_the_mean(embed: Callable[..., dict[str, Tensor]]) -> Any:
    """An `embed` in which every image has the features of their mean."""

    def collapsed(self: Any, batch: Batch) -> dict[str, Tensor]:
        found = embed(self, batch)
        return {name: value.mean(0, keepdim=True).expand_as(value) for name, value in found.items()}

    return collapsed


@pytest.mark.slow  # 11 seconds
def test_a_dead_encoder_is_stopped(
    method: str, recipe: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cls = METHODS[method][0]
    # Before the first step the monitor must see the method as it is.
    embed, step = cls.embed, cls.after_step

    def die(self: Any, progress: Any, carry: Any) -> None:
        step(self, progress, carry)
        monkeypatch.setattr(self, "embed", of_the_mean(embed).__get__(self))

    monkeypatch.setattr(cls, "after_step", die)
    with pytest.raises(TrainingError, match=r"^epoch 1: stopped by collapse: the embeddings of"):
        start(recipe, display=Silent())


@pytest.mark.slow  # whole runs, of some seconds each
def test_a_healthy_run_is_not_stopped(method: str, recipe: Path) -> None:
    longer = ["train.epochs=4", "train.batch_size=64"] if method == "denoising" else []
    found = start(recipe, longer, display=Silent())
    assert found.status == "finished"
    _, _, metric, reached = METHODS[method]
    assert found.metrics[f"train/{metric}"] > reached
