"""What runs and is rarely meant: teachers that stand still, losses that reward a collapse."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
import torch

from sslkit.api import ComponentConfig, Loss, LossInput, RunFacts, rewards_collapse
from sslkit.builtin.losses import InfoNCE, NTXent
from sslkit.experiment.check import check
from sslkit.experiment.resolve import resolve
from sslkit.host.plugins import load_plugins
from sslkit.nn.ema import odd_momentum, share_of_start
from sslkit.recipe import load_recipe, shipped_recipes
from sslkit.recipe.warnings import find_warnings

LONG = "train.epochs=5000"
"""Long enough for a teacher with a usual momentum to leave its start."""


def warnings(recipe: Path, *overrides: str) -> dict[str, str]:
    """path -> message."""
    loaded = resolve(load_recipe(recipe, ["train.device=cpu", *overrides]))
    return {advice.path: advice.message for advice in find_warnings(loaded, check(loaded))}


def installed(kind: str, name: str) -> bool:
    return name in {entry.name for entry in load_plugins().registry.entries(kind)}


@pytest.mark.parametrize("name", ["byol", "moco_v1", "moco_v2", "moco_v3"])
@pytest.mark.parametrize(
    ("momentum", "expected"),
    [
        ("1", "the teacher never moves"),
        ("0.99999", "it hardly moves"),
        ("0", "little more than the network one step ago"),
        ("{name: cosine, start: 0.99, end: 1}", None),
        ("0.9", None),
    ],
)
def test_a_teacher_that_stands_still(
    tiny: Path, name: str, momentum: str, expected: str | None
) -> None:
    if not installed("method", name):
        pytest.skip("its plugin is not installed")
    queue = ", queue_size: 64" if name in ("moco_v1", "moco_v2") else ""
    found = warnings(tiny, f"method={{name: {name}, teacher_momentum: {momentum}{queue}}}", LONG)
    if expected is None:
        assert "method.teacher_momentum" not in found
    else:
        assert expected in found["method.teacher_momentum"]


def test_the_share_of_the_start_is_the_product_of_momenta() -> None:
    momenta = [0.99 - 0.09 * (1 + math.cos(math.pi * step / 40)) / 2 for step in range(40)]
    assert share_of_start(momenta, 40) == pytest.approx(math.prod(momenta), rel=1e-12)
    assert share_of_start([0.9], 10) == pytest.approx(0.9**10)
    assert share_of_start([1.0], 10) == 1.0
    assert share_of_start([0.0], 10) == 0.0


def test_a_usual_momentum_is_too_high_for_a_short_run() -> None:
    """MoCo's 0.999 over 500 steps keeps 0.999^500 = 61 % of the random weights."""
    said = odd_momentum([0.999], 500)
    assert said is not None
    assert "leave 61% of the teacher's random weights after all 500 steps" in said
    assert odd_momentum([0.999], 1000) is None


class Attraction(Loss):
    """Pulls views together and nothing apart."""

    def forward(self, inputs: LossInput) -> torch.Tensor:
        return (inputs.views[0] - inputs.views[1]).square().sum(dim=1).mean()


class Spread(Attraction):
    """The same, with a term that collapse makes large, as VICReg has."""

    def forward(self, inputs: LossInput) -> torch.Tensor:
        spread = torch.relu(1.0 - inputs.views[0].std(dim=0)).mean()
        return super().forward(inputs) + spread


class Demanding(Loss):
    """Takes embeddings of one width only."""

    def forward(self, inputs: LossInput) -> torch.Tensor:
        return inputs.views[0].reshape(-1, 7).sum()


def test_which_losses_reward_a_collapse() -> None:
    plain = ComponentConfig()
    assert rewards_collapse(Attraction(plain))
    assert not rewards_collapse(Spread(plain))
    assert not rewards_collapse(NTXent(NTXent.Config()))
    assert not rewards_collapse(InfoNCE(InfoNCE.Config(temperature=1.0)))
    assert not rewards_collapse(Demanding(plain))


@pytest.mark.parametrize("method", ["simclr", "moco_v3"])
def test_a_contrastive_method_without_negatives(tiny: Path, method: str) -> None:
    if not installed("loss", "normalized_mse") or not installed("method", method):
        pytest.skip("sslkit-byol and sslkit-moco are not installed")
    scaling = ", temperature_scaling: false" if method == "moco_v3" else ""
    found = warnings(
        tiny, f"method={{name: {method}, loss: {{name: normalized_mse}}{scaling}}}", LONG
    )
    assert "lowest when all embeddings are equal" in found["method.loss"]
    assert "method.loss" not in warnings(tiny, f"method={{name: {method}}}", LONG)


@pytest.mark.parametrize("loss", ["nt_xent", "info_nce"])
@pytest.mark.parametrize(
    ("temperature", "warned"),
    [(1e-30, True), (0.01, True), (0.05, False), (0.5, False), (1.0, False), (50.0, True)],
)
def test_temperatures(tiny: Path, loss: str, temperature: float, warned: bool) -> None:
    found = warnings(tiny, f"method.loss={{name: {loss}, temperature: {temperature}}}")
    assert ("method.loss.temperature" in found) is warned


def test_a_batch_of_two(tiny: Path) -> None:
    assert "told apart from 1 other," in warnings(tiny, "train.batch_size=2")["method"]
    assert "method" not in warnings(tiny, "train.batch_size=8")


@pytest.mark.parametrize("name", sorted(shipped_recipes()))
def test_no_shipped_recipe_is_warned_of(name: str) -> None:
    recipe = load_recipe(name)
    images = {"digits": 1438, "image_folder": 1_281_167}.get(recipe.data.name, 50_000)
    channels = 1 if recipe.data.name == "digits" else 3
    batch, views = recipe.train.batch_size, recipe.augmentation.build().views
    steps = images // batch
    known = RunFacts(images, channels, None, 10, batch, steps, steps * recipe.train.epochs, views)
    assert [f"{advice}" for advice in find_warnings(recipe, known) if "method" in advice.path] == []


def test_a_queue_shorter_than_a_step(tiny: Path) -> None:
    if not installed("method", "moco_v2"):
        pytest.skip("sslkit-moco is not installed")
    method = "{name: moco_v2, queue_size: 20, symmetric: true}"
    found = warnings(tiny, f"method={method}", "train.batch_size=16", LONG)
    assert "fewer than the 32 of a step" in found["method.queue_size"]
