"""What a step sends, as torch's own profiler saw it on two ranks: the numbers are pinned, and
`sslkit plan --nproc` counts the same without the ranks."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from math import prod
from pathlib import Path
from typing import Any

import pytest
import torch

from sslkit.engine.signals import StopSignals
from sslkit.engine.step import train_step
from sslkit.engine.training import Training
from sslkit.parallel.imagined import ImaginedRank, Message
from sslkit.parallel.world import World
from sslkit.runs.folder import held_by_first
from sslkit.workflows.plan_ranks import SharedBatch, describe_shared
from tests.ranks.curves import begin, cases, make
from tests.ranks.forked import on_ranks

CASES = {name: (method, overrides) for name, method, overrides in cases()}
CASES["a resnet"] = (
    "simclr",
    [*CASES["simclr-batch-whole"][1], "backbone={name: timm, model: test_resnet}"],
)
"""With so many weights that torch sends them in several messages."""
TRIED = (
    "a resnet",
    "simclr-batch-whole",
    "simclr-batch-parts",
    "simclr-layer-parts",
    "byol-batch-whole",  # a teacher with BatchNorm: statistics forward alone
    "moco_v2-batch-whole",  # statistics of groups
    "moco_v3-layer-whole",
    "prototypes-batch-whole",  # parameters that the objective alone uses
    "masked-layer-whole",  # a parameter that nobody uses
    "dividedprototypes-layer-parts",  # statistics that the objective takes over the ranks
    "dividedbatch-layer-whole",  # and sends back
)
FEW = ("simclr-batch-whole", "byol-batch-whole", "dividedbatch-layer-whole")
"""What `make test` tries; each takes more than a second."""
Sent = Counter[tuple[str, int]]
"""Operation and bytes of one rank -> how many."""


def training(run: Path, name: str, world: World) -> Training:
    """In float32, as it is shipped."""
    with held_by_first(world, lambda: begin(run)) as folder:
        t = make(folder, *CASES[name], world)
    t.method.float()
    return t


def second_step(t: Training, behind: Callable[[], object] = lambda: None) -> Any:
    """What torch's profiler saw of the second step, and of what comes behind it."""
    first, second, *_ = t.loader.epoch(0)
    train_step(t, first)
    t.progress = t.progress.next()
    with torch.profiler.profile(record_shapes=True) as profile:
        train_step(t, second)
        behind()
    return profile


def seen(world: World, run: Path, name: str) -> Sent:
    """What gloo was given in the second step, by torch's DistributedDataParallel as well."""
    profile = second_step(training(run, name, world), lambda: StopSignals().agree(world))
    found: Sent = Counter()
    for event in profile.events():
        if event.name.startswith("gloo:"):
            (shape,) = event.input_shapes
            operation = event.name.removeprefix("gloo:")
            in_bytes = operation == "all_gather" and len(shape) == 2  # rows: (images, bytes)
            found[operation, prod(shape) * (1 if in_bytes else 4)] += 1
    # Two flags of one byte are among the messages of one item; torch tells no types.
    found["all_reduce", 4] -= 2
    found["all_reduce", 1] += 2
    return +found


def planned(run: Path, name: str, size: int) -> SharedBatch:
    run.mkdir()
    world = ImaginedRank(size)
    t = training(run, name, world)
    return describe_shared(t, world, next(iter(t.loader.epoch(0))))


@pytest.mark.slow  # 8 seconds
@pytest.mark.parametrize(
    "name",
    [pytest.param(name, marks=[] if name in FEW else pytest.mark.slow) for name in TRIED],
)
def test_the_plan_counts_what_a_step_sends(name: str, tmp_path: Path) -> None:
    (tmp_path / "real").mkdir()
    ends = on_ranks(lambda world: seen(world, tmp_path / "real", name))
    for end in ends:
        if isinstance(end, BaseException):
            raise end
    first, second = ends
    assert first == second
    plan = planned(tmp_path / "plan", name, 2)
    for operation in ("all_reduce", "all_gather"):
        said = [m for m in plan.messages if m["operation"] == operation]
        sent = [(n, number) for (kind, n), number in first.items() if kind == operation]
        assert sum(m["number"] for m in said) == sum(number for _, number in sent)
        assert sum(m["bytes"] for m in said) == sum(n * number for n, number in sent)


def messages(plan: SharedBatch) -> dict[str, tuple[int, int]]:
    return {f"{m['about']} {m['operation']}": (m["number"], m["bytes"]) for m in plan.messages}


def test_the_messages_of_simclr(tmp_path: Path) -> None:
    """374,392 parameters and torch's own 1 in 51 tensors; 17 layers of 1,064 channels; for
    each of 8 images two views of 96 + 8 numbers and a label of 8 bytes."""
    plan = planned(tmp_path / "plan", "a resnet", 2)
    assert messages(plan) == {
        "gradients all_reduce": (3, 4 * (374_392 + 1) + 4 * 51),
        "statistics all_gather": (17, 3 * 4 * 1_064),
        "statistics all_reduce": (17, 2 * 4 * 1_064),
        "rows all_gather": (1, 8 * (2 * (96 + 8) * 4 + 8)),
        "flags all_reduce": (2, 2),
    }


@pytest.mark.parametrize("parts", ["whole", "parts"])
def test_a_divided_objective_sends_of_images_what_the_probe_sees(
    tmp_path: Path, parts: str
) -> None:
    """Of 8 images the features of two views, 16 numbers each, and a label; the embeddings, of which
    there are many where prototypes are, stay where they are."""
    plan = messages(planned(tmp_path / "plan", f"dividedprototypes-layer-{parts}", 2))
    assert plan["rows all_gather"] == (1, 8 * (2 * 16 * 4 + 8))


def test_without_probe_and_labels_a_divided_objective_sends_nothing_of_images(
    tmp_path: Path,
) -> None:
    tmp_path.joinpath("plan").mkdir()
    world = ImaginedRank(2)
    t = training(tmp_path / "plan", "dividedprototypes-layer-whole", world)
    t.learner = replace(t.learner, probe=None)
    batch = replace(next(iter(t.loader.epoch(0))), labels=None)
    assert "rows all_gather" not in messages(describe_shared(t, world, batch))


def test_micro_batches_send_gradients_and_rows_once(tmp_path: Path) -> None:
    whole = messages(planned(tmp_path / "whole", "simclr-layer-whole", 2))
    parts = messages(planned(tmp_path / "parts", "simclr-layer-parts", 2))
    assert whole == parts


def test_statistics_of_micro_batches_are_sent_in_each_pass(tmp_path: Path) -> None:
    """Two micro-batches: three passes forward, the last of them once, and two backward."""
    whole = messages(planned(tmp_path / "whole", "simclr-batch-whole", 2))
    parts = messages(planned(tmp_path / "parts", "simclr-batch-parts", 2))
    for operation, times in (("all_gather", 3), ("all_reduce", 2)):
        number, nbytes = whole[f"statistics {operation}"]
        assert parts[f"statistics {operation}"] == (times * number, times * nbytes)


def test_what_a_rank_gives_does_not_grow_with_their_number_but_for_rows(tmp_path: Path) -> None:
    two = messages(planned(tmp_path / "two", "simclr-batch-whole", 2))
    four = messages(planned(tmp_path / "four", "simclr-batch-whole", 4))
    (number, nbytes), (other, half) = two.pop("rows all_gather"), four.pop("rows all_gather")
    assert (other, 2 * half) == (number, nbytes)
    assert two == four


def test_a_message_in_a_ring() -> None:
    """Each of four sends 2 * 3/4 of what is summed, three times its part of what is gathered."""
    assert Message("gradients", "all_reduce", 1000).sent(4) == 1500
    assert Message("rows", "all_gather", 1000).sent(4) == 3000


def test_an_imagined_rank_has_the_shapes_of_a_real_one() -> None:
    """And the gradients, where all ranks are alike."""
    world, value = ImaginedRank(3), torch.ones(2, 4, dtype=torch.float64, requires_grad=True)
    assert world.gather(value).shape == (6, 4)
    total = world.sum(value)
    assert torch.equal(total, 3 * torch.ones(2, 4))
    total.sum().backward()  # type: ignore[no-untyped-call]
    assert torch.equal(value.grad, 3 * torch.ones(2, 4))
    assert [(m.operation, m.nbytes) for m in world.messages] == [
        ("all_gather", 24),
        ("all_gather", 64),
        ("all_reduce", 64),
        ("all_reduce", 64),
    ]
    rows = world.gather_rows({"z": torch.randn(2, 4), "labels": torch.tensor([1, 2])})
    assert torch.equal(rows["labels"], torch.tensor([1, 2] * 3))
    assert torch.linalg.matrix_rank(rows["z"]) == 4  # of 6 rows, of which 2 are its own
