"""The collapse monitor, on real images: DINO goes on, without a safeguard it is stopped."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
import torch

from sslkit.engine.display import Silent
from sslkit.errors import TrainingError
from sslkit.workflows.train import start

RECIPE = """\
name: dino-digits
data: {name: digits}
augmentation:
  {name: simclr, size: 16, crop_scale: [0.4, 1.0], blur: false, saturation: 0, hue: 0,
   grayscale_probability: 0}
backbone: {name: timm, model: test_resnet, normalize: none}
method:
  name: dino
  head: {name: dino, out_dim: 128, hidden_dim: 128, bottleneck_dim: 32, batch_norm: true}
  teacher_temperature: 0.04
  teacher_momentum: {name: cosine, start: 0.97, end: 1.0}
optimizer: {name: adamw, lr: 2e-3, weight_decay: 0.04}
train: {epochs: 4, batch_size: 128, device: cpu, loader_threads: 0, online_probe: null}
evaluate:
  - {name: collapse, every_epochs: 1, policy: stop}
tracking: {name: none}
"""
VIT = (
    "backbone={name: timm, model: test_vit, patch_size: 4, normalize: none, pool: token, "
    "model_args: {dynamic_img_size: true}}",
    "augmentation.views=[{count: 2}, {count: 2, role: local, size: 8, crop_scale: [0.2, 0.4]}]",
)


@pytest.fixture
def recipe(tmp_path: Path) -> Path:
    torch.set_num_threads(1)
    path = tmp_path / "digits.yaml"
    path.write_text(RECIPE + f"runs_dir: {tmp_path / 'runs'}\n")
    return path


@pytest.mark.slow  # 5 seconds
def test_without_centring_one_prototype_has_all_images_and_the_run_is_stopped(recipe: Path) -> None:
    said = r"^epoch [12]: stopped by collapse: .*('target'|few of 128 prototypes)"
    with pytest.raises(TrainingError, match=said):
        start(recipe, ["method.center_momentum=1.0"], display=Silent())


@pytest.mark.slow  # 3 seconds
def test_without_sharpening_probabilities_are_uniform_and_the_run_is_stopped(recipe: Path) -> None:
    """The head has no BatchNorm, which would keep bottlenecks apart for longer."""
    overrides = ["method.teacher_temperature=1.0", "method.head.batch_norm=false"]
    with pytest.raises(TrainingError, match=r"^epoch \d: stopped by collapse: .*'target'"):
        start(recipe, [*overrides, "train.epochs=8"], display=Silent())


@pytest.mark.slow  # whole runs, of some seconds each
@pytest.mark.parametrize(
    "overrides",
    [
        pytest.param((), id="resnet"),
        pytest.param(VIT, id="vit-multi-crop"),
    ],
)
def test_healthy_dino_is_not_stopped(recipe: Path, overrides: tuple[str, ...]) -> None:
    found = start(recipe, overrides, display=Silent())
    assert found.status == "finished"
    assert found.metrics["collapse/prototypes/target"] > 0.3
    assert 0.1 < found.metrics["train/teacher_entropy"] < math.log(128) - 0.1
