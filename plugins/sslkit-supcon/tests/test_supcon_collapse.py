"""The collapse monitor on real images: SupCon goes on, and is stopped without its denominator."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from sslkit_supcon.supcon_loss import SupConLoss
from torch import Tensor

from sslkit.api import LossInput
from sslkit.engine.display import Silent
from sslkit.errors import TrainingError
from sslkit.nn.functional import normalize
from sslkit.workflows.execute import RunResult
from sslkit.workflows.train import start

RECIPE = """\
name: supcon-digits
data: {name: digits}
augmentation:
  {name: simclr, size: 16, crop_scale: [0.2, 1.0], blur: false, saturation: 0, hue: 0,
   grayscale_probability: 0}
backbone: {name: timm, model: test_resnet, normalize: none}
method:
  name: supcon
  head: {name: mlp, hidden_dim: 128, out_dim: 64, output_norm: none, output_bias: true}
optimizer: {name: adamw, lr: 1e-3, weight_decay: 0.01}
train: {epochs: 6, batch_size: 64, device: cpu, loader_threads: 0, online_probe: null}
evaluate:
  - {name: knn, k: 5}
  - {name: collapse, every_epochs: 1, policy: stop}
tracking: {name: none}
"""


def run(folder: Path) -> RunResult:
    torch.set_num_threads(1)
    path = folder / "digits.yaml"
    path.write_text(RECIPE + f"runs_dir: {folder / 'runs'}\n")
    return start(path, display=Silent())


@pytest.mark.slow  # 3 seconds
def test_without_negatives_the_run_is_stopped(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def forward(self: Any, inputs: LossInput) -> Tensor:
        first, second = (normalize(view) for view in inputs.views)
        return -(first * second).sum(dim=1).mean()

    monkeypatch.setattr(SupConLoss, "forward", forward)
    with pytest.raises(TrainingError, match=r"^epoch [1-5]: stopped by collapse: the embeddings"):
        run(tmp_path)


@pytest.mark.slow  # a whole run, five seconds
def test_a_healthy_run_learns_the_classes(tmp_path: Path) -> None:
    found = run(tmp_path)
    assert found.status == "finished"
    metrics = found.metrics
    assert metrics["eval/knn/top1"] > metrics["eval/knn/top1_untrained"] + 0.02
    assert metrics["collapse/embedding_spread"] > 0.3
