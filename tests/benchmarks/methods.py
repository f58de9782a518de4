"""`python -m tests.benchmarks.methods measure METHOD... | page`: every method under one CPU budget.

`measure` does for each method what the table states, through `sslkit run` and `sslkit compare` as a
user would: how many steps fit the budget; a search over a few settings, scored on images kept from
the training set; and the best of them over seeds, scored on the test set. It leaves one JSON file
a method. Given again it goes on where it was stopped. `page` makes the page of all these files.

The budget is CPU time by that of a reference (`methods_speed`). Pixels are the same for every run
and are measured once, by the first arm.
"""

from __future__ import annotations

import argparse
import itertools
import json
import os
import shutil
import statistics
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
import yaml

from sslkit.recipe import find_recipe, load_recipe
from sslkit.runs.metrics_file import read_lines

from .images import DATA_DIR
from .machine import describe_machine
from .methods_csv import PROTOCOLS
from .methods_facts import commit, given, is_made_with, training_cpu_seconds
from .methods_page import write_page

ARMS = Path(__file__).with_name("methods.yaml")
RESULTS = Path(__file__).parents[2] / "docs" / "benchmarks" / "results" / "methods"
_TRAINING_IMAGES = 50_000
_WARMUP = 0.1
"""Part of the steps in which the learning rate rises; the recipes' warm-up is for longer runs."""
_ONE_THREAD = {**os.environ, "OMP_NUM_THREADS": "1"}
_RATE = "optimizer.lr"
_SEARCH_SEED = 100  # none of those that are reported
_KNN = "{name: knn, k: 200, temperature: 0.1, baselines: %s}"
_SEARCHED = f"evaluate=[{_KNN % '[]'}]"
_MEASURED = "evaluate=[%s, {name: linear, baselines: %s}]"
_REPORTED = _MEASURED % (_KNN % "[untrained]", "[untrained]")
_PIXELS = _MEASURED % (_KNN % "[pixels]", "[pixels]")


@dataclass(frozen=True)
class Budget:
    """What every method is given: CPU seconds of training on one thread, at the speed at which the
    `reference`, a recipe, sees `reference_speed` images a second."""

    overrides: Sequence[str]
    """Of every run."""
    reference: str
    reference_overrides: Sequence[str]
    reference_speed: float
    search_seconds: float
    final_seconds: float
    seeds: int
    selection_fraction: float
    speed_rounds: int
    """How often arm and reference take turns when the arm's speed is measured."""


@dataclass(frozen=True)
class Arm:
    """A method as it stands in `methods.yaml`."""

    name: str
    recipe: str
    search: Mapping[str, Sequence[Any]]
    """Field -> the values that are tried; every combination is."""
    overrides: Sequence[str] = ()
    """What is changed in the recipe throughout, such as its network to that of all others."""
    before: Mapping[str, str] = field(default_factory=dict)
    """`recipe` of a run that comes first, as long as one of the search and on the same images, and
    the `field` that takes its folder. Its time comes on top."""
    note: str = ""
    """What a reader of the page must know of its numbers."""

    def settings(self) -> Iterator[dict[str, Any]]:
        """The combinations, in the order of the file."""
        for values in itertools.product(*self.search.values()):
            yield dict(zip(self.search, values, strict=True))


def read_arms(path: Path = ARMS) -> tuple[Budget, dict[str, Arm]]:
    """The budget and the arms by name."""
    document = yaml.safe_load(path.read_text(encoding="utf-8"))
    arms = {name: Arm(name, **fields) for name, fields in document["arms"].items()}
    return Budget(**document["budget"]), arms


class Measuring:
    """Measures one arm inside a folder of its own."""

    def __init__(self, arm: Arm, budget: Budget, folder: Path, data: Path) -> None:
        self.arm, self.budget, self.folder = arm, budget, folder
        self.train, self.test = (data / "cifar10" / f"{name}.parquet" for name in ("train", "test"))
        self.batch_size = _batch_size(arm.recipe, self.changed())
        folder.mkdir(parents=True, exist_ok=True)

    def result(self) -> dict[str, Any]:
        """All that the page needs of the arm."""
        speed = self.images_per_second()
        pixels = self.pixels()
        tried = self.search(speed)
        best = _best(tried)
        return {
            "method": self.arm.name,
            "recipe": self.arm.recipe,
            "overrides": self.changed(),
            "before": dict(self.arm.before),
            **given(self.arm.recipe, self.changed()),
            "budget": vars(self.budget),
            "images_per_cpu_second": speed,
            "pixels": pixels,
            "search": tried,
            "chosen": best,
            **self.final(best, speed),
            "machine": describe_machine(torch.device("cpu")),
        }

    def images_per_second(self) -> float:
        """Images of training a CPU second, by the reference's."""
        kept = self.folder / "speed.json"
        if not kept.exists():
            kept.write_text(json.dumps(self.budget.reference_speed * self.images_ratio()))
        speed: float = json.loads(kept.read_text(encoding="utf-8"))
        return speed

    def images_ratio(self) -> float:
        """Images that are trained on in the time of one of the reference."""
        overrides = [*self.budget.overrides, *self.budget.reference_overrides]
        return self.batch_size / _batch_size(self.budget.reference, overrides) / self.ratio()

    def ratio(self) -> float:
        """What a step costs, by what one of the reference costs."""
        shared = [*self.settled(), "data.test=null", "evaluate=[]", f"runs_dir={self.folder}"]
        arm = [self.arm.recipe, *shared, *self.changed(), *self.before()]
        command = [sys.executable, "-m", f"{__package__}.methods_speed", "--arm", *arm]
        command += ["--reference", self.budget.reference, *shared, *self.budget.overrides]
        command += [*self.budget.reference_overrides]
        command += ["--rounds", str(self.budget.speed_rounds)]
        printed = subprocess.run(
            command, check=True, env=_ONE_THREAD, stdout=subprocess.PIPE, text=True
        ).stdout
        ratio: float = json.loads(printed)
        return ratio

    def pixels(self) -> dict[str, float]:
        """Metric -> what the pixels themselves reach on the test set."""
        kept = self.folder.parent / "pixels.json"
        if not kept.exists():
            overrides = [f"data.test={self.test}", "train.max_steps=1", _PIXELS]
            run = self.run("pixels", overrides)
            found = {name: _last(run, f"{name}_pixels") for name in PROTOCOLS.values()}
            kept.write_text(json.dumps(found), encoding="utf-8")
        pixels: dict[str, float] = json.loads(kept.read_text(encoding="utf-8"))
        return pixels

    def before(self) -> list[str]:
        """The override that names the run that comes before; it is made where it is missing."""
        if not self.arm.before:
            return []
        first = Measuring(Arm(self.arm.name, self.arm.before["recipe"], {}), *self._place("before"))
        runs = first.folder / "run"
        found = [path.parent for path in runs.glob("*/results.json")]
        if not found:
            speed = first.images_per_second()
            found = [first.run("run", first.kept(first.length(speed, self.budget.search_seconds)))]
        return [f"{self.arm.before['field']}={found[0]}"]

    def _place(self, name: str) -> tuple[Budget, Path, Path]:
        return self.budget, self.folder / name, self.train.parents[1]

    def kept(self, overrides: Sequence[str]) -> list[str]:
        """Overrides of a run that keeps images from training, and the test set closed."""
        fraction = self.budget.selection_fraction
        return [
            *overrides, _SEARCHED, f"seed={_SEARCH_SEED}", "data.test=null",
            f"data.test_fraction={fraction}",
        ]  # fmt: skip

    def search(self, speed: float) -> list[dict[str, Any]]:
        """The settings that were tried, with kNN: all combinations, and one learning rate more
        where the best one is the least or the greatest."""
        tried = [self.searched(chosen, speed) for chosen in self.arm.settings()]
        beyond = next_rate(tried)
        return tried if beyond is None else [*tried, self.searched(beyond, speed)]

    def searched(self, settings: Mapping[str, Any], speed: float) -> dict[str, Any]:
        """Settings with kNN accuracy on images kept from the training set."""
        words = "-".join(f"{path.rpartition('.')[2]}={value}" for path, value in settings.items())
        kept = self.folder / f"search-{words}.json"
        if not kept.exists():
            chosen = [*_overrides(settings), *self.length(speed, self.budget.search_seconds)]
            overrides = self.kept(chosen)
            top1 = _last(self.run("search", overrides), "eval/knn/top1")
            kept.write_text(json.dumps(top1), encoding="utf-8")
        return {"settings": settings, "top1": json.loads(kept.read_text(encoding="utf-8"))}

    def final(self, settings: Mapping[str, Any], speed: float) -> dict[str, Any]:
        """Scores over seeds on the test set, their cost and curves. Raises SystemExit where the
        folder holds runs of other settings."""
        out = self.folder / "final"
        length = self.length(speed, self.budget.final_seconds)
        if not (out / "comparison.json").exists():
            overrides = [*_overrides(settings), f"data.test={self.test}", _REPORTED, *length]
            options = ["--seeds", str(self.budget.seeds), "--map", "none", "--neighbours", "0"]
            self.sslkit("compare", overrides, [*options, "-O", str(out)])
        comparison = json.loads((out / "comparison.json").read_text(encoding="utf-8"))
        runs = [out / path for path in comparison["arms"][0]["runs"].values()]
        expected = {**settings, "train.max_steps": length[0].partition("=")[2]}
        if not all(is_made_with(run, expected) for run in runs):
            raise SystemExit(f"{out}: its runs are not of {expected}; remove it and measure again")
        return {
            "scores": comparison["accuracies"],
            "costs": comparison["costs"][0],
            "training_cpu_seconds": [training_cpu_seconds(run) for run in runs],
            "commits": sorted({commit(run) for run in runs}),
            "curves": [_metric(run, "train/online_probe/top1") for run in runs],
            "pretext_top1": [found for run in runs if (found := _pretext_top1(run)) is not None],
        }

    def length(self, speed: float, seconds: float) -> list[str]:
        """Overrides that make a run take so long, a tenth of it warm-up."""
        steps = max(1, round(speed * seconds / self.batch_size))
        warmup = _WARMUP * steps / (_TRAINING_IMAGES / self.batch_size)
        return [f"train.max_steps={steps}", f"schedule.warmup_epochs={warmup:.4f}"]

    def run(self, name: str, overrides: Sequence[str]) -> Path:
        """The folder of a finished run."""
        runs = self.folder / name
        shutil.rmtree(runs, ignore_errors=True)
        self.sslkit("run", [*overrides, f"runs_dir={runs}"], [])
        (folder,) = (path for path in runs.iterdir() if path.is_dir())
        return folder

    def sslkit(self, command: str, overrides: Sequence[str], options: Sequence[str]) -> None:
        """Runs a command of sslkit on one thread. Raises CalledProcessError."""
        words = [sys.executable, "-m", "sslkit", command, self.arm.recipe, *options]
        for override in [*self.settled(), *self.changed(), *self.before(), *overrides]:
            words += ["-o", override]
        subprocess.run(words, check=True, env=_ONE_THREAD, stdout=subprocess.DEVNULL)

    def changed(self) -> list[str]:
        """Overrides by which all runs of the arm differ from its recipe."""
        return [*self.budget.overrides, *self.arm.overrides]

    def settled(self) -> list[str]:
        """Overrides of every run."""
        return [
            f"data.train={self.train}", "train.epochs=1000", "tracking={name: none}", "expect={}",
        ]  # fmt: skip


def _batch_size(recipe: str, overrides: Sequence[str]) -> int:
    return load_recipe(find_recipe(recipe), overrides).train.batch_size


def _best(tried: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    settings: dict[str, Any] = max(tried, key=lambda each: each["top1"])["settings"]
    return settings


def next_rate(tried: Sequence[Mapping[str, Any]]) -> dict[str, Any] | None:
    """The best settings with a third of their learning rate where it is the least that was tried,
    or three times where it is the greatest; None where it is between others."""
    best, rates = _best(tried), [float(each["settings"][_RATE]) for each in tried]
    rate = float(best[_RATE])
    if min(rates) < rate < max(rates):
        return None
    return {**best, _RATE: float(f"{rate / 3 if rate == min(rates) else 3 * rate:.2g}")}


def _overrides(settings: Mapping[str, Any]) -> list[str]:
    return [f"{path}={value}" for path, value in settings.items()]


def _last(run: Path, name: str) -> float:
    """The last value of a metric of a run."""
    return _metric(run, name)[-1][1]


def _metric(run: Path, name: str) -> list[tuple[int, float]]:
    """(step, value) of a metric of a run."""
    lines = read_lines(run / "metrics.jsonl")
    return [(line.step, line.metrics[name]) for line in lines if name in line.metrics]


def _pretext_top1(run: Path) -> float | None:
    """Accuracy of a pretext task over the last log intervals; None where the method has none."""
    values = [value for _, value in _metric(run, "train/pretext_top1")][-10:]
    return statistics.fmean(values) if values else None


def main(arguments: Sequence[str] | None = None) -> int:
    """The command. Returns the exit code."""
    given = _parser().parse_args(arguments)
    if given.command == "page":
        arms = read_arms()[1]
        notes = {name: arm.note for name, arm in arms.items() if arm.note}
        missing = [name for name in arms if not (given.results / f"{name}.json").exists()]
        print(write_page(given.results, notes, missing))
        return 0
    budget, arms = read_arms()
    given.results.mkdir(parents=True, exist_ok=True)
    for name in given.method:
        result = Measuring(arms[name], budget, given.folder / name, given.data).result()
        path = given.results / f"{name}.json"
        path.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
        print(path, flush=True)
    return 0


def _parser() -> argparse.ArgumentParser:
    _, arms = read_arms()
    parser = argparse.ArgumentParser(prog="python -m tests.benchmarks.methods", description=__doc__)
    commands = parser.add_subparsers(dest="command", required=True)
    measure = commands.add_parser("measure", help="measures methods, one after the other")
    measure.add_argument("method", nargs="+", choices=list(arms))
    measure.add_argument("--folder", type=Path, required=True, help="for runs; kept, to go on from")
    measure.add_argument("--data", type=Path, default=DATA_DIR, help="holds cifar10/*.parquet")
    measure.add_argument("--results", type=Path, default=RESULTS)
    page = commands.add_parser("page", help="writes the page of all results")
    page.add_argument("--results", type=Path, default=RESULTS)
    return parser


if __name__ == "__main__":
    sys.exit(main())
