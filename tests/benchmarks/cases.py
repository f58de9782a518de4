"""The training steps that are compared, and their recipes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

from sslkit.errors import SSLKitError
from sslkit.experiment.resolve import resolve
from sslkit.recipe import Recipe, parse_recipe

from .arms import Unavailable
from .images import DATA_DIR, Images, images_in_files, images_in_memory, registry
from .options import Options

Table = Literal["same settings", "as shipped"]
Mode = Literal["eager", "compiled augmentation", "compiled", "graphed"]
"""What torch.compile works on in our arms: nothing, the augmentation, or the backbone too; and that
replayed as CUDA graphs."""


@dataclass(frozen=True)
class Case:
    """A SimCLR step: an encoder, a view size and a batch."""

    name: str
    title: str
    model: str
    size: int
    """Side of the views, pixels."""
    batch_size: int
    source_size: int
    """Side of the images that views are cut from; 0: photographs in files."""
    num_images: int
    steps: int
    """Steps of a block."""
    lead_steps: int = 2
    """Steps before the clock starts, in which loaders fill their queues."""
    stem: str = "default"
    hidden_dim: int = 512
    jitter_strength: float = 0.5
    blur: bool = False
    modes: tuple[Mode, ...] = ("eager", "compiled")
    """Our arms."""
    min_rounds: int = 6
    tables: tuple[Table, ...] = ("same settings", "as shipped")

    def images(self, data_dir: Path = DATA_DIR) -> Images:
        """What all arms are fed."""
        if self.source_size == 0:
            return images_in_files(self.num_images, data_dir)
        return images_in_memory(self.source_size, self.num_images, data_dir)


_CPU_MODES: tuple[Mode, ...] = ("eager", "compiled augmentation")
_GPU_MODES: tuple[Mode, ...] = ("eager", "compiled", "graphed")
_CIFAR = Case(
    "",
    "",
    "",
    32,
    256,
    32,
    10_000,
    steps=2,
    lead_steps=1,
    modes=("eager", "compiled augmentation", "compiled"),
)
_PHOTOS = Case(
    "", "", "", 224, 4, 256, 256, steps=1, lead_steps=1, hidden_dim=2048, jitter_strength=1.0,
    blur=True, modes=_CPU_MODES, min_rounds=4, tables=("same settings",),
)  # fmt: skip

CPU_CASES = (
    replace(_CIFAR, name="r10t-32", title="resnet10t, 32 px, batch 256", model="resnet10t"),
    replace(
        _CIFAR, name="r18-32", title="ResNet-18 (small stem), 32 px, batch 32", model="resnet18",
        stem="small", batch_size=32, steps=1, modes=_CPU_MODES,
        tables=("same settings",),
    ),
    replace(_PHOTOS, name="r50-224", title="ResNet-50, 224 px, batch 4", model="resnet50"),
    replace(
        _PHOTOS, name="vits-224", title="ViT-S/16, 224 px, batch 4", hidden_dim=384,
        model="vit_small_patch16_224",
    ),
)  # fmt: skip

_GPU_PHOTOS = replace(
    _PHOTOS, batch_size=256, num_images=8192, steps=16, lead_steps=4, modes=_GPU_MODES
)

GPU_CASES = (
    replace(
        _CIFAR, name="r18-32", title="ResNet-18 (small stem), 32 px, batch 512", model="resnet18",
        stem="small", batch_size=512, num_images=50_000, steps=32, lead_steps=8,
        modes=_GPU_MODES, min_rounds=4,
    ),
    replace(_GPU_PHOTOS, name="r50-224", title="ResNet-50, 224 px, batch 256", model="resnet50"),
    replace(
        _GPU_PHOTOS, name="vits-224", title="ViT-S/16, 224 px, batch 256", hidden_dim=384,
        model="vit_small_patch16_224",
    ),
    replace(
        _GPU_PHOTOS, name="r50-224-files", title="ResNet-50, 224 px, batch 256, from JPEG files",
        model="resnet50", source_size=0,
    ),
)  # fmt: skip

TINY_CASES = (
    Case(
        "tiny", "test_resnet, 32 px, batch 8", "test_resnet", 32, 8, 36, 64, 1, 1, modes=("eager",)
    ),
)
"""For the test of these benchmarks."""


def case_named(cases: Sequence[Case], name: str) -> Case:
    """The case of this name. Raises SystemExit with the names there are."""
    for case in cases:
        if case.name == name:
            return case
    raise SystemExit(f"--case {name}: choose one of {', '.join(case.name for case in cases)}")


def recipe_text(case: Case, table: Table, images: Images, runs_dir: Path) -> str:
    """The recipe of our arms. In `same settings` it differs from the shipped ones where the peers
    leave no choice: bilinear crops; and it has no online probe, which they lack."""
    same = table == "same settings"
    return f"""\
name: benchmark-{case.name}
runs_dir: '{runs_dir}'
data: {images.block}
augmentation:
  name: simclr
  size: {case.size}
  jitter_strength: {case.jitter_strength}
  blur: {str(case.blur).lower()}
  interpolation: {"bilinear" if same else "bicubic"}
backbone: {{name: timm, model: {case.model}, stem: {case.stem}, normalize: imagenet}}
method:
  name: simclr
  head: {{name: mlp, hidden_dim: {case.hidden_dim}, out_dim: 128, output_norm: bn}}
  loss: {{name: nt_xent, temperature: 0.5}}
optimizer: {{name: sgd, lr: 0.03, momentum: 0.9, weight_decay: 5e-4, exclude_bias_and_norm: false}}
train:
  epochs: 1000000
  batch_size: {case.batch_size}
  precision: bf16
  channels_last: true
  log_every_steps: {case.steps}
  checkpoint_every_epochs: 1000000
  online_probe: {"null" if same else "{}"}
tracking: {{name: none}}
"""


def make_recipe(
    case: Case,
    table: Table,
    images: Images,
    runs_dir: Path,
    options: Options,
    mode: Mode = "eager",
    further: Sequence[str] = (),
) -> Recipe:
    """The resolved recipe, with further overrides. Raises Unavailable without a compiler."""
    overrides = [
        f"train.device={options.device.type}",
        f"train.loader_threads={options.loader_threads}",
        f"train.compile={str(mode in ('compiled', 'graphed')).lower()}",
        f"train.cuda_graphs={str(mode == 'graphed').lower()}",
        f"train.compile_augmentation={str(mode != 'eager').lower()}",
        *further,
    ]
    text = recipe_text(case, table, images, runs_dir)
    recipe = parse_recipe(text, "benchmark", overrides, registry())
    try:
        return resolve(recipe)
    except SSLKitError as error:
        raise Unavailable(str(error)) from error
