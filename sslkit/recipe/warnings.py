"""What a recipe will do that is rarely meant, and what is worth knowing of it before it runs.

Components speak for themselves (`Component.warnings`, `Component.plan_facts`); here stands only
what follows from the fields of the recipe itself.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass

from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

from sslkit.api import Evaluator, Method, Progress, RunFacts
from sslkit.errors import PluginError
from sslkit.host.plugin_errors import describe_failure

from .model import Recipe, components_with_facts, scheduled_paths
from .precision_cost import cost_on_cpu

_LARGE_REST = 0.1
"""Part of the images that may be left out of each epoch without a warning."""
_SLOW = 1.8
"""Times as long as float32, from which on a precision is warned of: well above what other work on
the machine does to a measurement, and well below the three times and more of computing in software.
"""
_FEW_FOR_STATISTICS = 8
"""Images below which batch statistics are noise: a variance of n values errs by sqrt(2 / (n - 1)),
half its size at 8."""


@dataclass(frozen=True)
class Advice:
    """A warning: it runs, and is rarely meant."""

    path: str
    """The dotted path of the field."""
    message: str
    """What it is and what to do."""

    def __str__(self) -> str:
        return " ".join(f"{self.path}: {self.message}".split())


def find_warnings(recipe: Recipe, facts: RunFacts) -> list[Advice]:
    """The warnings of every component and of the recipe's own fields, in the order of the recipe.

    Call it for a recipe that `check_recipe` has passed."""
    found = [Advice("data", note) for note in facts.data_notes]
    for path, elsewhere in facts.evaluated_on.items():
        found += [Advice(f"{path}.data", note) for note in elsewhere.data_notes]
    for path, slot, known in components_with_facts(recipe, facts):
        try:
            said = [(inside, message) for inside, message in slot.cls.warnings(slot.config, known)]
        except Exception as error:  # a plugin's: no reason to stop a run
            reason = describe_failure(error, slot.cls.__module__)
            said = [("", f"the warnings of {slot.cls.kind} '{slot.name}' failed: {reason}")]
        if issubclass(slot.cls, Evaluator) and (why := _unmeasurable(slot.cls, known)):
            said.append(("", f"{slot.name} will be skipped: {why}"))
        found += [Advice(f"{path}.{inside}" if inside else path, text) for inside, text in said]
    return found + list(_training_warnings(recipe, facts))


def _unmeasurable(cls: type[Evaluator], facts: RunFacts) -> str | None:
    """Why an evaluator will find nothing to measure; None where it will."""
    if not cls.requires_labels:
        return None
    if not facts.num_classes:
        return "it needs labels, the data has none"
    if len(facts.class_sizes) == 1:
        return (
            f"all labelled training {facts.sample.noun}s are of one class, so that every answer is "
            "right"
        )
    if facts.num_test_images == 0:
        return "there is no test split; name one, or set data.test_fraction=0.2"
    return None if facts.test_has_labels else "it needs labels, the test split has none"


def _training_warnings(recipe: Recipe, facts: RunFacts) -> Iterator[Advice]:
    if recipe.train.device == "cpu":
        yield from _slow_precisions(recipe)
    beginning = Progress(0, facts.total_steps, facts.steps_per_epoch)
    for path, number in scheduled_paths(recipe).items():
        try:
            first = number.at(beginning)
        except PluginError:  # refused with its path before the first step
            continue
        if not math.isclose(first, number.start, rel_tol=1e-9, abs_tol=1e-12):
            yield Advice(
                path,
                f"begins at {first:g} and not at its start, {number.start:g}, where the factor of "
                "its schedule is 1: a warm-up leads from the end to the start. Leave the warm-up "
                "out, or exchange the two, where that is not meant",
            )
    rest = 0 if facts.streamed else facts.num_images % facts.batch_size
    if rest > _LARGE_REST * facts.num_images:
        yield Advice(
            "train.batch_size",
            f"{rest:,} of {facts.num_images:,} {facts.sample.noun}s "
            f"({rest / facts.num_images:.0%}) do not fill "
            f"a batch of {facts.batch_size:,} and are left out of each epoch (others each time); "
            f"take {facts.num_images // (facts.num_images // facts.batch_size + 1):,} or fewer",
        )


def _slow_precisions(recipe: Recipe) -> Iterator[Advice]:
    chosen = {
        "train.precision": recipe.train.precision,
        "evaluation_precision": recipe.evaluation_precision,
    }
    for path, precision in chosen.items():
        if (cost := cost_on_cpu(precision)) > _SLOW:
            yield Advice(
                path,
                f"{precision} takes {cost:.0f} times as long as fp32 on this CPU (a convolution, "
                f"just timed); set {path}=fp32",
            )


def network_warnings(recipe: Recipe, method: nn.Module, noun: str = "image") -> list[Advice]:
    """Warnings that only the built networks allow. noun: of the samples, see `SampleSpec.noun`."""
    return [
        *_class_token_warnings(recipe, method),
        *_statistics_warnings(recipe, batch_norm_layers(method), noun),
    ]


def _class_token_warnings(recipe: Recipe, method: nn.Module) -> Iterator[Advice]:
    if not isinstance(method, Method) or method.trains_class_token:
        return
    layout = method.encoder.token_layout
    if layout is not None and layout.pools_class_token:
        yield Advice(
            "backbone",
            "the features are the class token of the last block, which no loss of "
            f"{recipe.method.name} reaches, and would be measured as if it were trained; take the "
            "mean of patches (timm: pool: avg)",
        )


def _statistics_warnings(recipe: Recipe, layers: int, noun: str) -> Iterator[Advice]:
    size = recipe.train.micro_batch_size
    if layers == 0:
        return
    if size is None or size >= recipe.train.batch_size:
        yield from _few_for_statistics(recipe.train.batch_size, layers, noun)
    else:
        yield Advice(
            "train.micro_batch_size",
            f"the {layers} BatchNorm layers see {size:,} {noun}{_s(size)} at a time, not "
            f"{recipe.train.batch_size:,}, which makes another gradient (its cosine with the true "
            "one, as a ResNet-18 starts, is 0.5 to 0.96 at half a batch of 256 and falls with the "
            "size); backbone.recompute=true (timm) and networks without BatchNorm are exact",
        )


def _few_for_statistics(images: int, layers: int, noun: str) -> Iterator[Advice]:
    if images < _FEW_FOR_STATISTICS:
        yield Advice(
            "train.batch_size",
            f"{layers} BatchNorm layers have statistics of {images} {noun}{_s(images)}, which "
            f"are little but noise; raise it to {_FEW_FOR_STATISTICS} or more",
        )


def _s(count: int) -> str:
    return "" if count == 1 else "s"


def batch_norm_layers(method: nn.Module) -> int:
    """How many layers normalise by the batch."""
    return sum(isinstance(module, _BatchNorm) for module in method.modules())


def plan_facts(recipe: Recipe, facts: RunFacts) -> dict[str, str | int | float]:
    """What components say of themselves; the outermost is believed where names repeat."""
    known: dict[str, str | int | float] = {}
    for path, slot, here in components_with_facts(recipe, facts):
        try:
            said = dict(slot.cls.plan_facts(slot.config, here))
        except Exception as error:  # a plugin's: no reason to give no plan
            said = {path: f"failed: {describe_failure(error, slot.cls.__module__)}"}
        known = {**said, **known}
    return known


def statements(recipe: Recipe, method: nn.Module, noun: str = "image") -> list[str]:
    """What the run's randomness and batch statistics depend on (see the guarantees)."""
    train, layers = recipe.train, batch_norm_layers(method)
    lines = [
        f"order, augmentation and masks depend on seed, epoch and {noun} alone: the same on any "
        "device and for any number of threads and ranks",
        "initialisation, dropout and drop path come from generators seeded for each step: exact "
        "on resume, not the same for another number of ranks",
    ]
    if train.device != "cpu" and not train.deterministic:
        lines.append(
            f"on {train.device} a repetition is not the same to the bit; "
            "train.deterministic: true makes it so, at a cost in speed"
        )
    images = train.micro_batch_size or train.batch_size
    what = "micro-batch" if images < train.batch_size else "batch"
    lines.append(
        f"batch statistics: {layers} BatchNorm layers, over each {what} of {images:,} {noun}s, its "
        "views together or apart as the method sends them through"
        if layers
        else "batch statistics: none; micro-batches change nothing but rounding"
    )
    return lines
