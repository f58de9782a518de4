"""Micro-batches give the gradient of the whole batch, see each image once, and resume exactly."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from sslkit.api import Batch, Progress
from sslkit.builtin.augmented_views import AugmentedViews
from sslkit.builtin.simclr import SimCLR
from sslkit.engine.display import Silent
from sslkit.engine.failure import refuse_single_image
from sslkit.engine.step import embed, train_step
from sslkit.engine.training import Training
from sslkit.errors import PluginError, RecipeError
from sslkit.experiment.build import build
from sslkit.experiment.check import check
from sslkit.experiment.resolve import resolve
from sslkit.parallel.division import Division
from sslkit.parallel.world import OneProcess
from sslkit.randomness import seeded
from sslkit.recipe import load_recipe
from sslkit.runs.folder import RunFolder
from sslkit.workflows.train import start
from tests.engine.test_exactness import assert_same, final_state, logged

PER_SAMPLE = (
    "augmentation.size=32",
    "backbone={name: timm, model: test_vit, patch_size: 8}",
    "method.head={name: mlp, hidden_dim: 16, out_dim: 8, hidden_norm: none, output_norm: none}",
)
"""A network without batch statistics: LayerNorm in the backbone, nothing in the head."""


@pytest.fixture
def make(tiny: Path, tmp_path: Path) -> Iterator[Any]:
    """make(*overrides) -> (training, first batch), in float64 where asked."""
    folders: list[RunFolder] = []

    def build_training(*overrides: str, double: bool = False) -> tuple[Training, Batch]:
        recipe = resolve(load_recipe(tiny, list(overrides)))
        folders.append(RunFolder.create(tmp_path / "built", recipe.name))
        training = build(recipe, check(recipe), folders[-1], Silent(), OneProcess()).training
        training.method.train()
        training.optimization.set_rules(training.progress)
        batch = next(iter(training.loader.epoch(0)))
        if double:
            training.method.double()
            batch = replace(batch, views=tuple(view.double() for view in batch.views))
        return training, batch

    yield build_training
    for folder in folders:
        folder.close()


def gradients(made: tuple[Training, Batch], monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """The gradient of each parameter in a step, and the loss under the name "loss"."""
    training, batch = made
    found: dict[str, Any] = {}

    def keep() -> None:
        for name, parameter in training.method.named_parameters():
            found[name] = None if parameter.grad is None else parameter.grad.clone()

    monkeypatch.setattr(training.optimization, "step", keep)
    found["loss"] = train_step(training, batch)[0].loss.detach()
    return found


def relative_difference(a: Mapping[str, Tensor], b: Mapping[str, Tensor]) -> float:
    """Norm of the difference over the norm, over all parameters together."""
    assert a.keys() == b.keys()
    difference = sum(float((a[name] - b[name]).double().square().sum()) for name in a)
    return float((difference / sum(float(v.double().square().sum()) for v in b.values())) ** 0.5)


@pytest.mark.slow  # 6 seconds
@pytest.mark.parametrize(("double", "bound"), [(True, 1e-12), (False, 1e-6)])
@pytest.mark.parametrize("size", [2, 8])
def test_gradient_is_that_of_the_whole_batch(
    make: Any, monkeypatch: pytest.MonkeyPatch, size: int, double: bool, bound: float
) -> None:
    whole = gradients(make(*PER_SAMPLE, double=double), monkeypatch)
    parts = gradients(
        make(*PER_SAMPLE, f"train.micro_batch_size={size}", double=double), monkeypatch
    )
    assert all(value is not None for value in whole.values())
    assert relative_difference(parts, whole) < bound


def test_second_pass_repeats_the_randomness_of_the_first(
    make: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With stochastic depth and BatchNorm: equal to one graph over all parts, which needs no
    second pass."""
    overrides = ("backbone.drop_path_rate=0.5", "train.micro_batch_size=4")
    found = gradients(make(*overrides, double=True), monkeypatch)

    reference, batch = make(*overrides, double=True)
    parts = []
    for number in range(4):
        with seeded(reference.learner.seed, "train", 0, "micro_batch", number, "rank", 0):
            parts.append(embed(reference, batch.select(slice(4 * number, 4 * number + 4))))
    whole = {name: torch.cat([part[name] for part in parts]) for name in parts[0]}
    loss = reference.method.objective(whole, batch, Progress(0, 1, 1)).loss
    loss.backward()  # type: ignore[no-untyped-call]
    expected = {
        name: parameter.grad
        for name, parameter in reference.method.named_parameters()
        if parameter.grad is not None
    }
    assert relative_difference(found, {**expected, "loss": loss.detach()}) < 1e-12


def test_running_statistics_see_each_part_once(make: Any) -> None:
    training, batch = make("train.micro_batch_size=4")
    norms = [m for m in training.method.modules() if isinstance(m, nn.modules.batchnorm._BatchNorm)]
    assert norms
    train_step(training, batch)
    assert all(norm.num_batches_tracked == torch.tensor(4) for norm in norms)


def test_one_micro_batch_is_the_whole_batch(
    tiny: Path, make: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    plain = gradients(make(), monkeypatch)
    same = gradients(make("train.micro_batch_size=16"), monkeypatch)
    assert_same(same, plain)


@pytest.mark.slow  # 5 seconds
def test_stop_and_resume(tiny: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    changes = ["train.micro_batch_size=4", "train.max_steps=9", "evaluate=[]"]
    reference = start(str(tiny), changes, display=Silent()).run_dir

    stopped = stop_at(tiny, changes, monkeypatch, step=4)
    finished = start(None, [], resume=str(stopped), display=Silent())
    assert_same(final_state(finished.run_dir), final_state(reference))
    assert logged(finished.run_dir) == logged(reference)


def test_recomputed_blocks_have_the_gradient_of_the_whole_batch(
    make: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With BatchNorm and drop path, where micro-batches have another one."""
    plain = gradients(make(), monkeypatch)
    assert_same(gradients(make("backbone.recompute=true"), monkeypatch), plain)
    parts = gradients(make("train.micro_batch_size=8"), monkeypatch)
    assert (
        relative_difference(
            {k: v for k, v in parts.items() if v is not None},
            {k: v for k, v in plain.items() if v is not None},
        )
        > 0.1
    )


@pytest.mark.slow  # 4 seconds
def test_a_recomputed_run_is_the_plain_run_wherever_it_was_cut_off(
    tiny: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    changes = ["train.max_steps=5", "evaluate=[]"]
    plain = start(str(tiny), changes, display=Silent()).run_dir
    recomputed = [*changes, "backbone.recompute=true"]
    stopped = stop_at(tiny, recomputed, monkeypatch, step=2)
    finished = start(None, [], resume=str(stopped), display=Silent())
    assert_same(final_state(finished.run_dir), final_state(plain))
    assert logged(finished.run_dir) == logged(plain)


def stop_at(tiny: Path, changes: list[str], monkeypatch: pytest.MonkeyPatch, step: int) -> Path:
    """The folder of a run that a signal ends after so many steps."""

    def terminate(self: object, run: object, batch: object, progress: Progress) -> None:
        if progress.step == step:
            os.kill(os.getpid(), signal.SIGTERM)

    with monkeypatch.context() as patched:
        patched.setattr(AugmentedViews, "on_batch", terminate)
        given = [*changes, "callbacks=[{name: augmented_views}]"]
        stopped = start(str(tiny), given, display=Silent())
    assert stopped.status == "stopped"
    return stopped.run_dir


def test_embeddings_without_a_row_per_image_are_refused(
    make: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    training, batch = make("train.micro_batch_size=4")
    monkeypatch.setattr(type(training.method), "embed", lambda self, part: {"z": torch.zeros(8, 3)})
    with pytest.raises(PluginError, match=r"'z' as a tensor of shape \(8, 3\).* for 4 images"):
        train_step(training, batch)


@pytest.mark.parametrize(
    ("override", "expected"),
    [
        ("train.micro_batch_size=5", r"micro_batch_size=5: 5 does not divide batch_size 16"),
        ("train.micro_batch_size=32", r"micro_batch_size=32: 32 does not divide batch_size 16"),
        ("train={epochs: 1, batch_size: 4, accum_iter: 4}", r"accum_iter: .*micro_batch_size"),
    ],
)
def test_what_recipes_may_not_ask(tiny: Path, override: str, expected: str) -> None:
    with pytest.raises(RecipeError, match=expected):
        load_recipe(tiny, [override])


def test_one_image_at_a_time_has_no_batch_statistics(
    tiny: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Refused in a line that names the field, and the probe where it has such a layer too."""
    plain = SimCLR.embed
    monkeypatch.setattr(
        SimCLR,
        "embed",
        lambda self, batch: plain(self, replace(batch, views=batch.views[:1])),
    )
    with pytest.raises(RecipeError, match=r"^train.micro_batch_size: 1 image at a time") as raised:
        start(tiny, ["train.micro_batch_size=1", "evaluate=[]"], display=Silent())
    assert "\n" not in str(raised.value)
    assert "online_probe" not in str(raised.value)
    refusal = ValueError("Expected more than 1 value per channel when training")
    learner = SimpleNamespace(division=Division(1), probe=object(), method=nn.BatchNorm1d(2))
    whole: Any = SimpleNamespace(learner=learner)
    with pytest.raises(RecipeError, match=r"^train.batch_size: .* train.online_probe=null too"):
        refuse_single_image(whole, refusal)
    learner.method = nn.LayerNorm(2)  # the probe alone
    with pytest.raises(RecipeError, match=r"of the online probe .* train.online_probe=null$") as it:
        refuse_single_image(whole, refusal)
    assert "choose networks" not in str(it.value)
    refuse_single_image(whole, ValueError("another one"))
    whole.learner.division = Division(2)
    refuse_single_image(whole, refusal)
