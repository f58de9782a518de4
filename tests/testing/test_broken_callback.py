"""Each of these callbacks breaks one law, and the kit names that one."""

from __future__ import annotations

import pytest

from sslkit.api import Callback
from sslkit.testing import check_plugin
from tests.testing import broken_callback as broken
from tests.testing.outcomes import broken_laws


@pytest.mark.parametrize(
    ("callback", "law"),
    [
        (broken.ClipsWeights, "it-watches-a-run"),
        (broken.LeavesEvalMode, "it-watches-a-run"),
        (broken.ReturnsVectors, "it-watches-a-run"),
        (broken.WritesThroughData, "results-stay"),
        (broken.WritesThroughNumpy, "results-stay"),
        (broken.DrawsFromNumpy, "no-global-random-numbers"),
        (broken.SeedsPython, "no-global-random-numbers"),
        (broken.NeedsTheFirstStep, "it-begins-anew-after-a-resume"),
        (broken.IsSilentAfterAResume, "it-begins-anew-after-a-resume"),
        (broken.CountsPasses, "micro-batches-are-watched-alike"),
        (broken.KeepsTheBatch, "it-keeps-no-tensors"),
        (broken.KeepsGradients, "it-keeps-no-tensors"),
    ],
    ids=lambda value: value if isinstance(value, str) else value.__name__,
)
@pytest.mark.slow  # several short trainings for each
def test_it_breaks_one_law(callback: type[Callback], law: str) -> None:
    assert broken_laws(callback) == [law]


@pytest.mark.slow  # 14 seconds
def test_what_they_are_made_of_breaks_none() -> None:
    rows = check_plugin(broken.Sound, fast=True).rows
    assert [row["law"] for row in rows if row["status"] == "failed"] == []
    texts = {row["law"]: row["text"] for row in rows}
    names = ("norm", "images", "noise", "mean", "scores")
    assert texts["it-watches-a-run"] == "logs " + ", ".join(f"callback/Sound/{n}" for n in names)


def test_it_says_what_was_seen() -> None:
    (line,) = check_plugin(broken.ClipsWeights, fast=True).broken
    assert "ClipsWeights.on_step changed the parameter" in line
