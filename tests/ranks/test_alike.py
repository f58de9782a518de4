"""Ranks that train apart are found, after two steps and at each checkpoint, and named."""

from __future__ import annotations

import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from sslkit.api import Slot, StepOutput
from sslkit.builtin.simclr import SimCLR
from sslkit.engine import alike
from sslkit.engine.alike import digest, distance, kept, refuse_unlike_ranks
from sslkit.engine.display import Silent
from sslkit.engine.loop import save
from sslkit.engine.training import Training
from sslkit.errors import TrainingError
from sslkit.experiment.resolve import resolve
from sslkit.parallel.world import World
from sslkit.recipe import Recipe
from sslkit.runs.folder import held_by_first
from sslkit.workflows.train import start
from tests.ranks.curves import begin, cases, curve, make
from tests.ranks.forked import on_ranks

# --- A digest -------------------------------------------------------------------------------------


@pytest.mark.parametrize("shape", [(), (3,), (7, 5), (1024,), (40, 128), (3, 1000)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16, torch.uint8])
def test_a_digest_sees_every_bit_and_place(shape: tuple[int, ...], dtype: torch.dtype) -> None:
    value = (torch.rand(shape) * 200).to(dtype)
    seen = {int(digest(value))}
    assert int(digest(value.clone())) in seen
    data = value.clone().reshape(-1)
    for place in {0, len(data) // 2, len(data) - 1}:
        for bit in (0, 8 * value.element_size() - 1):
            other = data.clone()
            words = other.view(torch.uint8).view(len(data), -1)
            words[place, bit // 8] ^= 1 << bit % 8
            seen.add(int(digest(other.view(shape))))
    places = len({0, len(data) // 2, len(data) - 1})
    assert len(seen) == 1 + 2 * places
    if len(data) > 2:
        assert int(digest(data.flip(0).view(shape))) not in seen


def test_a_digest_of_rows_in_another_order_is_another() -> None:
    queue = torch.randn(4096, 128)
    assert int(digest(queue)) != int(digest(queue.roll(1, 0)))
    assert int(digest(queue)) != int(digest(queue.roll(1, 1)))


def test_a_digest_does_not_depend_on_the_layout() -> None:
    value = torch.randn(8, 3, 5, 5)
    assert digest(value) == digest(value.to(memory_format=torch.channels_last))
    assert digest(torch.randn(9)[1:].contiguous()).dtype == torch.int64
    flat = torch.arange(2001.0)
    assert digest(flat[1:]) == digest(flat[1:].clone())
    assert digest(torch.empty(0)).shape == ()


# --- Faults ---------------------------------------------------------------------------------------


class Unseeded(SimCLR):
    """A teacher of its own, whose momentum it draws from Python's generator."""

    def __init__(self, *given: Any) -> None:
        super().__init__(*given)
        self.teacher = nn.Linear(4, 4).requires_grad_(requires_grad=False)

    def before_step(self, progress: Any) -> None:
        with torch.no_grad():
            self.teacher.weight.mul_(random.SystemRandom().uniform(0.9, 1.0))


class CountsOwnImages(SimCLR):
    """Keeps a mean of what it embeds, in `embed`: that of its own images."""

    mean: torch.Tensor

    def __init__(self, *given: Any) -> None:
        super().__init__(*given)
        self.register_buffer("mean", torch.zeros(3))

    def embed(self, batch: Any) -> Any:
        self.mean.lerp_(batch.views[0].mean((0, 2, 3)), 0.1)
        return super().embed(batch)


class UnseededLoss(SimCLR):
    """A loss that is weighted by chance."""

    def objective(self, *given: Any) -> StepOutput:
        output = super().objective(*given)
        return StepOutput(output.loss * random.SystemRandom().uniform(0.9, 1.1))


FAULTS = {
    Unseeded: "the weights 'teacher.weight'",
    CountsOwnImages: "the buffer 'mean'",
    UnseededLoss: "the loss",
}


@pytest.mark.slow  # 7 seconds
@pytest.mark.parametrize("method", FAULTS)
def test_a_method_that_trains_apart_ends_after_two_steps(
    tiny: Path, monkeypatch: pytest.MonkeyPatch, method: type[SimCLR]
) -> None:
    faulty(monkeypatch, method)
    first, second = on_ranks(lambda world: run(tiny, world))
    assert isinstance(first, TrainingError)
    assert str(first).startswith(
        f"after step 2: not the same on rank 0 and 1: {FAULTS[method]}; the processes train apart."
    )
    assert "draws random numbers that are not seeded" in str(first)
    assert "\n" not in str(first)
    assert str(second) == str(first)
    assert second.said


def test_the_same_methods_train_on_one_process(tiny: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """There is nothing for them to differ from."""
    faulty(monkeypatch, CountsOwnImages)
    assert on_ranks(lambda world: run(tiny, world), 1) == ["finished"]


def faulty(monkeypatch: pytest.MonkeyPatch, method: type[SimCLR]) -> None:
    """Trains this method where a recipe says simclr."""

    def resolved(recipe: Recipe) -> Recipe:
        recipe = resolve(recipe)
        slot = recipe.method
        other = Slot(method, slot.name, slot.config, slot.distribution, slot.version)
        return recipe.model_copy(update={"method": other})

    monkeypatch.setattr("sslkit.workflows.train.resolve", resolved)


def run(recipe: Path, world: World) -> str:
    overrides = ["train.max_steps=3", "evaluate=[]", "train.loader_threads=0"]
    return start(recipe, overrides, display=Silent(), world=world).status


# --- Rounding -------------------------------------------------------------------------------------


def noisy(
    folder: Path, change: Callable[[Training, World], None], monkeypatch: pytest.MonkeyPatch
) -> tuple[list[Any], list[str]]:
    """Each rank's prototypes after two steps, a change and a checkpoint, where the ranks do not
    promise the same bits; what was said."""
    monkeypatch.setattr(alike, "computes_same_bits", lambda t: False)
    overrides = next(given for name, _, given in cases() if name == "prototypes-layer-whole")
    said = folder / "said"
    said.touch()

    def work(world: World) -> Any:
        with held_by_first(world, lambda: begin(folder)) as held:
            t = make(held, "prototypes", overrides, world)
            curve(t, 2)
            change(t, world)
            if world.is_first:
                t.output.display.message = said.write_text  # type: ignore[method-assign, assignment]
            save(t)
            return {name: value.clone() for name, value in kept(t)}

    return on_ranks(work), said.read_text().splitlines()


@pytest.mark.slow  # 2 seconds
def test_rounding_between_ranks_is_taken_from_rank_0(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def change(t: Training, world: World) -> None:
        with torch.no_grad():
            t.method.prototypes.mul_(1 + 1e-7 * world.rank)  # type: ignore[operator, union-attr]

    (first, second), said = noisy(tmp_path, change, monkeypatch)
    assert first.keys() == second.keys()
    assert all(torch.equal(first[name], second[name]) for name in first)
    assert said == [
        "step 2: 1 tensors, the weights 'prototypes' first, differed by rounding between the "
        "processes (by 1e-07 of their largest value); all go on with what rank 0 has"
    ]


@pytest.mark.slow  # 2 seconds
def test_more_than_rounding_is_refused_there_too(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def change(t: Training, world: World) -> None:
        with torch.no_grad():
            t.method.queue.mul_(1 + 1e-3 * world.rank)  # type: ignore[operator, union-attr]

    (first, second), said = noisy(tmp_path, change, monkeypatch)
    assert str(first).startswith("after step 2: not the same on rank 0 and 1: the buffer 'queue';")
    assert str(second) == str(first)
    assert said == []


def test_what_may_differ_by_rounding() -> None:
    one = torch.tensor([1.0, -4.0])
    assert distance(one, one * (1 + 2**-20)) == pytest.approx(2**-20, rel=1e-3)
    assert distance(one, torch.tensor([1.0, float("nan")])) == float("inf")
    assert distance(one, torch.tensor([1.0])) == float("inf")
    assert distance(one, None) == float("inf")
    pointer = torch.tensor(16)
    assert distance(pointer, torch.tensor(32)) == float("inf")


@pytest.mark.slow  # 2 seconds
def test_gradients_of_the_objective_are_those_of_all_where_bits_do_not_repeat(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The prototypes of two ranks whose kernels round differently stay the same bits."""
    monkeypatch.setattr("sslkit.engine.embedder.repeats_bits", lambda device: False)
    overrides = next(given for name, _, given in cases() if name == "prototypes-layer-whole")
    grad = torch.autograd.grad

    def work(world: World) -> Any:
        def rounded(*given: Any, **named: Any) -> Any:
            found = grad(*given, **named)
            return [None if g is None else g * (1 + 1e-12 * world.rank) for g in found]

        monkeypatch.setattr(torch.autograd, "grad", rounded)
        with held_by_first(world, lambda: begin(tmp_path)) as held:
            t = make(held, "prototypes", overrides, world)
            curve(t, 3)
            refuse_unlike_ranks(t)
            return t.method.prototypes.detach().clone()  # type: ignore[operator, union-attr]

    first, second = on_ranks(work)
    assert torch.equal(first, second)
