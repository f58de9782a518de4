"""What all subjects of an evaluation have in common, beside the evaluators' settings."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from sslkit.nn.numerics import Precision

_NAMES = {"fp32": "float32", "bf16": "bfloat16", "fp16": "float16"}


@dataclass(frozen=True)
class Conditions:
    """How the numbers of an evaluation came about."""

    precision: Precision
    """The number format of all computation: `evaluation_precision` of the recipe."""
    batch_statistics: Literal["calibrated", "given"] | None
    """Those of the trained encoder: from training images, as for every other, or those that weights
    came with; None without BatchNorm."""
    no_untrained: str | None = None
    """Why there is no untrained baseline, where one was asked for."""
    noun: str = "image"
    """What was measured on: see `SampleSpec.noun`."""

    def to_json(self) -> dict[str, str | None]:
        """As `results.json` keeps it."""
        return {
            "precision": self.precision,
            "batch_statistics": self.batch_statistics,
            "no_untrained": self.no_untrained,
        }

    def sentences(self) -> list[str]:
        """The same for people, one line each."""
        precision = f"Measured in {_NAMES[self.precision]}"
        if self.batch_statistics == "calibrated":
            first = (
                f"{precision}, every encoder with the batch statistics of training {self.noun}s."
            )
        elif self.batch_statistics == "given":
            first = (
                f"{precision}, the weights with the batch statistics that they came with, the "
                f"untrained encoder with those of training {self.noun}s."
            )
        else:
            first = f"{precision}."
        missing = self.no_untrained
        return [first] if missing is None else [first, f"No untrained baseline: {missing}."]
