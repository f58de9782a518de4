"""The collapse monitor, on real images: I-JEPA goes on; with targets that are trained along, every
image comes to look like every other, and the run is stopped."""

from __future__ import annotations

from pathlib import Path

import pytest
from sslkit_jepa.ijepa import IJEPA
from torch import Tensor
from torch.nn import functional as F

from sslkit.api import Tokens
from sslkit.engine.display import Silent
from sslkit.errors import TrainingError
from sslkit.workflows.train import start

RECIPE = """\
name: ijepa-digits
data: {name: digits, size: 32}
augmentation: {name: crop_flip, size: 32, crop_scale: [0.5, 1.0], flip: 0.0}
backbone:
  {name: timm, model: test_vit, patch_size: 4, pool: avg, normalize: {mean: [0.31], std: [0.38]},
   model_args: {embed_dim: 32, depth: 2, class_token: false, fc_norm: false}}
method:
  name: ijepa
  predictor: {width: 32, depth: 2, heads: 2}
  teacher_momentum: {name: linear, start: 0.99, end: 1.0}
optimizer: {name: adamw, lr: 1e-3, weight_decay: 0.04}
schedule: {name: cosine, warmup_epochs: 1}
train: {epochs: 3, batch_size: 64, device: cpu, loader_threads: 0, online_probe: null}
evaluate:
  - {name: collapse, every_epochs: 1, policy: stop}
tracking: {name: none}
"""


@pytest.fixture
def recipe(tmp_path: Path) -> Path:
    path = tmp_path / "digits.yaml"
    path.write_text(RECIPE + f"runs_dir: {tmp_path / 'runs'}\n")
    return path


def own_targets(self: IJEPA, images: Tensor) -> tuple[Tokens, Tensor]:
    """From the encoder that is trained, with their gradient."""
    tokens = self.backbone.tokens(images)
    return tokens, F.layer_norm(tokens.patches, tokens.patches.shape[-1:])


@pytest.mark.slow  # some dozen steps of a transformer
def test_with_targets_of_its_own_the_run_is_stopped(
    recipe: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(IJEPA, "targets", own_targets)
    with pytest.raises(TrainingError, match=r"^epoch [123]: stopped by collapse: the embeddings"):
        start(recipe, display=Silent())


@pytest.mark.slow  # some dozen steps of a transformer
def test_healthy_ijepa_is_not_stopped(recipe: Path) -> None:
    found = start(recipe, display=Silent())
    assert found.status == "finished"
    assert found.metrics["collapse/embedding_spread/target"] > 0.35  # before training 0.51
