"""Methods that do what the built-in ones do not: they train on two ranks as on one, or are told
why they cannot."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from sslkit.api import Batch, ComponentConfig, Loss, LossInput, Progress, StepOutput
from sslkit.nn.functional import nt_xent
from sslkit.parallel.world import World
from sslkit.runs.folder import held_by_first
from tests.ranks.curves import begin, curve, make
from tests.ranks.forked import on_ranks
from tests.ranks.sketches import SKETCHES, WIDTH, WholeBatch, _Sketch

EMBEDDINGS = Mapping[str, Tensor]


class _Simple(_Sketch):
    def loss(self, z: Tensor) -> Tensor:
        """Views of an image close, the variance of the batch one."""
        spread = (1 - z.flatten(0, 1).std(0)).square().mean()
        return (z[:, 0] - z[:, 1]).square().mean() + spread

    def objective(self, embeddings: EMBEDDINGS, batch: Batch, progress: Progress) -> StepOutput:
        return StepOutput(self.loss(embeddings["z"]))


class AddedParameters(_Simple):
    """torch gives the two parameters one gradient between them, and that of the third is one
    number, expanded."""

    def __init__(self, *given: Any) -> None:
        super().__init__(*given)
        self.a, self.b, self.c = (nn.Parameter(torch.ones(WIDTH)) for _ in range(3))

    def objective(self, embeddings: EMBEDDINGS, batch: Batch, progress: Progress) -> StepOutput:
        z = embeddings["z"]
        return StepOutput(self.loss(z) + (z * (self.a + self.b)).mean() + self.c.sum())


class Unfrozen(_Simple):
    """The backbone is frozen for two steps."""

    def before_step(self, progress: Progress) -> None:
        self.backbone.requires_grad_(progress.step >= 2)


class LateTeacher(_Simple):
    """The teacher, which has BatchNorm, is made after the first step."""

    teacher: nn.Module | None = None

    def before_step(self, progress: Progress) -> None:
        if progress.step == 2:
            self.teacher = copy.deepcopy(self.networks).requires_grad_(False)

    def embed(self, batch: Batch) -> dict[str, Tensor]:
        found = super().embed(batch)
        found["taught"] = found["z"].detach()[:, 0]
        if self.teacher is not None:
            with torch.no_grad():
                found["taught"] = self.teacher(batch.views[0])
        return found

    def objective(self, embeddings: EMBEDDINGS, batch: Batch, progress: Progress) -> StepOutput:
        z, taught = embeddings["z"], embeddings["taught"].detach()
        return StepOutput(self.loss(z) + (z[:, 1] - taught).square().mean())


class DividedPredictor(_Simple):
    """A predictor with BatchNorm in an objective that is divided."""

    divides_objective = True

    def __init__(self, *given: Any) -> None:
        super().__init__(*given)
        self.predictor = nn.Sequential(
            nn.Linear(WIDTH, WIDTH, bias=False), nn.BatchNorm1d(WIDTH), nn.Linear(WIDTH, WIDTH)
        )

    def objective(self, embeddings: EMBEDDINGS, batch: Batch, progress: Progress) -> StepOutput:
        z = embeddings["z"]
        return StepOutput((self.predictor(z[:, 0]) - z[:, 1]).square().mean())


class DividedPairs(_Simple):
    """NT-Xent over the pairs of all ranks."""

    divides_objective = True

    def objective(self, embeddings: EMBEDDINGS, batch: Batch, progress: Progress) -> StepOutput:
        first, second = embeddings["z"].unbind(1)
        return StepOutput(nt_xent(first, second, 0.2, group=self.world.group))


class Branching(_Simple):
    """A network that some images need: often those of one rank alone, and its messages come before
    those of BatchNorm where nobody needs it."""

    def __init__(self, *given: Any) -> None:
        super().__init__(*given)
        wide = 400
        self.all = nn.Sequential(
            nn.Linear(WIDTH, wide), nn.BatchNorm1d(wide), nn.ReLU(),
            nn.Linear(wide, wide), nn.ReLU(), nn.Linear(wide, WIDTH),
        )  # fmt: skip
        self.some = nn.Sequential(nn.Linear(WIDTH, wide), nn.ReLU(), nn.Linear(wide, WIDTH))

    def embed(self, batch: Batch) -> dict[str, Tensor]:
        found = super().embed(batch)
        z, needed = found["z"], batch.indices % 16 == 3
        if needed.any():
            z = torch.where(needed.view(-1, 1, 1), self.some(z), z)
        found["z"] = z + 0.1 * self.all(z.flatten(0, 1)).view_as(z)
        return found


class CentredLoss(Loss):
    """A loss with state."""

    centre: Tensor

    def __init__(self, config: Any) -> None:
        super().__init__(config)
        self.register_buffer("centre", torch.zeros(WIDTH))

    def forward(self, inputs: LossInput) -> Tensor:
        first, second = inputs.views
        return (first - second).square().mean() + (first - self.centre).square().mean()

    def after_step(self, progress: Progress, inputs: Any) -> None:
        self.centre.lerp_(inputs[0].views[0].mean(0), 0.1)


class DividedLoss(_Simple):
    divides_objective = True

    def __init__(self, *given: Any) -> None:
        super().__init__(*given)
        self.criterion = CentredLoss(ComponentConfig())

    def objective(self, embeddings: EMBEDDINGS, batch: Batch, progress: Progress) -> StepOutput:
        inputs = LossInput(embeddings["z"].unbind(1))
        return StepOutput(self.criterion(inputs), losses=[(self.criterion, inputs)])


PARTS = "train.micro_batch_size=8"
CLIPPED = "train.max_grad_norm=0.01"
EFFICIENT = "backbone={name: timm, model: test_efficientnet}"
EXACT: dict[str, tuple[type[_Sketch], list[str]]] = {
    "added": (AddedParameters, [CLIPPED]),
    "unfrozen": (Unfrozen, []),
    "unfrozen, in parts": (Unfrozen, [PARTS]),
    "late teacher": (LateTeacher, [PARTS]),
    "divided predictor": (DividedPredictor, []),
    "divided pairs": (DividedPairs, [PARTS]),
    "branching": (Branching, []),
    "an activation in BatchNorm": (_Simple, [EFFICIENT, "augmentation.size=32"]),
    "recomputed": (_Simple, ["backbone.recompute=true", PARTS]),
    "lars": (WholeBatch, ["optimizer={name: lars, lr: 0.1}"]),
}


def trained(cls: type[_Sketch], overrides: list[str], folder: Path, world: World) -> Any:
    SKETCHES["other"] = cls
    with held_by_first(world, lambda: begin(folder)) as run:
        return curve(make(run, "other", overrides, world), 4)


def on(size: int, cls: type[_Sketch], overrides: list[str]) -> list[Any]:
    with TemporaryDirectory() as folder:
        return on_ranks(lambda world: trained(cls, overrides, Path(folder), world), size)


FEW = ("late teacher", "divided pairs", "an activation in BatchNorm", "lars")
"""What `make test` tries; each takes a second or two."""


@pytest.mark.slow  # 10 seconds
@pytest.mark.parametrize(
    "name",
    [pytest.param(name, marks=[] if name in FEW else pytest.mark.slow) for name in EXACT],
)
def test_two_ranks_train_as_one(name: str) -> None:
    (alone,) = on(1, *EXACT[name])
    for found in on(2, *EXACT[name]):
        assert isinstance(found, dict), found
        close = partial(torch.testing.assert_close, rtol=1e-9, atol=1e-11)
        close(found["losses"], alone["losses"])
        close(found["gradient"], alone["gradient"])
        close(found["state"], alone["state"])


def test_a_loss_with_state_in_a_divided_objective_is_refused() -> None:
    for found in on(2, DividedLoss, []):
        assert "its loss CentredLoss keeps state of what it sees" in str(found)
        assert "\n" not in str(found)
