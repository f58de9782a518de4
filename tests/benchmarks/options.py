"""What the command line settles for all parts."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

import torch

from .arms import Plan
from .images import DATA_DIR


@dataclass(frozen=True)
class Options:
    """How and where to measure."""

    device: torch.device
    tiny: bool = False
    """Sizes for a test: everything runs, nothing can be learnt from the numbers."""
    quick: bool = False
    """A third of the rounds."""
    data_dir: Path = DATA_DIR
    workers: tuple[int, ...] = (2,)
    """Worker processes of the peers' loaders: one arm each."""
    loader_threads: int = 4
    """`train.loader_threads` of our arms."""
    cases: tuple[str, ...] = ()
    """The steps to measure; empty: all."""
    tables: tuple[Literal["same settings", "as shipped"], ...] = ()
    """`same settings`, `as shipped`; empty: those of the case."""
    full: bool = False
    """Also what takes minutes: 131,072 embeddings on a CPU."""

    @property
    def on_gpu(self) -> bool:
        """Whether the device is a CUDA one."""
        return self.device.type == "cuda"

    def plan(self, budget_s: float, **fields: int) -> Plan:
        """How long a group of this budget is measured here."""
        plan = replace(Plan(budget_s=budget_s), **fields)
        if self.tiny:
            return replace(plan, budget_s=0.0, min_rounds=2, max_rounds=2, max_warmups=0)
        if self.quick:
            return replace(plan, budget_s=budget_s / 3, min_rounds=min(3, plan.min_rounds))
        return plan
