"""The collapse monitor on real images: methods go on, and are stopped without their guard."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from sslkit.engine.display import Silent
from sslkit.errors import TrainingError
from sslkit.workflows.execute import RunResult
from sslkit.workflows.train import start

pytestmark = pytest.mark.slow  # each is some epochs of training
RECIPE = """\
name: decorrelation-digits
data: {name: digits}
augmentation:
  {name: simclr, size: 16, crop_scale: [0.2, 1.0], blur: false, saturation: 0, hue: 0,
   grayscale_probability: 0}
backbone: {name: timm, model: test_resnet, normalize: none}
method:
  name: NAME
  projector: {name: mlp, num_layers: 3, hidden_dim: 128, out_dim: 64, output_norm: none}
optimizer: {name: adamw, lr: 1e-2, weight_decay: 0.01}
train: {epochs: 3, batch_size: 128, device: cpu, loader_threads: 0, online_probe: null}
evaluate:
  - {name: collapse, every_epochs: 1, policy: stop}
tracking: {name: none}
"""


FEW = "method.loss.directions=128"
HEALTHY = {
    "barlow_twins": ["method.bias_lr_scale=1"],
    "lejepa": [FEW],
    "tico": [],
    "vicreg": [],
    "visreg": [FEW],
    "w_mse": [],
}
WITHOUT = {
    "lejepa": ["method.loss_weight=0"],
    "tico": ["method.covariance_weight=0"],
    "vicreg": ["method.loss.variance_weight=0"],
    "visreg": ["method.loss_weight=0"],
    "w_mse": ["method.loss={name: normalized_mse}"],
}
"""What keeps the images apart, removed. Barlow Twins has it in the norm of each dimension, which
its loss cannot do without."""


def run(name: str, folder: Path, *overrides: str) -> RunResult:
    torch.set_num_threads(1)
    path = folder / "digits.yaml"
    path.write_text(RECIPE.replace("NAME", name) + f"runs_dir: {folder / 'runs'}\n")
    return start(path, overrides, display=Silent())


@pytest.mark.parametrize("name", sorted(WITHOUT))
def test_without_its_safeguard_the_run_is_stopped(tmp_path: Path, name: str) -> None:
    with pytest.raises(TrainingError, match=r"^epoch [1-5]: stopped by collapse: the embeddings"):
        run(name, tmp_path, "train.epochs=6", *HEALTHY[name], *WITHOUT[name])


@pytest.mark.parametrize("name", sorted(HEALTHY))
def test_a_healthy_run_is_not_stopped(tmp_path: Path, name: str) -> None:
    found = run(name, tmp_path, *HEALTHY[name])
    assert found.status == "finished"
    assert found.metrics["collapse/embedding_spread"] > 0.6
