"""The fields of a recipe. The docstring of each field is its entry in the recipe reference."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import (
    BaseModel,
    Field,
    NonNegativeFloat,
    PositiveFloat,
    PositiveInt,
    PrivateAttr,
    field_validator,
    model_validator,
)

from sslkit.api import (
    Augmentation,
    Backbone,
    Callback,
    ComponentConfig,
    DataSource,
    Evaluator,
    Method,
    Optimizer,
    RunFacts,
    Schedule,
    ScheduledNumber,
    Slot,
    Tracker,
    expand_paths,
    slot,
)
from sslkit.api.renamed_fields import Renamable
from sslkit.nn.numerics import Precision

from .yaml_positions import SourceMap

Name = Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$", max_length=100)]


class Block(Renamable):
    """A block of fields that is no component."""

    model_config = ComponentConfig.model_config

    @field_validator("*", mode="after")
    @classmethod
    def _expand_paths(cls, value: Any) -> Any:
        return expand_paths(value)


class OnlineProbeConfig(Block):
    """A linear classifier on detached features, trained along with the method."""

    lr: PositiveFloat = 0.1
    """Peak learning rate of the probe; it follows the schedule of the recipe."""
    weight_decay: NonNegativeFloat = 0.0
    """Weight decay of the probe."""


class TrainConfig(Block):
    """How long and how to train."""

    epochs: PositiveInt
    """Passes over the training images."""
    batch_size: PositiveInt
    """Images per optimiser step, over all processes and micro-batches: the batch that the loss
    compares. Several processes share it equally."""
    micro_batch_size: PositiveInt | None = None
    """Images that go through the networks at a time, on all processes together, for batches whose
    activations do not fit into memory; divides `batch_size`. The gradient is that of the whole
    batch, for up to a third more time, in networks without BatchNorm; BatchNorm has the statistics
    of a micro-batch, which makes another gradient. null: the whole batch."""
    max_steps: PositiveInt | None = None
    """Stops after so many optimiser steps; the schedule then ends there too."""
    precision: Precision = "fp32"
    """Number format of the networks' activations; weights and losses stay in float32. `fp16`, for
    GPUs without bf16, scales the loss and leaves out steps whose gradient overflows."""
    channels_last: bool = True
    """Keeps images in memory channel by channel per pixel, which convolutions run faster on."""
    compile: bool | Literal["if_available"] = False
    """Compiles the backbone with torch.compile. `true` fails where no compiler is installed;
    `if_available` goes on without it and records that."""
    compile_augmentation: bool | Literal["if_available"] | None = None
    """Compiles what the augmentation does to whole batches; null: as `compile`. On a CPU it pays
    where compiling the backbone does not."""
    cuda_graphs: bool = False
    """Replays the compiled backbone as CUDA graphs, which saves the time between small kernels;
    needs `compile` and a CUDA device."""
    parallel: Literal["ddp", "fsdp"] = "ddp"
    """What several processes keep of the networks: `ddp` all of them, `fsdp` of each block that
    repeats, such as those of a transformer, a part of its weights, gradients and optimiser state,
    for networks that are too large for one device. The numbers are the same."""
    device: Literal["auto", "cpu", "cuda", "mps"] = "auto"
    """Where to train; `auto` takes the first of cuda, mps and cpu that works and is recorded."""
    deterministic: bool = False
    """Uses only operations that give the same bits every time on a GPU, at a cost in speed."""
    loader_threads: int = Field(default=4, ge=0, le=1024)
    """Threads that decode images; no effect on results. On a CPU, images in memory need none."""
    max_grad_norm: PositiveFloat | None = None
    """Clips the norm of the whole gradient."""
    log_every_steps: PositiveInt | None = None
    """Logs the training metrics every so many steps; null: 50, or a tenth of the run where that is
    less, which the resolved recipe records."""
    checkpoint_every_epochs: PositiveInt = 1
    """Saves a checkpoint after every so many epochs."""
    checkpoint_every_steps: PositiveInt | None = None
    """Also saves a checkpoint every so many steps."""
    checkpoint_in_background: bool = False
    """Writes checkpoints while training goes on, from a copy of all state in the memory of the
    host; evaluations and the end of the run wait for them."""
    keep_checkpoints: PositiveInt = 2
    """How many of the last checkpoints to keep."""
    online_probe: OnlineProbeConfig | None = OnlineProbeConfig()
    """A probe that is trained along, where the data has labels; null switches it off."""

    @model_validator(mode="after")
    def _parts_need_no_scale(self) -> TrainConfig:
        if self.parallel == "fsdp" and self.precision == "fp16":
            raise ValueError(
                "parallel: fsdp does not go with precision fp16, whose gradients are scaled; set "
                "precision: bf16 or fp32, or parallel: ddp"
            )
        return self

    @model_validator(mode="after")
    def _micro_batches_fill_the_batch(self) -> TrainConfig:
        if self.micro_batch_size and self.batch_size % self.micro_batch_size:
            raise ValueError(
                f"micro_batch_size: {self.micro_batch_size} does not divide batch_size "
                f"{self.batch_size}; choose a divisor of it"
            )
        return self


class Expectation(Block):
    """The range that a metric of the finished run must lie in."""

    at_least: float | None = None
    """Lower bound, included."""
    at_most: float | None = None
    """Upper bound, included."""

    @model_validator(mode="after")
    def _bounds_make_sense(self) -> Expectation:
        if self.at_least is None and self.at_most is None:
            raise ValueError("give at_least, at_most or both")
        if self.at_least is not None and self.at_most is not None and self.at_least > self.at_most:
            raise ValueError(f"at_least {self.at_least} is above at_most {self.at_most}")
        return self


class Origin(Block):
    """The distribution that a component came from."""

    distribution: str
    """Name of the installed package."""
    version: str
    """Its version."""


class Recipe(Block):
    """Everything that defines a run."""

    name: Name
    """Name of the experiment: letters, digits and any of . _ -"""
    seed: int = Field(default=0, ge=0, lt=2**63)
    """Seed of everything random."""
    data: Slot[DataSource]
    """The data source."""
    augmentation: Slot[Augmentation]
    """How views are made of images."""
    backbone: Slot[Backbone]
    """The encoder that is trained, evaluated and exported."""
    method: Slot[Method]
    """The self-supervised method, with its heads and its loss."""
    optimizer: Slot[Optimizer]
    """The optimiser and its learning rate."""
    schedule: Slot[Schedule] = slot("cosine")
    """The learning rate over the run."""
    train: TrainConfig
    """How long and how to train."""
    evaluate: tuple[Slot[Evaluator], ...] = ()
    """Evaluators, run after the last epoch and every `every_epochs`."""
    evaluation_precision: Precision = "fp32"
    """Number format of activations in everything that evaluation computes: features of all
    subjects, batch statistics, fine-tuning of copies. `fp32` gives the features that users of the
    encoder get, whatever `train.precision` is; `bf16` is faster where the hardware has it."""
    callbacks: tuple[Slot[Callback], ...] = ()
    """What watches the run; no effect on results."""
    tracking: Slot[Tracker] = slot("mlflow")
    """Where the run folder is mirrored to."""
    expect: dict[str, Expectation] = Field(default_factory=dict)
    """Metric -> range that the result of this recipe should lie in."""
    runs_dir: Path = Path("runs")
    """The folder that run folders are made in."""
    origins: dict[str, Origin] = Field(default_factory=dict)
    """Where each component came from. Written into resolved recipes; a record, not a setting."""

    _marks: SourceMap | None = PrivateAttr(default=None)

    @property
    def marks(self) -> SourceMap | None:
        """Where in the file (or in which override) each value stands; None if not known. Not part
        of the recipe: neither compared nor hashed."""
        return self._marks

    def with_marks(self, marks: SourceMap) -> Recipe:
        """The same recipe that knows where its values stand."""
        copy = self.model_copy()
        copy._marks = marks
        return copy

    def __eq__(self, other: object) -> bool:
        """Whether both run the same thing: all fields but `origins`, which only record."""
        if not isinstance(other, Recipe):
            return NotImplemented
        names = [name for name in type(self).model_fields if name != "origins"]
        return all(getattr(self, name) == getattr(other, name) for name in names)

    def __hash__(self) -> int:
        return hash((self.name, self.seed))


def components(recipe: BaseModel) -> Iterator[tuple[str, Slot[Any]]]:
    """(dotted path, slot) of every component, outer ones first, in the order of the fields."""
    for path, found in _walk(recipe, ()):
        if isinstance(found, Slot):
            yield ".".join(map(str, path)), found


def components_with_facts(
    recipe: BaseModel, facts: RunFacts
) -> Iterator[tuple[str, Slot[Any], RunFacts]]:
    """`components`, and the facts that each works under; see `Component.facts_inside`."""
    around: list[tuple[str, RunFacts]] = []
    for path, found in components(recipe):
        while around and not path.startswith(around[-1][0]):
            around.pop()
        here = facts.evaluated_on.get(path) or (around[-1][1] if around else facts)
        yield path, found, here
        around.append((f"{path}.", found.cls.facts_inside(found.config, here)))


def scheduled_numbers(recipe: Recipe) -> dict[str, ScheduledNumber]:
    """Name -> each number that follows a schedule of its own in training, in the order of the
    recipe; evaluators, which may train by themselves, have theirs for themselves.

    The name is that of the field, `teacher_momentum`; where fields of one name meet, with as much
    of the path before it as tells them apart: `loss_temperature`."""
    found = _scheduled(recipe)
    return {_name(path, list(found)): number for path, number in found.items()}


def scheduled_paths(recipe: Recipe) -> dict[str, ScheduledNumber]:
    """Dotted path -> each of these numbers."""
    return {".".join(path): number for path, number in _scheduled(recipe).items()}


def _scheduled(recipe: Recipe) -> dict[tuple[str, ...], ScheduledNumber]:
    training = recipe.model_copy(update={"evaluate": ()})
    return {
        tuple(map(str, path)): number
        for path, number in _walk(training, ())
        if isinstance(number, ScheduledNumber) and not number.is_constant
    }


def _name(path: tuple[str, ...], paths: list[tuple[str, ...]]) -> str:
    length = 1
    while sum(other[-length:] == path[-length:] for other in paths) > 1:
        length += 1
    return "_".join(path[-length:])


def _walk(
    value: Any, path: tuple[str | int, ...]
) -> Iterator[tuple[tuple[str | int, ...], Slot[Any] | ScheduledNumber]]:
    """(path, what stands there) of every component and scheduled number, outer ones first."""
    if isinstance(value, ScheduledNumber):
        yield path, value
        value = value.schedule
    if isinstance(value, Slot):
        yield path, value
        value = value.config
    if isinstance(value, BaseModel):
        for name in type(value).model_fields:
            yield from _walk(getattr(value, name), (*path, name))
    elif isinstance(value, Mapping):
        for key, item in value.items():
            yield from _walk(item, (*path, key))
    elif isinstance(value, (list, tuple)):
        for index, item in enumerate(value):
            yield from _walk(item, (*path, index))
