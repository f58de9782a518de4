"""Making views. On a GPU: the loader of a run, draws and transfers included. On a CPU: the
augmentation alone, on one core (`augmentation.py`)."""

from __future__ import annotations

import shutil
import time
from collections.abc import Callable, Generator, Iterator
from dataclasses import replace
from functools import partial
from pathlib import Path

import torch

from sslkit.api import Batch
from sslkit.recipe import Recipe

from .arms import Arm, Run, measure, of_calls, synchronize
from .augmentation import SETTINGS, Setting, augmentation_arms
from .cases import Case, Mode, make_recipe
from .images import Images
from .options import Options
from .ours import build_experiment, scratch
from .peers import Transform, TwoViews, lightly_transform, plain_view
from .results import Group
from .steps import release

_GPU_CASES = (
    Case("views-32", "32 px", "test_resnet", 32, 512, 32, 50_000, steps=32),
    Case(
        "views-224", "224 px, from 256 px", "test_resnet", 224, 256, 256, 8192, steps=16,
        jitter_strength=1.0, blur=True,
    ),
)  # fmt: skip
_TINY_CASES = (Case("views-32", "32 px", "test_resnet", 32, 8, 36, 64, steps=1, modes=("eager",)),)
_TINY_SETTINGS = (replace(SETTINGS[0], num_images=8),)


def run_augmentation(options: Options) -> Iterator[Group]:
    """A group for each size."""
    if options.tiny or not options.on_gpu:
        yield from _per_core(_TINY_SETTINGS if options.tiny else SETTINGS, options)
    if options.tiny or options.on_gpu:
        yield from _loaders(_TINY_CASES if options.tiny else _GPU_CASES, options)


def _per_core(settings: tuple[Setting, ...], options: Options) -> Iterator[Group]:
    """The augmentation on one core."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        for setting in settings:
            arms = augmentation_arms(setting, options.data_dir)
            if options.tiny:
                arms = [arm for arm in arms if "compiled" not in arm.name]
            yield Group(
                "augmentation",
                f"Augmentation per core: {setting.title}",
                measure(arms, options.plan(20.0)),
                reference="lightly",
                facts={"setting": setting.name, "threads": 1},
                note="One thread. lightly: Pillow images, one after the other. Ours: whole "
                "batches, drawing included. No arm normalises.",
            )
            release()
    finally:
        torch.set_num_threads(threads)


def _loaders(cases: tuple[Case, ...], options: Options) -> Iterator[Group]:
    """The loader of a run, alone."""
    for case in cases:
        runs_dir = scratch()
        images = case.images(options.data_dir)
        try:
            arms = [*_our_loaders(case, images, runs_dir, options), *_peers(case, images)]
            results = measure(arms, options.plan(20.0, min_rounds=4))
        finally:
            shutil.rmtree(runs_dir, ignore_errors=True)
        yield Group(
            "augmentation",
            f"Loader on the device: two views of each image, {case.title}",
            results,
            reference="lightly, 1 core",
            facts={"case": case.name, "data": images.description},
            note="Ours: `TrainLoader` on the training device, drawing included. The peers: one "
            "process on one CPU core; divide a ratio by the number of workers they would have.",
        )
        release()


class LoaderRun:
    """Blocks of batches from the loader of a run."""

    def __init__(self, recipe: Recipe, batches: int, lead: int) -> None:
        experiment = build_experiment(recipe)
        experiment.folder.close()
        self.loader, self.device = experiment.training.loader, experiment.compute.device
        self.num_batches, self.lead = batches, lead
        self._epoch = 0

    def block(self) -> float:
        batches = self._endless()
        for _ in range(self.lead):
            next(batches)
        synchronize(self.device)
        start = time.perf_counter()
        for _ in range(self.num_batches):
            next(batches)
        synchronize(self.device)
        seconds = time.perf_counter() - start
        batches.close()
        return seconds

    def close(self) -> None:
        del self.loader

    def _endless(self) -> Generator[Batch, None, None]:
        while True:
            self._epoch += 1
            yield from self.loader.epoch(self._epoch)


def _our_loaders(case: Case, images: Images, runs_dir: Path, options: Options) -> Iterator[Arm]:
    """The loader, in each mode of the case."""

    def setup(mode: Mode) -> Run:
        recipe = make_recipe(case, "same settings", images, runs_dir, options, mode)
        return LoaderRun(recipe, case.steps, lead=4)

    for mode in case.modes:
        yield Arm(f"ours, {mode}", partial(setup, mode), float(case.batch_size * case.steps))


def _peers(case: Case, images: Images) -> Iterator[Arm]:
    """lightly's transform and torchvision's, image by image in this process."""
    num = min(images.num, 128 * 32 // case.size)

    def run(find: Callable[[Case], Transform]) -> Callable[[], object]:
        transform = find(case)
        pillow = [images.open(i) for i in range(num)]
        return lambda: [transform(image) for image in pillow]

    def plain(case: Case) -> Transform:
        return TwoViews(plain_view(case, normalize=False))

    lightly = partial(lightly_transform, normalize=False)
    yield Arm("lightly, 1 core", of_calls(partial(run, lightly)), float(num))
    yield Arm("plain PIL, 1 core", of_calls(partial(run, plain)), float(num))
