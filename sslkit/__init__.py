"""sslkit: a plugin-based experiment framework for self-supervised learning on images."""

from __future__ import annotations

from functools import cache
from importlib.metadata import PackageNotFoundError, version
from typing import TYPE_CHECKING

import pluggy

from .deprecation import INTERFACE_VERSION, keep_moved_modules

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path
    from typing import Any

    import torch
    from torch import nn

    from .api import (
        Augmentation,
        Backbone,
        Batches,
        Evaluation,
        FeatureBank,
        ImageReader,
        Preprocess,
        Slot,
        SplitReader,
    )
    from .host.registry import Registry
    from .parallel.world import World
    from .workflows.execute import RunResult

try:
    __version__ = version("sslkit")
except PackageNotFoundError:  # a source tree on PYTHONPATH, not installed
    __version__ = "0+source"

keep_moved_modules()
hookimpl = pluggy.HookimplMarker("sslkit")
"""Marks a function of a plugin module as the implementation of a hook."""

__all__ = [
    "INTERFACE_VERSION",
    "__version__",
    "component",
    "evaluate_features",
    "hookimpl",
    "installed_components",
    "load_batches",
    "load_encoder",
    "open_data",
    "read_images",
    "run",
    "take_features",
]


def run(recipe: str | Path, overrides: Sequence[str] = ()) -> RunResult:
    """Runs a recipe. overrides: `"train.epochs=5"` and the like, as with `sslkit run -o`.

    Raises RecipeError, PluginError, DataError or TrainingError."""
    from .workflows.train import run_recipe

    return run_recipe(recipe, overrides)


def load_encoder(run_or_checkpoint: str | Path) -> Backbone:
    """The trained encoder of a run folder or checkpoint, in eval mode: (B, C, S, S) images in
    [0, 1] to (B, num_features); `.preprocess` says how to make such images.

    Its batch statistics are those that the run is measured with. For a checkpoint they are computed
    from the run's training images, which must be there; a finished run has them in a file. Raises
    CheckpointError, also where such images are missing."""
    from .experiment.encoder import load_encoder as load

    return load(run_or_checkpoint)


@cache
def installed_components() -> Registry:
    """The components of every installed plugin. Read once: a plugin that is installed later is seen
    by the next process."""
    from .host.plugins import load_plugins

    return load_plugins().registry


def component(kind: str, name: str, /, **fields: Any) -> Slot[Any]:
    """A component, by its name and the fields of its block in a recipe; `.build(...)` makes it:

        augment = sslkit.component("augmentation", "simclr", size=32, flip=0.0).build()
        head = sslkit.component("head", "mlp", out_dim=64).build(in_dim=512)

    kind: `augmentation`, `head`, `loss`, ..., as in `sslkit plugins list`. Raises RecipeError for a
    field that does not fit, PluginError for a name that nothing provides."""
    from .recipe.component_block import name_component

    return name_component(kind, name, fields)


def open_data(name: str, /, **fields: Any) -> tuple[SplitReader, SplitReader | None]:
    """The training and the test split of a data source, as a run has them: `open_data("digits",
    size=32)`. None where there is no test split. Raises RecipeError and DataError."""
    from .data.given_batches import open_data as open_both

    return open_both(component("dataset", name, **fields))


def read_images(
    images: Any, labels: Any = None, class_names: Sequence[str] | None = None
) -> ImageReader:
    """A split of images that are at hand: a uint8 array (N, H, W, C), a uint8 tensor (N, C, H, W),
    both also without C, or anything with a length that gives an image at each position, or a tuple
    that begins with one: a list, a data set of torch. Images are PIL's, arrays (H, W, C) or tensors
    (C, H, W), uint8; a data set must not augment them.

    labels: (N,) whole numbers, -1 for none; by default the `targets` or `labels` of a data set,
    which is asked for nothing else. It is read by several threads where `num_threads` is above 1.
    Raises DataError."""
    from .data.given_images import given_images

    return given_images(images, labels, class_names)


def load_batches(
    reader: SplitReader,
    augmentation: Augmentation,
    *,
    batch_size: int,
    seed: int = 0,
    device: torch.device | str = "cpu",
    num_threads: int = 0,
    world: World | None = None,
) -> Batches:
    """Batches of views for a training loop, those of a run with this seed and batch size, to the
    bit: `for batch in batches.epoch(epoch): ...` gives a `Batch`, whose `views` are on the device;
    `batches.steps_per_epoch` is how many there are.

    num_threads: that decode and prepare ahead; they change nothing else. world: processes that
    share each batch, of which this one gets its part. Raises RecipeError and DataError."""
    from .data.given_batches import load_batches as load

    return load(
        reader,
        augmentation,
        batch_size=batch_size,
        seed=seed,
        device=device,
        num_threads=num_threads,
        world=world,
    )


def take_features(
    encoder: nn.Module,
    train: SplitReader,
    test: SplitReader,
    *,
    preprocess: Preprocess | None = None,
    calibrated: bool = False,
    seed: int = 0,
    num_threads: int = 0,
) -> FeatureBank:
    """Features of both splits by any encoder, (B, C, S, S) images in [0, 1] to (B, F), in
    evaluation mode, in float32 and where the encoder is, which is left as it was.

    preprocess: resize and crop, such as `sslkit.api.Preprocess(size=224, resize=256)`; by default
    those of `load_encoder(...)`, and none for other networks, whose images then need one size.
    calibrated: with the BatchNorm statistics of the training images instead of its running ones, as
    a run measures its encoder. Raises DataError, and RecipeError for the same images in both."""
    from .data.given_batches import take_features as take

    return take(
        encoder,
        train,
        test,
        preprocess=preprocess,
        calibrated=calibrated,
        seed=seed,
        num_threads=num_threads,
    )


def evaluate_features(
    bank: FeatureBank, *evaluators: Slot[Any], seed: int = 0
) -> Mapping[str, Evaluation]:
    """What evaluators find in features: name of the evaluator -> its findings, with the values of
    `sslkit eval` of the same features and seed. A second one of a name is `knn_2`.

        knn = sslkit.component("evaluator", "knn", k=20)
        print(sslkit.evaluate_features(bank, knn)["knn"].metrics["top1"])

    bank: of `take_features`, or made from arrays of features. Raises RecipeError for an evaluator
    that needs more than features, DataError for features and labels that do not fit."""
    from .evaluation.feature_bank import evaluate_features as evaluate

    return evaluate(bank, evaluators, seed)
