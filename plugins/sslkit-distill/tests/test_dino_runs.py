"""Whole runs of DINO with multi-crop: the teacher's encoder is what remains of them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

import sslkit
from sslkit.engine.display import Silent
from sslkit.workflows.train import start

RECIPE = """\
name: tiny-dino
data: {name: synthetic, num_train: 84, num_test: 40, size: 16}
augmentation:
  {name: simclr, size: 16, jitter_strength: 0.5, blur: false,
   views: [{count: 2}, {count: 2, role: local, size: 8, crop_scale: [0.2, 0.4]}]}
backbone:
  {name: timm, model: test_vit, patch_size: 4, pool: token, drop_path_rate: 0.2,
   model_args: {dynamic_img_size: true, depth: 2}}
method:
  name: dino
  head: {name: dino, out_dim: 24, hidden_dim: 32, bottleneck_dim: 8}
  teacher_momentum: {name: cosine, start: 0.9, end: 1.0}
optimizer: {name: adamw, lr: 1e-3, weight_decay: {name: cosine, start: 0.04, end: 0.4}}
schedule: {name: cosine, warmup_epochs: 0.5}
train: {epochs: 2, batch_size: 14, device: cpu, loader_threads: 0, checkpoint_every_steps: 4,
        keep_checkpoints: 20}
evaluate:
  - {name: knn, k: 5}
tracking: {name: none}
"""


@pytest.fixture(scope="module")
def run_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("dino")
    torch.set_num_threads(1)
    (folder / "tiny.yaml").write_text(RECIPE + f"runs_dir: {folder / 'runs'}\n")
    return start(folder / "tiny.yaml", display=Silent()).run_dir


def method_state(path: Path) -> dict[str, Any]:
    state: dict[str, Any] = torch.load(path, weights_only=True)["method"]
    return state


@pytest.mark.slow  # 2 seconds
def test_the_encoder_is_the_teachers(run_dir: Path) -> None:
    state = method_state(sorted((run_dir / "checkpoints").iterdir())[-1])
    encoder = sslkit.load_encoder(run_dir).state_dict()
    assert encoder
    for name, value in encoder.items():
        if name.startswith("model."):
            assert torch.equal(value, state[f"teacher.module.0.{name}"]), name
    name = "model.blocks.0.attn.qkv.weight"
    assert not torch.equal(encoder[name], state[f"backbone.{name}"])


def test_prototypes_stand_still_for_an_epoch_and_move_then(run_dir: Path) -> None:
    """An epoch has six steps; weight decay leaves them alone too."""
    states = {
        int(path.stem.split("-")[-1]): method_state(path)
        for path in (run_dir / "checkpoints").iterdir()
    }
    before, last = states[4], states[max(states)]
    prototypes, layer = "head.layers.3.weight", "head.layers.0.0.weight"
    same = "teacher.module.1.layers.3.weight"
    assert torch.equal(before[prototypes], before[same])  # neither has moved
    assert not torch.equal(before[layer], before["teacher.module.1.layers.0.0.weight"])
    assert not torch.equal(before[prototypes], last[prototypes])
    assert last["center"].abs().sum() > 0.0
