"""Short trainings with the engine itself, on which methods and what serves them are tried."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from sslkit.api import Batch, RunFacts, Slot
from sslkit.engine.display import Silent
from sslkit.engine.step import train_step
from sslkit.engine.training import Training
from sslkit.errors import RecipeError
from sslkit.experiment.build import Experiment, build
from sslkit.experiment.check import check
from sslkit.experiment.resolve import resolve
from sslkit.experiment.stores import Stores
from sslkit.parallel.world import OneProcess, World
from sslkit.recipe import Recipe, TrainConfig
from sslkit.runs.folder import RunFolder

from .subject import Subject

STEPS = 4
ROUNDING = 1e-9
"""The largest difference in float64 that rounding makes, in parts of the largest value."""
_BATCH = 16
_LARGEST = 64
_RANKS = 4

Tensors = dict[str, Tensor]


@dataclass
class Taken:
    """What some steps came to."""

    losses: list[float]
    metrics: list[dict[str, float]]
    """What each step logs."""
    state: Tensors
    """After the last step."""


class SmallRuns:
    """Builds short runs of a subject."""

    def __init__(self, subject: Subject) -> None:
        self.subject = subject
        self.recipe = small(subject)
        self._facts: dict[str, RunFacts] = {}
        self._stores: dict[int, Stores] = {}

    def of_another_seed(self) -> SmallRuns:
        """The same runs from other random weights."""
        others = copy.copy(self)
        others.recipe = self.recipe.model_copy(update={"seed": self.recipe.seed + 1})
        return others

    def _facts_of(self, recipe: Recipe) -> RunFacts:
        """What `check` finds, once for each block `train`."""
        key = recipe.train.model_dump_json()
        if key not in self._facts:
            self._facts[key] = check(recipe)
        return self._facts[key]

    def build(self, world: World | None = None, **train: Any) -> Experiment:
        """A run that is ready for its first step; all that are built begin alike. train: fields of
        that block."""
        recipe = self.recipe
        if train:
            recipe = recipe.model_copy(update={"train": changed(recipe.train, **train)})
        alone = world is None
        world = world or OneProcess()
        folder = RunFolder.create(self.subject.folder / f"rank{world.rank}", "check")
        # Images are opened once, but by ranks, which open them together, and where they are tried.
        opened = self._stores.get(recipe.seed) if alone else None
        experiment = build(recipe, self._facts_of(recipe), folder, Silent(), world, opened)
        if alone and self.subject.kind not in ("dataset", "augmentation"):
            self._stores[recipe.seed] = experiment.stores
        experiment.training.method.train()
        return experiment

    def training(
        self, dtype: torch.dtype = torch.float32, world: World | None = None, **train: Any
    ) -> Training:
        """The training of such a run, computing in numbers of this type."""
        t = self.build(world, **train).training
        t.method.to(dtype)
        for state in t.optimization.optimizer.state.values():  # what an optimiser makes in advance
            for name, value in state.items():
                if isinstance(value, Tensor) and value.is_floating_point() and value.ndim:
                    state[name] = value.to(dtype)
        return t


def small(subject: Subject) -> Recipe:
    """The recipe of the subject as a short training on the CPU, in full precision."""
    recipe = subject.recipe
    block = _block(subject)
    train = recipe.train
    size = train.batch_size if train.batch_size <= _LARGEST else _BATCH
    if size % _RANKS:
        raise RecipeError(
            f"train.batch_size: {size} cannot be shared by {_RANKS} processes; for the kit, set a "
            f"multiple of {_RANKS}"
        )
    settings = changed(
        train, epochs=max(train.epochs, 4), batch_size=size, micro_batch_size=None, max_steps=None,
        precision="fp32", compile=False, compile_augmentation=False, cuda_graphs=False,
        parallel="ddp", device="cpu", deterministic=False, loader_threads=0, log_every_steps=1,
        checkpoint_every_steps=None, checkpoint_in_background=False,
    )  # fmt: skip
    quiet = {"evaluate": (), "callbacks": (), "expect": {}, "origins": {}, "train": settings}
    return resolve(recipe.model_copy(update={**quiet, **block}))


def _block(subject: Subject) -> Mapping[str, Slot[Any]]:
    """Where in its recipe the subject stands, with its own fields."""
    names = {"dataset": "data", "tracker": "tracking"}
    field = names.get(subject.kind, subject.kind)
    if field not in Recipe.model_fields:
        return {}
    there: Slot[Any] = getattr(subject.recipe, field)
    # Parts of other components, such as the schedule of a temperature, stand where they stand.
    belongs = subject.kind == "method" or not subject.has_recipe
    return {field: subject.slot} if belongs or there.cls is subject.slot.cls else {}


def changed(train: TrainConfig, **fields: Any) -> TrainConfig:
    """The block with other values, which are checked like those of a recipe."""
    return TrainConfig.model_validate({**train.model_dump(), **fields})


# --- Steps ----------------------------------------------------------------------------------------


def batches(t: Training, count: int = STEPS) -> Iterator[Batch]:
    """The next batches of a training, in the type of its weights."""
    dtype = next((p.dtype for p in t.method.parameters()), torch.float32)
    step = t.progress.step
    while count > 0:
        epoch, start = divmod(step, t.progress.steps_per_epoch)
        for batch in t.loader.epoch(epoch, start):
            yield cast(batch, dtype)
            step, count = step + 1, count - 1
            if count == 0:
                return


def cast(batch: Batch, dtype: torch.dtype) -> Batch:
    """The batch with floating-point views of this type."""
    return replace(
        batch, views=tuple(v.to(dtype) if v.is_floating_point() else v for v in batch.views)
    )


def take_steps(
    t: Training,
    count: int = STEPS,
    *,
    log: bool = True,
    each: Callable[[Training], object] = lambda t: None,
) -> Taken:
    """Steps as the loop takes them. log: whether metrics are read. each: called after each step."""
    losses, metrics = [], []
    for batch in batches(t, count):
        t.optimization.set_rules(t.progress)
        output, _ = train_step(t, batch, log=log)
        t.progress = t.progress.next()
        losses.append(float(output.loss.detach()))
        metrics.append({name: float(value) for name, value in output.metrics.items()})
        each(t)
    return Taken(losses, metrics, copied(t.method.state_dict()))


def watch_gradients(t: Training, see: Callable[[], object]) -> None:
    """Has `see` called in each step when gradients are those that the optimiser gets."""
    step = t.optimization.step

    def seen_step() -> None:
        see()
        step()

    t.optimization.step = seen_step  # type: ignore[method-assign]


def copied(tensors: Mapping[str, Tensor]) -> Tensors:
    """The tensors as they are now."""
    return {name: value.detach().clone() for name, value in tensors.items()}


def still(method: nn.Module) -> None:
    """Lets every layer compute as in evaluation, sample by sample and without random numbers, while
    the method itself goes on in training mode."""
    for module in method.modules():
        if module is not method:
            module.training = False


def without_dropout(method: nn.Module) -> None:
    """Switches off layers that draw random numbers of their own, which differ between ranks."""
    for module in method.modules():
        if (
            isinstance(module, nn.modules.dropout._DropoutNd)
            or "drop" in type(module).__name__.lower()
        ):
            module.training = False
            with suppress(AttributeError):
                module.drop_prob = 0.0  # type: ignore[assignment]


# --- Comparing ------------------------------------------------------------------------------------


def other_bits(one: Mapping[str, Tensor], other: Mapping[str, Tensor]) -> list[str]:
    """Names under which two states differ in any bit."""
    names = [*one, *(name for name in other if name not in one)]
    return [n for n in names if n not in one or n not in other or not same(one[n], other[n])]


def same(one: Tensor, other: Tensor) -> bool:
    """Whether two tensors hold the same values, NaN equal to NaN."""
    if one.shape != other.shape or one.dtype != other.dtype:
        return False
    equal = (one == other) | ((one != one) & (other != other))
    return bool(equal.all())


def distance(one: Tensor, other: Tensor) -> float:
    """The largest difference, in parts of the largest value (or of 1e-6, where all are smaller)."""
    if one.shape != other.shape:
        return math.inf
    if one.numel() == 0:
        return 0.0
    difference = (one.double() - other.double()).abs().max()
    return float(difference / max(float(other.double().abs().max()), 1e-6))


def farthest(one: Mapping[str, Tensor], other: Mapping[str, Tensor]) -> tuple[str, float]:
    """The name under which two states differ most, and by how much."""
    names = one.keys() | other.keys()
    found = {n: distance(one[n], other[n]) if n in one and n in other else math.inf for n in names}
    name = max(found, key=lambda n: found[n], default="")
    return name, found.get(name, 0.0)


def listed(names: Sequence[str], most: int = 3) -> str:
    """The first names, and how many others there are."""
    shown = ", ".join(names[:most])
    return shown + (f" and {len(names) - most} more" if len(names) > most else "")
