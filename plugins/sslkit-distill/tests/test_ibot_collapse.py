"""The collapse monitor, on real images: iBOT goes on; without the centre of class tokens, or of
patches alone, it is stopped. So it is with DINOv2, and where balanced targets hide a collapse."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from sslkit.engine.display import Silent
from sslkit.errors import TrainingError
from sslkit.workflows.train import start

HEAD = "{name: dino, out_dim: 128, hidden_dim: 128, bottleneck_dim: 32, batch_norm: true}"
RECIPE = f"""\
name: ibot-digits
data: {{name: digits}}
augmentation:
  {{name: simclr, size: 16, crop_scale: [0.4, 1.0], blur: false, saturation: 0, hue: 0,
   grayscale_probability: 0}}
backbone: {{name: timm, model: test_vit, patch_size: 4, normalize: none, pool: token,
  model_args: {{depth: 2}}}}
method:
  name: ibot
  head: {HEAD}
  teacher_temperature: 0.04
  patch_teacher_temperature: 0.04
  teacher_momentum: {{name: cosine, start: 0.97, end: 1.0}}
  min_block: 2
  freeze_last_layer_epochs: 0
optimizer: {{name: adamw, lr: 2e-3, weight_decay: 0.04}}
train: {{epochs: 3, batch_size: 128, device: cpu, loader_threads: 0, online_probe: null}}
evaluate:
  - {{name: collapse, every_epochs: 1, policy: stop}}
tracking: {{name: none}}
"""
# Another name alone would take the defaults of the other method, a head of 65,536 prototypes.
DINOV2 = (
    f"method={{name: dinov2, head: {HEAD}, patch_head: {HEAD}, teacher_temperature: 0.04, "
    "patch_teacher_temperature: 0.04, teacher_momentum: {name: cosine, start: 0.97, end: 1.0}, "
    "min_block: 2, freeze_last_layer_epochs: 0}",
)
MEAN = (*DINOV2, "method.centering=mean")
# At its own learning rates blocks move too slowly to collapse in so few steps.
QUICK = (
    *MEAN, "train.epochs=5",
    "method.layer_decay=1", "method.patch_embed_lr_scale=1", "method.max_grad_norm=3",
)  # fmt: skip

pytestmark = pytest.mark.slow  # runs of some epochs, 5 to 10 s of processor time each


@pytest.fixture
def recipe(tmp_path: Path) -> Path:
    torch.set_num_threads(1)
    path = tmp_path / "digits.yaml"
    path.write_text(RECIPE + f"runs_dir: {tmp_path / 'runs'}\n")
    return path


@pytest.mark.parametrize(
    ("overrides", "entry"),
    [
        pytest.param(["method.center_momentum=1.0"], "target", id="class-tokens"),
        pytest.param(["method.patch_center_momentum=1.0"], "patch_target", id="patches"),
        pytest.param([*QUICK, "method.center_momentum=1.0"], "target", id="dinov2-class-tokens"),
        pytest.param(
            [*QUICK, "method.patch_center_momentum=1.0"], "patch_target", id="dinov2-patches"
        ),
    ],
)
def test_without_centring_the_run_is_stopped(
    recipe: Path, overrides: list[str], entry: str
) -> None:
    said = rf"^epoch \d: stopped by collapse: .*('{entry}'|few of 128 prototypes)"
    with pytest.raises(TrainingError, match=said):
        start(recipe, overrides, display=Silent())


def test_balanced_targets_do_not_hide_that_all_images_are_alike(recipe: Path) -> None:
    """As they are here without BatchNorm in the heads."""
    plain = [each.replace("batch_norm: true", "batch_norm: false") for each in DINOV2]
    with pytest.raises(TrainingError, match=r"^epoch \d: stopped by collapse: .*'target'"):
        start(recipe, plain, display=Silent())


@pytest.mark.parametrize(
    "overrides",
    [
        pytest.param([], id="ibot"),
        pytest.param(DINOV2, id="dinov2"),
        pytest.param(MEAN, id="dinov2-mean"),
        pytest.param(QUICK, id="dinov2-quick"),
    ],
)
def test_a_healthy_run_is_not_stopped(recipe: Path, overrides: list[str]) -> None:
    found = start(recipe, overrides, display=Silent())
    assert found.status == "finished"
    assert found.metrics["collapse/prototypes/target"] > 0.2
    assert found.metrics["collapse/prototypes/patch_target"] > 0.2
