"""Half precision and compiled networks on two ranks."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.amp.grad_scaler import GradScaler

from sslkit.api import Batch, Progress, StepOutput
from sslkit.engine.step import train_step
from sslkit.engine.training import Training
from sslkit.experiment.resolve import _missing_compiler
from sslkit.nn.compute import Compute
from sslkit.parallel.world import World
from sslkit.runs.folder import held_by_first
from tests.ranks.curves import BN_HEAD, LAYER_NORM, METHODS, begin, cases, curve, make, state
from tests.ranks.differences import of_gradients, of_losses, of_tensors
from tests.ranks.forked import on_ranks
from tests.ranks.sketches import SKETCHES, Prototypes

SINGLE = torch.float32
PARTS = "train.micro_batch_size=8"


def on(size: int, method: str, overrides: list[str], work: Any, limit_s: float = 110) -> list[Any]:
    """What `work` made on each rank of a training in single precision."""

    def rank(world: World) -> Any:
        with held_by_first(world, lambda: begin(Path(folder))) as run:
            return work(make(run, method, overrides, world, SINGLE))

    with TemporaryDirectory() as folder:
        ends = on_ranks(rank, size, limit_s=limit_s)
    for end in ends:
        if isinstance(end, BaseException):
            raise end
    return ends


# --- float16 --------------------------------------------------------------------------------------


class Overflowing(Prototypes):
    """One image of a step weighs so much that its gradient is more than float16 holds: where it
    comes through the networks of one rank, and nowhere else."""

    heavy = -1
    """Index of the image."""
    local: list[bool]
    """For each pass backward, whether the gradient was finite here, before ranks added it up."""

    def embed(self, batch: Batch) -> dict[str, Tensor]:
        found = super().embed(batch)
        if found["z"].requires_grad:
            found["z"].register_hook(  # type: ignore[no-untyped-call]
                lambda gradient: self.local.append(bool(gradient.isfinite().all()))
            )
        return found

    def objective(
        self, embeddings: Mapping[str, Tensor], batch: Batch, progress: Progress
    ) -> StepOutput:
        output = super().objective(embeddings, batch, progress)
        weight = torch.where(batch.indices == self.heavy, 1e6, 0.0)
        extra = (embeddings["z"].square().mean((1, 2)) * weight).sum()
        return StepOutput(output.loss + extra, carry=output.carry)


def overflowing(t: Training) -> dict[str, Any]:
    """Four steps, with the image on the last rank in the third."""
    method: Any = t.method
    method.heavy = int(t.loader.indices(0, 2)[-1])
    states, scales, finite = [state(t.method.state_dict())], [], []
    for _, batch in zip(range(4), t.loader.epoch(0), strict=False):
        method.local = []
        t.optimization.set_rules(t.progress)
        train_step(t, batch)
        t.progress = t.progress.next()
        states.append(state(t.method.state_dict()))
        scales.append(t.optimization.metrics()["loss_scale"])
        finite.append(all(method.local))
    return {"states": states, "scales": scales, "finite": finite}


@pytest.mark.slow  # 3 seconds
@pytest.mark.parametrize("parts", [[], [PARTS]])
def test_an_overflow_on_one_rank_leaves_out_the_step_on_all(
    monkeypatch: pytest.MonkeyPatch, parts: list[str]
) -> None:
    monkeypatch.setitem(SKETCHES, "overflowing", Overflowing)
    monkeypatch.setattr(Compute, "make_scaler", lambda _: GradScaler("cpu", init_scale=256.0))
    given = "overflowing", ["train.precision=fp16", "schedule.warmup_epochs=0", *parts], overflowing
    (alone,) = on(1, *given)
    first, second = on(2, *given)
    assert first["finite"] == [True] * 4  # what rank 0 computed was fine
    assert second["finite"] == alone["finite"] == [True, True, False, True]
    assert first["scales"] == second["scales"] == alone["scales"]
    assert first["scales"][2] == first["scales"][1] / 2
    trained = [name for name in first["states"][0] if name.endswith(("weight", "prototypes"))]
    for ranks in (first, second, alone):
        moved = [
            any(not torch.equal(before[name], after[name]) for name in trained)
            for before, after in zip(ranks["states"], ranks["states"][1:], strict=False)
        ]
        assert moved == [True, True, False, True]
    assert of_tensors(second["states"][-1], first["states"][-1], least=0.01) == 0.0
    assert of_tensors(first["states"][-1], alone["states"][-1], least=0.01) < 1e-2


# --- bfloat16 -------------------------------------------------------------------------------------


@pytest.mark.slow  # 8 seconds
@pytest.mark.parametrize("case", ["simclr-layer-whole", "moco_v2-batch-parts"])
def test_bfloat16_is_as_near_to_float32_on_two_ranks_as_on_one(case: str) -> None:
    method, overrides = next((method, given) for name, method, given in cases() if name == case)
    half = [*overrides, "train.precision=bf16"]
    (exact,) = on(1, method, overrides, lambda t: curve(t, 3))
    (alone,) = on(1, method, half, lambda t: curve(t, 3))
    first, second = on(2, method, half, lambda t: curve(t, 3))
    assert of_tensors(second["state"], first["state"], least=0.01) == 0.0
    assert torch.equal(first["losses"], second["losses"])
    for measure in (of_losses, of_whole_gradient):
        assert 0.0 < measure(first, exact) < 2 * measure(alone, exact)


def of_whole_gradient(found: dict[str, Any], exact: dict[str, Any]) -> float:
    """|g - g1| / |g1|, since half precision leaves little of the smallest tensors."""
    expected, there = (
        torch.cat([each["gradient"][name].flatten() for name in exact["gradient"]])
        for each in (exact, found)
    )
    return float((there - expected).norm() / expected.norm())


# --- Compiled -------------------------------------------------------------------------------------


@pytest.mark.slow  # each rank compiles
@pytest.mark.timeout(600)
@pytest.mark.skipif(_missing_compiler() is not None, reason=f"{_missing_compiler()}")
@pytest.mark.parametrize("norm", ["layer", "batch"])
def test_a_compiled_run_on_two_ranks_is_the_eager_one(norm: str) -> None:
    simclr = "method=" + METHODS["simclr"].format(head=BN_HEAD)
    overrides = [simclr, *(LAYER_NORM if norm == "layer" else [])]
    compiled = [*overrides, "train.compile=true", "train.compile_augmentation=false"]
    (alone,) = on(1, "simclr", overrides, lambda t: curve(t, 3))
    first, second = on(2, "simclr", compiled, lambda t: curve(t, 3), limit_s=500)
    assert of_tensors(second["state"], first["state"], least=0.01) == 0.0
    assert of_losses(first, alone) < 1e-5
    assert of_gradients(first, alone) < 1e-4
