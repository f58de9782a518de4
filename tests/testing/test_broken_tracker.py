"""Each of these trackers breaks one law, and the kit names that one."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
import torch

from sslkit.api import Tracker
from sslkit.testing import check_plugin
from tests.testing import broken_tracker as broken
from tests.testing.outcomes import broken_laws


@pytest.mark.parametrize(
    ("tracker", "law"),
    [
        (broken.RaisesOutOfLog, "it-follows-a-run"),
        (broken.BelongsToItsThread, "it-follows-a-run"),
        (broken.MakesARunEachTime, "a-run-is-continued"),
        (broken.StoresTwice, "what-was-stored-is-not-stored-again"),
        (broken.RemembersInMemory, "another-process-stores-nothing-again"),
        (broken.LosesStepZero, "nothing-is-lost"),
        (broken.SwallowsFailures, "nothing-is-lost"),
        (broken.KnowsNoKilledRun, "every-end-is-taken"),
        (broken.TakesNoLongParams, "it-takes-what-runs-have"),
        (broken.WritesIntoTheRunFolder, "the-run-folder-is-left"),
        (broken.ShowsALogin, "it-says-where-it-stores"),
        (broken.GivesFieldsThatItHasNot, "groups-are-found-again"),
    ],
    ids=lambda value: value if isinstance(value, str) else value.__name__,
)
def test_it_breaks_one_law(tracker: type[Tracker], law: str) -> None:
    assert broken_laws(tracker) == [law]


def test_what_they_are_made_of_breaks_none() -> None:
    report = check_plugin(broken.Sound, fast=True)
    assert report.passed
    assert [row["law"] for row in report.rows if row["status"] == "skipped"] == []


@pytest.mark.slow  # two short trainings
def test_a_run_that_it_follows_has_the_bits_of_one_without() -> None:
    assert broken_laws(broken.Sound, fast=False) == []


@pytest.mark.slow  # two short trainings
def test_a_setting_of_torch_breaks_one_law() -> None:
    try:
        assert broken_laws(broken.SetsTheTypeOfNumbers, fast=False) == ["results-stay"]
    finally:
        torch.set_default_dtype(torch.float32)


def test_no_store_of_the_user_is_written_to(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://127.0.0.1:9")
    assert check_plugin(broken.Sound, fast=True).passed
    assert list(tmp_path.iterdir()) == []
    assert os.environ["MLFLOW_TRACKING_URI"] == "http://127.0.0.1:9"
    assert Path.cwd() == tmp_path


def test_it_says_what_was_seen() -> None:
    (line,) = check_plugin(broken.StoresTwice, fast=True).broken
    assert "after an answer that was lost the service has (step, value) (1, 1.0) twice" in line
    (line,) = check_plugin(broken.LosesStepZero, fast=True).broken
    assert "of 6 points 2 are missing" in line
    (line,) = check_plugin(broken.ShowsALogin, fast=True).broken
    assert "secret" not in line
