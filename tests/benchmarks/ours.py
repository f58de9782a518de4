"""Our arms: experiments built from recipes, trained by `engine.loop.train` itself; and the ceiling,
the same networks, loss and optimiser on input that lies ready on the device."""

from __future__ import annotations

import shutil
import tempfile
import time
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import torch

from sslkit.api import Batch
from sslkit.engine.display import Display, Silent
from sslkit.engine.loop import train
from sslkit.engine.signals import StopSignals
from sslkit.engine.training import Training
from sslkit.experiment.build import Experiment, build
from sslkit.experiment.check import check
from sslkit.parallel.world import OneProcess
from sslkit.randomness import SampleRandom
from sslkit.recipe import Recipe
from sslkit.runs.folder import RunFolder

from .arms import Calls, Run, synchronize


def scratch() -> Path:
    """A new temporary folder for runs; whoever uses it removes it."""
    return Path(tempfile.mkdtemp(prefix="sslkit-benchmarks-"))


def build_experiment(recipe: Recipe) -> Experiment:
    """What `sslkit run` builds, in a run folder below `recipe.runs_dir`."""
    facts = check(recipe)
    folder = RunFolder.create(recipe.runs_dir, recipe.name)
    return build(recipe, facts, folder, Silent(), OneProcess())


class Clock(Display):
    """The display of a run that only takes the time of a block, and asks `train` to return.

    A display hears of every step when it is done, so nothing in the loop is changed for timing. On
    a GPU it waits for the device where the clock starts and stops, and nowhere else."""

    def __init__(
        self,
        training: Training,
        steps: int,
        lead_steps: int,
        now: Callable[[], float] = time.perf_counter,
    ) -> None:
        super().__init__()
        self.training = training
        self.now = now
        self.steps = steps
        self.lead_steps = lead_steps
        self.stop = StopSignals()
        self.seconds = 0.0
        self._done = 0
        self._start = 0.0

    def begin(self) -> StopSignals:
        """A new block."""
        self._done, self.stop = 0, StopSignals()
        return self.stop

    def advance(self, step: int) -> None:
        self._done += 1
        if self._done == self.lead_steps:
            synchronize(self.training.compute.device)
            self._start = self.now()
        elif self._done == self.lead_steps + self.steps:
            synchronize(self.training.compute.device)
            self.seconds = self.now() - self._start
            self.training.saved_step = step  # after the clock: no checkpoint at every block's end
            self.stop.requested = "the end of the block"

    def metrics(self, metrics: Any, step: int) -> None:
        """Shows nothing."""

    def message(self, text: str) -> None:
        """Shows nothing."""


class TrainRun:
    """Blocks of consecutive steps of one run: `train` as `sslkit run` calls it, with its loader,
    meter, checks, log and metrics. Each block lies in the middle of an epoch. now: gives seconds,
    of the wall or of this process on a CPU."""

    def __init__(
        self,
        recipe: Recipe,
        steps: int,
        lead_steps: int,
        now: Callable[[], float] = time.perf_counter,
    ) -> None:
        self.experiment = build_experiment(recipe)
        training = self.experiment.training
        if training.compute.compiles:  # then the first step of a block ends with a wait
            lead_steps = max(2, lead_steps)
        self.clock = Clock(training, steps, lead_steps, now)
        training.output.display = self.clock
        self._open = ExitStack()
        self._open.callback(shutil.rmtree, self.experiment.folder.path, ignore_errors=True)
        self._open.enter_context(self.experiment.folder)
        self._open.enter_context(self.experiment.open_log())

    def block(self) -> float:
        train(self.experiment.training, self.clock.begin())
        return self.clock.seconds

    def close(self) -> None:
        self._open.close()


class CeilingRun(Calls):
    """The step without data, augmentation and loop: nothing with this encoder can be faster."""

    def __init__(self, recipe: Recipe, steps: int) -> None:
        experiment = build_experiment(recipe)
        device = experiment.compute.device
        super().__init__(bare_step(experiment), steps, device)
        experiment.folder.close()
        shutil.rmtree(experiment.folder.path, ignore_errors=True)

    def block(self) -> float:
        assert self.function is not None
        self.function()  # a lead step, as the other arms have
        return super().block()


def bare_step(experiment: Experiment) -> Callable[[], None]:
    """Forward, loss, backward and optimiser of an experiment on one fixed synthetic batch."""
    training, compute = experiment.training, experiment.compute
    method, optimization = training.method, training.optimization
    batch = synthetic_batch(experiment)
    method.train()
    optimization.set_rules(training.progress)

    def step() -> None:
        compute.begin_step()
        with compute.autocast():
            embeddings = method.embed(batch)
        output = method.objective(
            {k: v.float() for k, v in embeddings.items()}, batch, training.progress
        )
        optimization.backward(output.loss)
        optimization.step()

    return step


def synthetic_batch(experiment: Experiment) -> Batch:
    """Uniform noise in the shape, memory layout and place of the views that training sees."""
    facts, compute = experiment.facts, experiment.compute
    generator = torch.Generator().manual_seed(0)
    views = tuple(
        compute.layout(
            torch.rand(
                facts.batch_size, facts.channels, view.size, view.size, generator=generator
            ).to(compute.device)
        )
        for view in facts.views
    )
    indices = torch.arange(facts.batch_size, device=compute.device)
    labels = None if facts.num_classes is None else indices % facts.num_classes
    return Batch(views, indices, SampleRandom(0, "method", 0, indices), labels)


def training_arm(make: Callable[[], Recipe], steps: int, lead_steps: int) -> Callable[[], Run]:
    """The setup of an arm that trains the recipe that `make` gives."""
    return lambda: TrainRun(make(), steps, lead_steps)


def ceiling_arm(make: Callable[[], Recipe], steps: int) -> Callable[[], Run]:
    """The setup of the ceiling of a recipe."""
    return lambda: CeilingRun(make(), steps)
