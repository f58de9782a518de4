"""Why a run ends in numbers that are not finite: what was not finite first, said in one line, and a
small file from which the step can be repeated."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from torch import Tensor, nn

from sslkit.api import Batch, Loss
from sslkit.errors import RecipeError, TrainingError
from sslkit.parallel.sharding import local_part
from sslkit.recipe.warnings import batch_norm_layers
from sslkit.runs.endings import FailureRecord, write_failure

from .loss_meter import NotFiniteError, NotFiniteOnAnotherRankError
from .not_finite import Place, Trace, first_odd
from .step import forward_backward, on_device_layout, step_randomness

if TYPE_CHECKING:
    from .training import Training

_LARGE = 1e3
"""Weights beyond this have grown for want of a smaller learning rate, not by training."""


@dataclass(frozen=True)
class Reason:
    """What was not finite first, and what to do about it."""

    first: str
    remedy: str
    moment: int = 0
    """Which of the things looked at in one pass it was: the same number on all ranks."""

    def __str__(self) -> str:
        return f"{self.first}; {self.remedy}" if self.remedy else self.first


def explain_step(t: Training, found: NotFiniteError, batch: Batch | None) -> TrainingError:
    """The error that ends a run whose step was not finite, the same on all ranks, and its record in
    the run folder.

    batch: of that step, where the weights are still those that it began with; None where training
    went on before the device was asked. The step is then only repeated on request."""
    here = not isinstance(found, NotFiniteOnAnotherRankError)
    everywhere = t.compute.world.collect(found if here else None)
    found = next(each for each in everywhere if each is not None)
    reason = _reason(t, batch)
    error = TrainingError(
        f"step {found.step}: {found.symptom} at learning rate {t.optimization.lr:.4g}: {reason}. "
        f"{way_on(t)}"
    )
    keep_record(t, found.step, f"{found.symptom}: {reason.first}", found.loss, found.grad_norm)
    return error


def _reason(t: Training, batch: Batch | None) -> Reason:
    if batch is None:
        return Reason("where that began is found by repeating the step", "")
    with t.compute.eager():
        return find_reason(t, batch)


def refuse_odd_state(t: Training) -> None:
    """Raises TrainingError where weights, buffers or the state of the optimiser are not finite on
    a rank."""
    everywhere = t.compute.world.collect(t.state_check.find())
    ranks = [rank for rank, found in enumerate(everywhere) if found is not None]
    if not ranks:
        return
    found = everywhere[ranks[0]]
    assert found is not None
    kind, name, value = found
    step = t.progress.step
    if step == t.began_at:
        start = _starting_weights(t) if step == 0 else "the checkpoint that this run goes on from"
        raise TrainingError(
            f"before step {step + 1}: the {kind} '{name}' of the method {_holds(kind)} {value}"
            f"{_of_ranks(t, ranks)}; see {start}"
        )
    if kind == "buffer":
        cause = "loss and gradients are finite: see the layer that keeps it, and after_step"
    else:
        cause = (
            f"made so by the optimiser from a finite gradient at learning rate "
            f"{t.optimization.lr:.4g}: lower optimizer.lr, or see the other fields of optimizer"
        )
    first = f"the {kind} '{name}' {_holds(kind)} {value}{_of_ranks(t, ranks)}"
    error = TrainingError(f"after step {step}: {first}, {cause}. {way_on(t)}")
    keep_record(t, step, first, math.nan, math.nan)
    raise error


def refuse_single_image(t: Training, error: ValueError) -> None:
    """Raises RecipeError where the error is torch's refusal of batch statistics of one value, and
    images pass one at a time."""
    division, probe = t.learner.division, t.learner.probe
    if division.at_a_time > 1 or "more than 1 value per channel" not in str(error):
        return
    field, whose, way = "batch_size", "a BatchNorm layer", "choose networks without BatchNorm"
    if division.parts > 1:
        field = "micro_batch_size"
    elif probe is not None and not batch_norm_layers(t.learner.method):
        whose, way = "the BatchNorm layer of the online probe", "train.online_probe=null"
    elif probe is not None:
        way += "; set train.online_probe=null too, which has such a layer"
    raise RecipeError(
        f"train.{field}: 1 image at a time leaves {whose} one value per channel, which "
        f"has no variance; set 2 or more, or {way}"
    ) from error


def find_reason(t: Training, batch: Batch) -> Reason:
    """What is not finite first in the step that follows the present state; all ranks call this
    together, whether they have it or not. Repeats the step without the optimiser, so the gradients
    are gone afterwards and buffers may have moved."""
    batch = on_device_layout(t, batch)
    return (
        _earliest(t, _in_what_is_given(t, batch))
        or _earliest(t, _in_passing(t, batch))
        or Reason("each gradient is finite, and their norm is beyond float32", "")
    )


def _earliest(t: Training, places: Sequence[Reason | None]) -> Reason | None:
    """The first place where a rank has found something: what comes after it, on that rank or on
    another one, follows from it. places: what this rank has found, in order. The ranks are named
    where not all have it."""
    everywhere = t.compute.world.collect(list(places))
    for found in zip(*everywhere, strict=True):
        at = {rank: reason for rank, reason in enumerate(found) if reason is not None}
        if at:
            moment = min(reason.moment for reason in at.values())
            ranks = [rank for rank, reason in at.items() if reason.moment == moment]
            reason: Reason = at[ranks[0]]
            return replace(reason, first=reason.first + _of_ranks(t, ranks))
    return None


def _of_ranks(t: Training, ranks: Sequence[int]) -> str:
    """Which ranks have it, where not all do."""
    if len(ranks) == t.compute.world.size:
        return ""
    return f" on rank {', '.join(map(str, ranks))}"


def _in_what_is_given(t: Training, batch: Batch) -> list[Reason | None]:
    """What the step begins with: its images, targets, weights."""
    view = first_odd((f"view {i}", view) for i, view in enumerate(batch.views))
    target = first_odd((f"'{name}'", value) for name, value in batch.targets.items())
    weights = first_odd(iter(t.method.named_parameters()))
    left = "as the optimiser left it: lower optimizer.lr, or see the other fields of optimizer"
    return [
        view and Reason(f"{view[0]} of the batch holds {view[1]}", "see augmentation and data"),
        target and Reason(f"target {target[0]} of the batch holds {target[1]}", "see augmentation"),
        weights and Reason(f"the weights '{weights[0]}' are {weights[1]} before the step", left),
    ]


def _in_passing(t: Training, batch: Batch) -> list[Reason | None]:
    """What the step makes of it, repeated: forward, loss, backward."""
    before = first_odd(_gradients(t))
    t.optimization.optimizer.zero_grad(set_to_none=True)
    trace = Trace()
    with trace.watching(t.method), step_randomness(t, micro_batch=0):
        embeddings, _, output = forward_backward(t, batch)
    embedding = first_odd((f"'{name}'", value) for name, value in embeddings.items())
    loss, after = first_odd(iter([("", output.loss)])), first_odd(_gradients(t))
    who, finite = type(t.method).__name__, ", though the loss is finite"
    return [
        _at_place(t, trace.forward, ""),
        embedding and Reason(_made(f"{who}.embed", embedding, "outputs of modules"), ""),
        loss and Reason(_made(f"{who}.objective", loss, "embeddings"), _method_numbers(t)),
        _at_place(t, trace.backward, finite),
        after and Reason(f"the gradient of '{after[0]}' is {after[1]}{finite}", ""),
        before
        and Reason(
            f"the gradient of '{before[0]}' was {before[1]}, and is finite where the step is "
            f"repeated up to {who}.after_backward",
            "see there",
        ),
    ]


def _made(who: str, odd: tuple[str, float], source: str) -> str:
    return f"{who} makes {' '.join(map(str, odd)).lstrip()} from finite {source}"


def _at_place(t: Training, place: Place | None, more: str) -> Reason | None:
    return Reason(f"{place}{more}", _remedy(t, place), place.moment) if place else None


def way_on(t: Training) -> str:
    """How to look at the step again, unless that is being done, and where to go on from."""
    paths = t.output.checkpoints.paths()
    way = "There is no checkpoint yet"
    if paths:
        way = f"Last good checkpoint: {paths[-1]} (--fork starts a new run from it)"
    if t.is_replay:
        return way
    return f"{way}; sslkit run --resume {t.output.run.run_dir} --dry-run repeats the step"


def keep_record(t: Training, step: int, what: str, loss: float, grad_norm: float) -> None:
    """Keeps the record of the step that was not finite, on rank 0. step: counted from 1."""
    epoch, position = divmod(max(step - 1, 0), t.progress.steps_per_epoch)
    if not t.compute.world.is_first:
        return
    paths = t.output.checkpoints.paths()
    write_failure(
        t.output.folder,
        FailureRecord(
            step=step,
            first=what,
            loss=loss,
            grad_norm=grad_norm,
            lr=t.optimization.lr,
            seed=t.learner.seed,
            recipe_hash=t.output.run.tags.get("sslkit.recipe_hash"),
            checkpoint=paths[-1].name if paths else None,
            batch_indices=tuple(t.loader.indices(epoch, position).tolist()),
        ),
    )


def _holds(kind: str) -> str:
    return "hold" if kind == "weights" else "holds"


def _gradients(t: Training) -> Iterator[tuple[str, Tensor]]:
    return ((n, p.grad) for n, p in t.method.named_parameters() if p.grad is not None)


def _remedy(t: Training, place: Place) -> str:
    if isinstance(place.module, Loss):
        return _method_numbers(t)
    reach = _reach(place.module)
    if reach > _LARGE:
        return f"its weights reach {reach:.2g}: lower optimizer.lr, or set train.max_grad_norm"
    if t.compute.precision == "fp16":
        return "float16 ends at 65504: set train.precision=bf16 or fp32"
    odd = first_odd(iter(place.module.named_buffers(recurse=False)))
    if odd and not place.module.training:
        return f"its buffer '{odd[0]}' is {odd[1]}"
    return ""


def _reach(module: nn.Module) -> float:
    """The largest magnitude among the module's own weights."""
    here = [local_part(parameter) for parameter in module.parameters()]
    return max((float(part.abs().max()) for part in here if part.numel()), default=0)


def _method_numbers(t: Training) -> str:
    """The fractional numbers of the method's block, one of which may be too small or too large."""
    found = [
        f"{name}={value:g}"
        for name, value in t.output.run.params.items()
        if name.startswith("method.") and isinstance(value, float)
    ]
    return f"see {', '.join(found[:6])}" if found else "see the loss of the method"


def _starting_weights(t: Training) -> str:
    if t.learner.starts_from is None:
        return "how backbone and method are initialised"
    return f"{t.learner.starts_from}, from which the backbone starts"
