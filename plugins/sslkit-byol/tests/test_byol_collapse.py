"""The collapse monitor, on real images: BYOL goes on, BYOL without its stop-gradient is stopped."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import pytest
import torch
from sslkit_byol.method import BYOL
from torch import Tensor

from sslkit.api import Batch, LossInput, Progress, StepOutput
from sslkit.engine.display import Silent
from sslkit.errors import TrainingError
from sslkit.workflows.train import start

RECIPE = """\
name: byol-digits
data: {name: digits}
augmentation:
  {name: simclr, size: 16, crop_scale: [0.2, 1.0], blur: false, saturation: 0, hue: 0,
   grayscale_probability: 0}
backbone: {name: timm, model: test_resnet, normalize: none}
method:
  name: byol
  teacher_momentum: {name: cosine, start: 0.97, end: 1.0}
  projector: {name: mlp, hidden_dim: 128, out_dim: 64, hidden_bias: true, output_norm: none}
  predictor: {name: mlp, hidden_dim: 128, out_dim: 64, hidden_bias: true, output_norm: none}
optimizer: {name: adamw, lr: 2e-3, weight_decay: 0.01}
train: {epochs: 4, batch_size: 128, device: cpu, loader_threads: 0, online_probe: null}
evaluate:
  - {name: collapse, every_epochs: 1, policy: stop}
tracking: {name: none}
"""


@pytest.fixture
def recipe(tmp_path: Path) -> Path:
    torch.set_num_threads(1)
    path = tmp_path / "digits.yaml"
    path.write_text(RECIPE + f"runs_dir: {tmp_path / 'runs'}\n")
    return path


def embed_with_own_targets(self: BYOL, batch: Batch) -> dict[str, Tensor]:
    """The targets come from the online network, with their gradient."""
    features = [self.backbone(view) for view in batch.views]
    targets = [self.projector(feature) for feature in features]
    predictions = [self.predictor(target) for target in targets]
    named = {"features": features, "prediction": predictions, "target": targets}
    return {name: torch.stack(views, dim=1) for name, views in named.items()}


def objective_without_stop_gradient(
    self: BYOL, embeddings: Mapping[str, Tensor], batch: Batch, progress: Progress
) -> StepOutput:
    prediction, target = embeddings["prediction"], embeddings["target"]
    losses = [self.loss(LossInput((prediction[:, v], target[:, 1 - v]))) for v in (0, 1)]
    return StepOutput(torch.stack(losses).sum())


@pytest.mark.slow  # 5 seconds
def test_without_the_stop_gradient_the_run_is_stopped(
    recipe: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(BYOL, "embed", embed_with_own_targets)
    monkeypatch.setattr(BYOL, "objective", objective_without_stop_gradient)
    with pytest.raises(TrainingError, match=r"^epoch [123]: stopped by collapse: the embeddings"):
        start(recipe, display=Silent())


@pytest.mark.slow  # 8 seconds
def test_healthy_byol_is_not_stopped(recipe: Path) -> None:
    found = start(recipe, ["train.epochs=3"], display=Silent())
    assert found.status == "finished"
    assert found.metrics["collapse/embedding_spread"] > 0.6
