"""Every optimiser that comes with sslkit meets the laws of optimisers."""

from __future__ import annotations

from typing import Any

import pytest
import timm.optim
import torch

from sslkit.api import Optimizer
from sslkit.testing import Check, check_plugin, checks

OPTIMIZERS: dict[str, dict[str, Any]] = {
    "sgd": {},
    "sgd-nesterov": {"nesterov": True},
    "sgd-without-momentum": {"momentum": 0.0},
    "adam": {},
    "adamw": {},
    "lars": {},
    "lars-of-byol": {"lr_in_buffer": False, "nesterov": True},
    "sgd-decay-by-schedule": {"weight_decay": {"name": "cosine", "start": 0.04, "end": 0.4}},
}


@pytest.mark.parametrize(
    "check",
    [
        pytest.param(
            check,
            id=f"{name}-{check}",
            marks=[pytest.mark.slow] if check.law.slow else [],  # starts an interpreter
        )
        for name, fields in OPTIMIZERS.items()
        for check in checks(
            f"optimizer:{name.partition('-')[0]}", fast=bool(fields), lr=0.05, **fields
        )
    ],
)
def test_laws(check: Check) -> None:
    check()


def test_the_descent_stands_beside_passed() -> None:
    rows = {row["law"]: row for row in check_plugin("optimizer:sgd", fast=True, lr=0.1).rows}
    assert rows["it-lowers-a-convex-loss"]["text"].startswith("54.5 to ")
    assert rows["it-makes-a-torch-optimiser-of-its-groups"]["text"] == "SGD"


class Counting(torch.optim.SGD):
    """Counts its steps in its groups, from the first on, as timm's Lamb and Adan do."""

    def step(self, closure: Any = None) -> Any:
        for group in self.param_groups:
            group["step"] = group.get("step", 0) + 1
            group["lr"] /= group["step"]
        found = super().step(closure)
        for group in self.param_groups:
            group["lr"] *= group["step"]
        return found


class CountsInItsGroups(Optimizer):
    """Falls by the number of steps, which the state of the groups holds."""

    def create(self, groups: list[dict[str, Any]]) -> torch.optim.Optimizer:
        return Counting(groups, momentum=0.9)


class TimmLamb(Optimizer):
    """As timm makes it."""

    def create(self, groups: list[dict[str, Any]]) -> torch.optim.Optimizer:
        return timm.optim.Lamb(groups)


@pytest.mark.parametrize("optimizer", [CountsInItsGroups, TimmLamb])
def test_steps_may_be_counted_in_groups(optimizer: type[Optimizer]) -> None:
    """A resume takes over what an optimiser adds to its groups in its first step."""
    rows = {row["law"]: row["status"] for row in check_plugin(optimizer, fast=True, lr=0.01).rows}
    assert rows["state-is-complete"] == "passed"
