"""The collapse monitor, on real images: healthy runs go on, and each without what keeps images
apart is stopped."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
import torch
from sslkit_cluster.decoupled import DCL
from torch import Tensor
from torch.nn import functional as F

from sslkit.api import Loss, LossInput
from sslkit.builtin.losses import InfoNCE
from sslkit.engine.display import Silent
from sslkit.errors import TrainingError
from sslkit.workflows.train import start

pytestmark = pytest.mark.slow  # whole runs, of some seconds each

RECIPE = """\
name: cluster-digits
data: {name: digits}
backbone: {name: timm, model: test_resnet, normalize: none}
optimizer: {name: adamw, lr: 2e-3, weight_decay: 0.01}
train: {epochs: 3, batch_size: 128, device: cpu, loader_threads: 0, online_probe: null}
evaluate:
  - {name: collapse, every_epochs: 1, policy: stop}
tracking: {name: none}
"""
STRONG = """\
augmentation:
  {name: simclr, size: 16, crop_scale: [0.2, 1.0], blur: false, saturation: 0, hue: 0,
   grayscale_probability: 0}
"""
MILD = """\
augmentation:
  {name: simclr, size: 16, crop_scale: [0.5, 1.0], jitter_strength: 0.3, blur: false, saturation: 0,
   hue: 0, grayscale_probability: 0}
"""
"""Views of a digit agree enough for SwAV, which stays at ln K with the strong one."""
DCL_METHOD = f"""\
{STRONG}\
method:
  name: simclr
  head: {{name: mlp, hidden_dim: 128, out_dim: 64, output_norm: none}}
  loss: {{name: dcl}}
"""


def write(folder: Path, method: str) -> Path:
    torch.set_num_threads(1)
    path = folder / "digits.yaml"
    path.write_text(RECIPE + method + f"runs_dir: {folder / 'runs'}\n")
    return path


NNCLR_METHOD = f"""\
{STRONG}\
method:
  name: nnclr
  projector: {{name: mlp, hidden_dim: 128, out_dim: 64, output_norm: none}}
  predictor: {{name: mlp, hidden_dim: 128, out_dim: 64, output_norm: none}}
  queue_size: 512
"""


SWAV_METHOD = f"""\
{MILD}\
method:
  name: swav
  projector: {{name: mlp, hidden_dim: 128, out_dim: 64, output_norm: none}}
  num_prototypes: 32
  epsilon: 0.03
  freeze_prototypes_epochs: 0.2
"""


@pytest.mark.parametrize("method", [DCL_METHOD, NNCLR_METHOD], ids=["dcl", "nnclr"])
def test_healthy_runs_are_not_stopped(tmp_path: Path, method: str) -> None:
    found = start(write(tmp_path, method), display=Silent())
    assert found.status == "finished"
    assert found.metrics["collapse/embedding_spread"] > 0.25


def positives_alone(self: Loss, inputs: LossInput) -> Tensor:
    first, second = inputs.views
    return -F.cosine_similarity(first, second).mean() / 0.1


@pytest.mark.parametrize(
    ("loss", "method"), [(DCL, DCL_METHOD), (InfoNCE, NNCLR_METHOD)], ids=["dcl", "nnclr"]
)
def test_without_negatives_a_run_is_stopped(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, loss: type[Loss], method: str
) -> None:
    monkeypatch.setattr(loss, "forward", positives_alone)
    with pytest.raises(TrainingError, match=r"^epoch [123]: stopped by collapse: the embeddings"):
        start(write(tmp_path, method), display=Silent())


@pytest.mark.usefixtures("pictures")
def test_healthy_swav_is_not_stopped(tmp_path: Path) -> None:
    found = start(write(tmp_path, SWAV_METHOD), display=Silent())
    assert found.status == "finished"
    assert found.metrics["collapse/prototypes/scores"] > 0.2
    assert found.metrics["collapse/embedding_spread/shares"] > 0.5
    assert found.metrics["train/loss"] < 0.95 * math.log(32)
    assert (found.run_dir / "figures" / "collapse_prototypes.png").stat().st_size > 1000


def codes_as_they_are(scores: Tensor, epsilon: float, *_: Any, **__: Any) -> Tensor:
    return (scores.detach() / epsilon).softmax(dim=1)


def test_swav_without_equal_parts_is_stopped(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sslkit_cluster.swav.sinkhorn", codes_as_they_are)
    with pytest.raises(TrainingError, match=r"^epoch [123]: stopped by collapse: .*'scores'"):
        start(write(tmp_path, SWAV_METHOD), display=Silent())


def test_swav_that_sinks_to_ln_k_is_stopped(tmp_path: Path) -> None:
    """Views under the strong augmentation agree too little for the paper's epsilon: scores become
    equal and codes uniform, while the highest scores still differ from image to image."""
    method = SWAV_METHOD.replace(MILD, STRONG).replace("epsilon: 0.03", "epsilon: 0.05")
    with pytest.raises(TrainingError, match=r"^epoch [2-6]: stopped by collapse: .*'shares'"):
        start(write(tmp_path, method), ["train.epochs=8"], display=Silent())
