"""A small run on waves, and what tests ask of it."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import torch

from sslkit.engine.display import Silent
from sslkit.workflows.execute import RunResult
from sslkit.workflows.train import start

RECIPE = """\
name: tiny-waves
data: {name: waves, num_train: 84, num_test: 40, length: 32, channels: 2, periods: [1.0, 4.0]}
augmentation: {name: series, length: 24, flip: 0.3}
backbone: {name: resnet1d, width: 4, blocks: [1, 1]}
method:
  name: simclr
  head: {name: mlp, hidden_dim: 16, out_dim: 8}
optimizer: {name: adamw, lr: 1e-3, weight_decay: 0.01}
schedule: {name: cosine, warmup_epochs: 0.5}
train: {epochs: 2, batch_size: 14, device: cpu, loader_threads: 4, log_every_steps: 3}
evaluate:
  - {name: knn, k: 5, every_epochs: 1}
  - {name: linear}
  - {name: few_label, labels_per_class: [1, 2], draws: 3}
  - {name: collapse}
tracking: {name: none}
"""
"""6 steps an epoch."""

OF_PICTURES = re.compile(r"\b(image|pixel|picture|photo)s?\b|\bpx\b", re.IGNORECASE)


def write_recipe(folder: Path) -> Path:
    path = folder / "tiny.yaml"
    path.write_text(RECIPE + f"runs_dir: {folder / 'runs'}\n")
    return path


def run(recipe: Path | None, *overrides: str, resume: Path | None = None) -> RunResult:
    return start(recipe, overrides, resume=str(resume) if resume else None, display=Silent())


def final_state(run_dir: Path) -> dict[str, Any]:
    path = sorted((run_dir / "checkpoints").iterdir())[-1]
    state: dict[str, Any] = torch.load(path, weights_only=True)
    return state


def assert_same(a: Any, b: Any, path: str = "state") -> None:
    """Bit for bit, in every corner of a checkpoint."""
    if isinstance(a, torch.Tensor):
        assert torch.equal(a, b), path
    elif isinstance(a, dict):
        assert a.keys() == b.keys(), path
        for key in a:
            assert_same(a[key], b[key], f"{path}.{key}")
    elif isinstance(a, list | tuple):
        assert len(a) == len(b), path
        for index, pair in enumerate(zip(a, b, strict=True)):
            assert_same(*pair, f"{path}.{index}")
    else:
        assert a == b, path
