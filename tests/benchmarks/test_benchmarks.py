"""The benchmarks run from end to end, at sizes that say nothing about speed. Nothing is timed."""

from __future__ import annotations

import json
import math
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch

from sslkit.recipe import parse_recipe
from tests.benchmarks.__main__ import GPU_PARTS, main
from tests.benchmarks.arms import Arm, Plan, Unavailable, measure, of_calls
from tests.benchmarks.cases import CPU_CASES, GPU_CASES, recipe_text
from tests.benchmarks.images import images_in_files, images_in_memory, registry
from tests.benchmarks.options import Options
from tests.benchmarks.pairing import paired_ratios, ratio_interval
from tests.benchmarks.profiling import Span, busy_time
from tests.benchmarks.results import Group, read_results


class Recorded:
    """A run that says when it is called and takes the seconds it is told."""

    def __init__(self, name: str, seconds: float, calls: list[str]) -> None:
        self.name, self.seconds, self.calls = name, seconds, calls

    def block(self) -> float:
        self.calls.append(self.name)
        return self.seconds

    def close(self) -> None:
        self.calls.append(f"{self.name} closed")


@pytest.mark.slow  # 2 seconds
def test_arms_take_turns_forwards_and_backwards() -> None:
    calls: list[str] = []
    arms = [
        Arm("a", lambda: Recorded("a", 1.0, calls), 10.0),
        Arm("b", lambda: Recorded("b", 4.0, calls), 20.0),
    ]
    a, b = measure(arms, Plan(budget_s=0.0, min_rounds=3, max_warmups=0))
    assert calls == ["a", "b", "a", "b", "b", "a", "a", "b", "a closed", "b closed"]
    assert (a.seconds, b.seconds) == ([1.0] * 3, [4.0] * 3)
    ratio = Group("part", "title", [a, b]).ratio("a", "b")
    assert ratio is not None
    assert ratio.median == 2.0  # 10 a second against 5


def test_an_arm_that_cannot_run_says_why_and_holds_nobody_up() -> None:
    def refuse() -> Recorded:
        raise Unavailable("nothing to run it with")

    arms = [Arm("a", refuse, 1.0), Arm("b", of_calls(lambda: lambda: None), 1.0)]
    a, b = measure(arms, Plan(budget_s=0.0, min_rounds=2))
    assert a.unavailable == "nothing to run it with"
    assert not a.seconds
    assert len(b.seconds) == 2


def test_the_interval_covers_the_median_as_often_as_it_says() -> None:
    generator = torch.Generator().manual_seed(0)
    for n in (4, 6, 9, 20):
        draws = torch.rand(4000, n, generator=generator).tolist()
        intervals = [ratio_interval(values) for values in draws]
        covered = sum(i.low <= 0.5 <= i.high for i in intervals) / len(intervals)
        assert abs(covered - intervals[0].coverage) < 0.02
        assert intervals[0].coverage >= (0.95 if n >= 6 else 0.87)
        assert all(i.low <= i.median <= i.high for i in intervals)


def test_ratios_are_paired_by_round() -> None:
    # The machine is ten times slower in the second round, for both.
    assert paired_ratios([1.0, 10.0], 2.0, [2.0, 20.0], 2.0) == [2.0, 2.0]


_FORTY_MB = """
import torch
from tests.benchmarks.memory import extra_peak_mb

call = lambda: torch.ones(10_000_000).sum()
call()
print(extra_peak_mb(call, torch.device("cpu")))
"""


@pytest.mark.slow  # 5 seconds
def test_peak_memory_is_seen() -> None:
    # In a process of its own, as the benchmarks run: what earlier tests left behind may free memory
    # at the same time, or lend its own.
    command = [sys.executable, "-c", _FORTY_MB]
    root = Path(__file__).parents[2]
    done = subprocess.run(
        command, capture_output=True, text=True, check=True, timeout=120, cwd=root
    )
    extra = done.stdout.strip()
    if extra == "None":
        pytest.skip("this system does not tell the peak of resident memory")
    assert 38.0 < float(extra) < 60.0


def test_both_sides_are_fed_the_same_images(tmp_path: Path) -> None:
    for images in (images_in_memory(12, 8, tmp_path), images_in_files(4, tmp_path)):
        text = recipe_text(CPU_CASES[0], "same settings", images, tmp_path)
        reader = parse_recipe(text, "test", (), registry()).data.build().open("train")
        assert reader is not None
        assert len(reader) == images.num
        assert np.array_equal(reader.read(3), np.asarray(images.open(3)))


def test_busy_time_counts_what_overlaps_once() -> None:
    spans = [Span("b", 5.0, 7.0, 2.0), Span("a", 0.0, 4.0, 3.0), Span("in a", 1.0, 2.0, 1.0)]
    assert busy_time(spans) == 6.0
    assert busy_time([*spans, Span("across", 3.0, 6.0, 3.0)]) == 7.0
    assert busy_time([]) == 0.0


@pytest.mark.slow  # the whole programme once, half a minute
def test_the_profile_of_a_step_names_the_convolutions(results: Path) -> None:
    _, groups = read_results(results)
    (group,) = [group for group in groups if group.part == "profile"]
    shares = {arm.name: arm.facts["share"] for arm in group.arms}
    assert any("conv" in name for name in shares)
    assert math.isclose(sum(shares.values()), 1.0, rel_tol=1e-6)
    assert 0.0 <= group.facts["idle_share"] < 1.0
    assert group.facts["milliseconds_per_step"] > 0.0


def test_cases_have_names_of_their_own() -> None:
    for cases in (CPU_CASES, GPU_CASES):
        assert len({case.name for case in cases}) == len(cases)
        assert all(case.num_images >= 2 * case.batch_size for case in cases)


@pytest.fixture(scope="module")
def results(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The file of the GPU command, run on the CPU."""
    folder = tmp_path_factory.mktemp("benchmarks")
    out = folder / "tiny.json"
    before = torch.get_num_threads()
    arguments = ["gpu", "--device", "cpu", "--tiny", "--threads", "1", "--out", str(out)]
    assert main([*arguments, "--data", str(folder / "nothing")]) == 0
    torch.set_num_threads(before)
    return out


@pytest.mark.slow  # the whole programme once, half a minute
def test_every_part_runs_and_gives_finite_ratios(results: Path) -> None:
    document, groups = read_results(results)
    assert {group.part for group in groups} == set(GPU_PARTS)
    assert document["machine"]["packages"]["torch"] == torch.__version__.split("+")[0]
    ratios = [ratio for group in groups for ratio in _ratios(group)]
    assert ratios
    assert all(math.isfinite(ratio) and ratio > 0.0 for ratio in ratios)
    for group in groups:
        for arm in group.arms:
            assert arm.seconds or arm.facts or arm.unavailable or arm.extra_memory_mb is not None


def _ratios(group: Group) -> Iterator[float]:
    for to in (group.reference, group.ceiling):
        for arm in group.arms:
            ratio = group.ratio(arm.name, to) if to is not None else None
            if ratio is not None:
                yield from (ratio.low, ratio.median, ratio.high)


@pytest.mark.slow  # the whole programme once, half a minute
def test_our_arms_took_part_and_the_losses_agree(results: Path) -> None:
    _, groups = read_results(results)
    for group in groups:
        if group.part == "steps":
            ours = group.arm("ours, eager")
            assert ours is not None
            assert len(ours.seconds) == 2
        if group.part == "losses":
            found = [arm.facts["loss"] for arm in group.arms if arm.unavailable is None]
            assert all(math.isclose(loss, found[0], rel_tol=1e-5) for loss in found)


@pytest.mark.slow  # the whole programme once, half a minute
def test_the_file_names_no_folder_of_this_machine(results: Path) -> None:
    document = json.loads(results.read_text())
    del document["command"]
    assert str(Path.home()) not in json.dumps(document)
    assert str(results.parent) not in json.dumps(document)


@pytest.mark.slow  # the whole programme once, half a minute
def test_the_report_has_every_group_and_its_figures(results: Path, tmp_path: Path) -> None:
    index = tmp_path / "index.md"
    index.write_text("# Title\n<!-- results: begin -->\nold\n<!-- results: end -->\nend\n")
    assert main(["report", str(results), "--out", str(tmp_path)]) == 0
    listed = index.read_text()
    assert "](tiny.md)" in listed
    assert "old" not in listed
    assert listed.endswith("<!-- results: end -->\nend\n")
    page = (tmp_path / "tiny.md").read_text()
    _, groups = read_results(results)
    assert all(f"### {group.title}" in page for group in groups)
    for figure in ("tiny-steps-ceiling.svg", "tiny-micro-batches-ratios.svg"):  # without lightly
        assert f"figures/{figure}" in page
        assert (tmp_path / "figures" / figure).read_text().startswith("<?xml")
    assert Options(torch.device("cpu")).on_gpu is False
