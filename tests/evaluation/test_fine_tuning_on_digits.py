"""Fine-tuning on real images: the order that every paper finds."""

from __future__ import annotations

from pathlib import Path

import pytest

from sslkit.engine.display import Silent
from sslkit.workflows.train import start

RECIPE = """\
name: digits
data: {name: digits, size: 32}
augmentation:
  {name: simclr, size: 32, crop_scale: [0.4, 1.0], flip: 0.0, brightness: 0.4, contrast: 0.4,
   saturation: 0.0, hue: 0.0, grayscale_probability: 0.0, blur: false, rotation_degrees: 15}
backbone: {name: timm, model: test_resnet, normalize: none}
method: {name: simclr, head: {name: mlp, num_layers: 3, hidden_dim: 128, out_dim: 64}}
optimizer: {name: adamw, lr: 2e-3, weight_decay: 1e-4}
train: {epochs: 8, batch_size: 128, device: cpu, online_probe: null}
evaluate:
  - name: semi_supervised
    fractions: [0.1]
    epochs: [30]
    draws: 2
    batch_size: 64
    augmentation: {name: crop_flip, size: 32, crop_scale: [0.5, 1.0], flip: 0.0}
  - name: finetune
    epochs: 8
    batch_size: 64
    augmentation: {name: crop_flip, size: 32, crop_scale: [0.5, 1.0], flip: 0.0}
  - {name: linear}
tracking: {name: none}
"""


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_fine_tuning_beats_the_frozen_probe_and_training_from_scratch(tmp_path: Path) -> None:
    pytest.importorskip("sklearn")
    path = tmp_path / "digits.yaml"
    path.write_text(RECIPE + f"runs_dir: {tmp_path / 'runs'}\n")
    found = start(str(path), [], display=Silent()).metrics
    few = "eval/semi_supervised/top1_10pct_finetune"
    assert found[few] > found[f"{few}_untrained"] + 0.03
    assert found["eval/finetune/top1"] > found["eval/linear/top1"]
    assert found["eval/finetune/top1"] > 0.94
