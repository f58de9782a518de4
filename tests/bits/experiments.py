"""The experiments: small, together every part of sslkit that makes numbers."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

CIFAR_IMAGES = {"train": 2048, "test": 512}
"""Of CIFAR-10, from the start of each file: 16 steps an epoch at the recipes' 128 images."""

TINY = """\
name: tiny
seed: 0
data: {name: synthetic, num_train: 96, num_test: 48, size: 16}
augmentation: {name: simclr, size: 16, jitter_strength: 0.5, blur: true}
backbone: {name: timm, model: test_resnet, drop_path_rate: 0.2}
method: {name: simclr, head: {name: mlp, hidden_dim: 16, out_dim: 8}}
optimizer: {name: adamw, lr: 1e-3, weight_decay: 0.01}
schedule: {name: cosine, warmup_epochs: 0.5}
train: {epochs: 4, batch_size: 8, loader_threads: 2, log_every_steps: 4}
evaluate:
  - {name: knn, k: 5, every_epochs: 2}
"""
"""48 steps; drop path, so that library randomness matters."""

_SYNTHETIC = "data={{name: synthetic, num_train: {}, num_test: {}, size: 32}}"
_FEW_IMAGES = _SYNTHETIC.format(128, 64)
_SHORT = "train={epochs: 4, batch_size: 32, loader_threads: 2, log_every_steps: 2}"
_RESNET = "backbone={name: timm, model: test_resnet, drop_path_rate: 0.1, normalize: cifar10}"
_EVALUATE = "evaluate=[{name: knn, k: 5, every_epochs: 2}, {name: collapse, every_epochs: 2}]"


@dataclass(frozen=True)
class Experiment:
    """One run of `sslkit run`."""

    name: str
    recipe: str = TINY
    """The name of a shipped recipe, or a whole recipe."""
    overrides: tuple[str, ...] = ()
    killed: bool = False
    """Killed with SIGKILL at a checkpoint, then resumed."""
    same_as: str | None = None
    """Another experiment, that must have the same bits in the same record."""
    cifar: bool = False
    """Trains on CIFAR-10 where that is given."""
    photos: bool = False
    """Trains on files of images of several sizes, which are made for it."""


def _shortened(*overrides: str) -> tuple[str, ...]:
    """What makes a recipe for ImageNet or a GPU run for 16 steps on a CPU."""
    return (_FEW_IMAGES, "augmentation.size=32", _RESNET, _SHORT, _EVALUATE, *overrides)


_EVALUATORS = (
    "{name: knn, k: 5, every_epochs: 2}",
    "{name: linear}",
    "{name: linear, solver: sgd, epochs: 3}",
    "{name: few_label, labels_per_class: [1, 2], draws: 3}",
    "{name: retrieval, num_queries: 20}",
    "{name: clustering, restarts: 2}",
    "{name: collapse, every_epochs: 2, policy: 'off'}",
    "{name: finetune, epochs: 1}",
    "{name: semi_supervised, fractions: [0.5], draws: 1, epochs: [2]}",
    "{name: segmentation, data: {name: scenes, size: 16, num_train: 24, num_test: 12}}",
)

_SCENES = "data: {name: scenes, size: 32, num_train: 16, num_test: 8}"
_DENSE = (
    f"{{name: segmentation, {_SCENES}, every_epochs: 2}}",
    f"{{name: detection, {_SCENES}, every_epochs: 2, steps: 4, batch_size: 2, sizes: [32, 48],"
    " pyramid_width: 16, head_width: 16, warmup_steps: 2}",
)

_CHECKPOINTS = "train.checkpoint_every_steps=3"

EXPERIMENTS = (
    Experiment(
        "quickstart",
        "quickstart",
        ("train.epochs=3", "evaluate.0.every_epochs=1", "evaluate.3.every_epochs=1"),
    ),
    *(
        Experiment(
            f"{method}_short",
            f"cpu/{method}_cifar10_short",
            (_SYNTHETIC.format(*CIFAR_IMAGES.values()), "train.log_every_steps=8"),
            cifar=True,
        )
        for method in ("simclr", "byol", "moco")
    ),
    Experiment(
        "byol",
        "byol_r50",
        _shortened(
            "augmentation.blur_kernel=3",
            "method.projector.hidden_dim=32",
            "method.predictor.hidden_dim=32",
            "schedule.warmup_epochs=1",
        ),
    ),
    Experiment(
        "moco_v1",
        "moco_v1_r50",
        _shortened(
            "method.queue_size=96",
            "method.bn_groups=4",
            "schedule={name: multistep, milestones: [1, 2], gamma: 0.1}",
        ),
    ),
    Experiment(
        "moco_v2",
        "moco_v2_cifar10_r18",
        _shortened("method.queue_size=100", "method.bn_groups=4", "method.head.hidden_dim=32"),
    ),
    Experiment(
        "moco_v3",
        "moco_v3_vit_s",
        _shortened(
            "backbone={name: timm, model: test_vit, patch_size: 8, pool: token}",
            "method.projector.hidden_dim=32",
            "method.predictor.hidden_dim=32",
            "schedule.warmup_epochs=1",
            "train.precision=bf16",
        ),
    ),
    Experiment("simclr", overrides=(_CHECKPOINTS,)),
    Experiment("resumed", overrides=(_CHECKPOINTS,), killed=True, same_as="simclr"),
    Experiment("micro_batches", overrides=("train.batch_size=16", "train.micro_batch_size=4")),
    Experiment("fp16", overrides=("train.precision=fp16", "train.max_grad_norm=5.0")),
    Experiment(
        "views",
        overrides=(
            "augmentation.views=[{blur_probability: 1.0, rotation_degrees: 20},"
            " {solarize_probability: 0.5, crop_scale: [0.3, 1.0], interpolation: bilinear}]",
            "callbacks=[{name: augmented_views}]",
        ),
    ),
    Experiment("photos", photos=True, overrides=("evaluate.0.every_epochs=4",)),
    Experiment("evaluators", overrides=(f"evaluate=[{', '.join(_EVALUATORS)}]",)),
    Experiment("dense", overrides=(f"evaluate=[{', '.join(_DENSE)}]", "train.epochs=2")),
)
NAMES = tuple(experiment.name for experiment in EXPERIMENTS)


def arguments(experiment: Experiment, folder: Path, cifar: Path | None) -> list[str]:
    """What follows `sslkit run`; files that the run needs are put into `folder`.

    cifar: folder with `train.parquet` and `test.parquet`."""
    recipe = experiment.recipe
    if "\n" in recipe:
        (folder / "recipe.yaml").write_text(recipe)
        recipe = "recipe.yaml"
    overrides = ["tracking={name: none}", "train.device=cpu", *experiment.overrides]
    if experiment.cifar and cifar is not None:
        overrides = [word for word in overrides if not word.startswith("data=")]
        for split, number in CIFAR_IMAGES.items():
            head = take_rows(cifar / f"{split}.parquet", folder / f"{split}.parquet", number)
            overrides.append(f"data.{split}={head.name}")
    if experiment.photos:
        for split, number in {"train": 12, "test": 6}.items():
            write_photos(folder / "photos" / split, number)
        overrides.append("data={name: image_folder, train: photos/train, test: photos/test}")
    # A block is replaced before a field of it is set.
    overrides.sort(key=lambda word: "." in word.partition("=")[0])
    return [recipe, *(word for override in overrides for word in ("-o", override))]


def take_rows(source: Path, target: Path, number: int) -> Path:
    """The first rows of a Parquet file as another file; returns that."""
    import pyarrow.parquet as parquet

    parquet.write_table(parquet.read_table(source).slice(0, number), target)
    return target


def write_photos(folder: Path, each: int) -> None:
    """JPEG and PNG files of four classes in several sizes: gradients with noise."""
    import numpy as np
    from PIL import Image

    random = np.random.default_rng(0)
    for label in range(4):
        place = folder / f"class_{label}"
        place.mkdir(parents=True)
        for number in range(each):
            height, width = (int(side) for side in random.integers(20, 70, 2))
            ramp: Any = np.linspace(0, 180, width)[None, :, None] * np.eye(4, 3)[label]
            noise = random.integers(0, 70, (height, width, 3))
            suffix = "png" if number % 3 == 0 else "jpg"
            Image.fromarray((ramp + noise).astype(np.uint8)).save(place / f"{number}.{suffix}")
