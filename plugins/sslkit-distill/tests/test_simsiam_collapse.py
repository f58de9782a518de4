"""The collapse monitor, on real images: SimSiam goes on, without a safeguard it is stopped."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import pytest
import torch
from sslkit_distill.simsiam import SimSiam
from torch import Tensor

from sslkit.api import Batch, LossInput, Progress, StepOutput
from sslkit.engine.display import Silent
from sslkit.errors import TrainingError
from sslkit.workflows.train import start

RECIPE = """\
name: simsiam-digits
data: {name: digits}
augmentation:
  {name: simclr, size: 16, crop_scale: [0.2, 1.0], blur: false, saturation: 0, hue: 0,
   grayscale_probability: 0}
backbone: {name: timm, model: test_resnet, normalize: none}
method:
  name: simsiam
  projector: {name: mlp, num_layers: 3, hidden_dim: 128, out_dim: 128, output_norm: bn_no_affine}
  predictor: {name: mlp, hidden_dim: 32, out_dim: 128, output_norm: none, output_bias: true}
optimizer: {name: adamw, lr: 1e-2, weight_decay: 0.01}
train: {epochs: 10, batch_size: 128, device: cpu, loader_threads: 0, online_probe: null}
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


def embed_with_gradient(self: SimSiam, batch: Batch) -> dict[str, Tensor]:
    """The targets keep their gradient."""
    targets = [self.projector(self.backbone(view)) for view in batch.views]
    named = {"prediction": [self.predictor(each) for each in targets], "target": targets}
    return {name: torch.stack(views, dim=1) for name, views in named.items()}


def embed_without_predictor(self: SimSiam, batch: Batch) -> dict[str, Tensor]:
    targets = torch.stack([self.projector(self.backbone(view)) for view in batch.views], dim=1)
    return {"prediction": targets, "target": targets.detach()}


def objective_without_stop_gradient(
    self: SimSiam, embeddings: Mapping[str, Tensor], batch: Batch, progress: Progress
) -> StepOutput:
    prediction, target = embeddings["prediction"], embeddings["target"]
    losses = [self.loss(LossInput((prediction[:, v], target[:, 1 - v]))) for v in (0, 1)]
    return StepOutput(torch.stack(losses).mean())


@pytest.mark.slow  # some epochs until the spread has fallen
def test_without_the_stop_gradient_the_run_is_stopped(
    recipe: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(SimSiam, "embed", embed_with_gradient)
    monkeypatch.setattr(SimSiam, "objective", objective_without_stop_gradient)
    with pytest.raises(TrainingError, match=r"^epoch \d: stopped by collapse: the embeddings"):
        start(recipe, display=Silent())


@pytest.mark.slow  # some epochs until the spread has fallen
def test_without_the_predictor_the_run_is_stopped(
    recipe: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Seeds 0 to 6 were stopped in epochs 3 to 13. Under a cosine of ten epochs the rounding of the
    CPU decided whether the spread fell below the limit before the steps were too small."""
    monkeypatch.setattr(SimSiam, "embed", embed_without_predictor)
    longer = ["schedule={name: constant}", "train.epochs=20"]
    with pytest.raises(TrainingError, match=r"^epoch \d+: stopped by collapse: the embeddings"):
        start(recipe, longer, display=Silent())


@pytest.mark.slow  # a whole run of some seconds
def test_healthy_simsiam_is_not_stopped(recipe: Path) -> None:
    found = start(recipe, ["train.epochs=4"], display=Silent())
    assert found.status == "finished"
    assert found.metrics["collapse/embedding_spread"] > 0.6
