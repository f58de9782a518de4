"""What the loop itself costs: `train` on a method that computes almost nothing, against the bare
step; synchronisations with the GPU in each step."""

from __future__ import annotations

import shutil
import statistics
import warnings
from collections import Counter
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from sslkit.api import Backbone, Batch, ComponentConfig, Preprocess
from sslkit.data.loader import TrainLoader
from sslkit.engine.loop import train
from sslkit.recipe import Recipe, parse_recipe

from .arms import Arm, measure
from .cases import make_recipe
from .images import images_in_memory, registry
from .options import Options
from .ours import TrainRun, ceiling_arm, scratch
from .results import ArmResult, Group
from .steps import cases_for

_STEPS = 50


class MeanColour(Backbone):
    """The mean of each channel and one linear layer: next to no arithmetic."""

    class Config(ComponentConfig):
        """No fields."""

    config: Config

    def __init__(self, config: Config, *, channels: int, image_size: int) -> None:
        super().__init__(config)
        self.num_features = 8
        self.linear = nn.Linear(channels, self.num_features)
        ones = (1.0,) * channels
        self.preprocess = Preprocess(image_size, image_size, "bilinear", (0.0,) * channels, ones)

    def forward(self, images: Tensor) -> Tensor:
        features: Tensor = self.linear(images.mean(dim=(2, 3)))
        return features


_RECIPE = """\
name: overhead
runs_dir: '{runs_dir}'
data: {block}
augmentation: {{name: simclr, size: 8, blur: false}}
backbone: {{name: benchmark_mean}}
method: {{name: simclr, head: {{name: mlp, hidden_dim: 8, out_dim: 8}}}}
optimizer: {{name: sgd, lr: 1e-3}}
train:
  epochs: 1000000
  batch_size: 8
  device: {device}
  log_every_steps: 50
  checkpoint_every_epochs: 1000000
  online_probe: null
tracking: {{name: none}}
"""


class ReadyBatches:
    """A loader that has one batch ready: what remains is the loop."""

    wait_s = 0.0
    give_up = None

    def __init__(self, batch: Batch, steps: int) -> None:
        self.batch = batch
        self.steps = steps

    def epoch(self, epoch: int, start_step: int = 0) -> Iterator[Batch]:
        """The same batch for every step."""
        return iter([self.batch] * (self.steps - start_step))


class LoopRun(TrainRun):
    """`train` with a ready batch."""

    def __init__(self, recipe: Recipe, steps: int) -> None:
        super().__init__(recipe, steps, lead_steps=2)
        training = self.experiment.training
        assert isinstance(training.loader, TrainLoader)
        (batch, *_) = training.loader.epoch(0)
        training.loader = ReadyBatches(batch, training.progress.steps_per_epoch)


def run_overhead(options: Options) -> Iterator[Group]:
    """The loop against the bare step; then, on a GPU, what waits for it."""
    steps = 5 if options.tiny else _STEPS
    runs_dir = scratch()
    try:
        make = partial(_recipe, options, runs_dir)
        arms = [
            Arm("bare step", ceiling_arm(make, steps), steps, "steps"),
            Arm("loop", lambda: LoopRun(make(), steps), steps, "steps"),
        ]
        results = measure(arms, options.plan(15.0, max_rounds=30))
        facts: dict[str, Any] = {"steps_per_block": steps}
        if results[1].seconds:
            bare, loop = (result.seconds for result in results)
            differences = [(b - a) / steps for a, b in zip(bare, loop, strict=True)]
            facts["loop_microseconds_per_step"] = 1e6 * statistics.median(differences)
        yield Group(
            "overhead", "The loop around a step that computes almost nothing", results,
            reference="bare step", facts=facts,
            note="The loop adds a fixed time to each step, whatever the network: "
            "loop_microseconds_per_step. Compare it with the time of a real step.",
        )  # fmt: skip
        for case in cases_for(options)[:1]:
            images = case.images(options.data_dir)
            recipe = make_recipe(case, "same settings", images, runs_dir, options)
            yield synchronisations(recipe, case.title, options)
    finally:
        shutil.rmtree(runs_dir, ignore_errors=True)


def synchronisations(recipe: Recipe, title: str, options: Options) -> Group:
    """How often a step waits for the GPU, and where."""
    arm = ArmResult("ours, eager", 1.0, "steps")
    group = Group("overhead", f"Synchronisations with the GPU: {title}", [arm])
    if not options.on_gpu:
        arm.unavailable = "needs a CUDA device"
        return group
    steps = 2 * recipe.train.log_every_steps
    run = TrainRun(recipe, steps, lead_steps=2)
    run.block()
    torch.cuda.set_sync_debug_mode("warn")
    try:
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            train(run.experiment.training, run.clock.begin())
    finally:
        torch.cuda.set_sync_debug_mode("default")
        run.close()
    places = Counter(
        f"{Path(warning.filename).name}:{warning.lineno}"
        for warning in caught
        if "synchroniz" in str(warning.message)
    )
    # Log steps read their metrics, and the block's own clock waits twice without being counted.
    arm.facts = {
        "steps": steps + 2,
        "log_steps": (steps + 2) // recipe.train.log_every_steps,
        "synchronisations": sum(places.values()),
        "places": dict(places.most_common()),
    }
    return group


def _recipe(options: Options, runs_dir: Path) -> Recipe:
    images = images_in_memory(8, 1024, options.data_dir)
    text = _RECIPE.format(runs_dir=runs_dir, block=images.block, device=options.device.type)
    return parse_recipe(text, "overhead", (), registry())
