"""The collapse monitor, on real images, lets healthy runs go on."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from sslkit.engine.display import Silent
from sslkit.workflows.train import start

RECIPE = """\
name: moco-digits
data: {name: digits}
augmentation:
  {name: simclr, size: 16, crop_scale: [0.2, 1.0], blur: false, saturation: 0, hue: 0,
   grayscale_probability: 0}
backbone: {name: timm, model: test_resnet, normalize: none}
optimizer: {name: adamw, lr: 2e-3, weight_decay: 0.01}
train: {epochs: 3, batch_size: 128, device: cpu, loader_threads: 0, online_probe: null}
evaluate:
  - {name: collapse, every_epochs: 1, policy: stop}
tracking: {name: none}
"""
V2 = "method={name: moco_v2, queue_size: 512, head: {name: mlp, hidden_dim: 128, out_dim: 64}}"
V3 = "method={name: moco_v3, projector: %s, predictor: %s}" % (
    2 * ("{name: mlp, hidden_dim: 128, out_dim: 64}",)
)
VIT = "backbone={name: timm, model: test_vit, patch_size: 8, normalize: none}"


@pytest.mark.slow  # whole runs, of some seconds each
@pytest.mark.parametrize("overrides", [(V2,), (V3,), (V3, VIT)], ids=["v2", "v3", "v3-vit"])
def test_healthy_moco_is_not_stopped(tmp_path: Path, overrides: tuple[str, ...]) -> None:
    torch.set_num_threads(1)
    path = tmp_path / "digits.yaml"
    path.write_text(RECIPE + f"runs_dir: {tmp_path / 'runs'}\nmethod: {{name: moco_v2}}\n")
    found = start(path, overrides, display=Silent())
    assert found.status == "finished"
    assert found.metrics["collapse/embedding_spread"] > 0.6
