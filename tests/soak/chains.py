"""The runs that are killed: SimCLR, BYOL, MoCo v2 and v3, with all that writes files."""

from __future__ import annotations

import shutil
from dataclasses import dataclass
from pathlib import Path

_RECIPE = """\
name: chain
data: {name: synthetic, num_train: 84, num_test: 40, size: 16}
augmentation: {name: simclr, size: 16, jitter_strength: 0.5, blur: false}
backbone: {name: timm, model: test_resnet, drop_path_rate: 0.2}
optimizer: {name: adamw, lr: 1e-3, weight_decay: 0.01}
schedule: {name: cosine, warmup_epochs: 0.5}
train:
  {epochs: 4, batch_size: 14, device: cpu, loader_threads: 2, log_every_steps: 1,
   checkpoint_every_steps: 2, keep_checkpoints: 3}
evaluate:
  - {name: knn, k: 5, every_epochs: 1}
  - {name: collapse, every_epochs: 2}
"""
"""24 steps, 12 checkpoints, 4 evaluations; drop path, so that library randomness matters."""
_HEAD = "{name: mlp, hidden_dim: 16, out_dim: 8}"
METHODS = {
    "simclr": f"{{name: simclr, head: {_HEAD}}}",
    "byol": f"{{name: byol, projector: {_HEAD}, predictor: {_HEAD}, teacher_momentum: 0.9}}",
    "moco_v2": f"{{name: moco_v2, head: {_HEAD}, queue_size: 31, teacher_momentum: 0.9, "
    "bn_groups: 2}",
    "moco_v3": f"{{name: moco_v3, projector: {_HEAD}, predictor: {_HEAD}, teacher_momentum: 0.9}}",
}
"""A queue that no batch divides."""
STORE = "mlflow.db"


@dataclass(frozen=True)
class Variant:
    """A method, and whether MLflow watches."""

    method: str
    tracked: bool

    @property
    def name(self) -> str:
        """For messages."""
        return f"{self.method}{', tracked' if self.tracked else ''}"

    def write(self, work: Path, empty_store: Path) -> None:
        """Puts the recipe, and the store where there is one, into the folder of a chain.

        empty_store: an MLflow store without runs, since making one takes seconds."""
        tracker = f"{{name: mlflow, tracking_uri: 'sqlite:///{STORE}'}}"
        (work / "recipe.yaml").write_text(
            f"{_RECIPE}method: {METHODS[self.method]}\n"
            f"tracking: {tracker if self.tracked else '{name: none}'}\n"
        )
        if self.tracked:
            shutil.copy(empty_store, work / STORE)
