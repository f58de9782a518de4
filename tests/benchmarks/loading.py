"""From JPEG bytes to pixels, and from JPEG files to augmented views."""

from __future__ import annotations

import importlib
import io
import shutil
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch.utils.data import DataLoader

from sslkit.builtin.sources.decoding import decode_image

from .arms import Arm, Run, Unavailable, measure, of_calls
from .cases import Case, make_recipe
from .decoding import crop_arms, view_arms
from .images import FileOpener, Images, images_in_files
from .options import Options
from .ours import scratch
from .peers import Endless, TransformedImages, lightly_transform
from .results import Group
from .views import LoaderRun

_CASE = Case(
    "files-224", "224 px", "test_resnet", 224, 32, 0, 512, steps=2, lead_steps=2,
    jitter_strength=1.0, blur=True, modes=("eager",),
)  # fmt: skip

Decoder = Callable[[bytes], Any]


def run_decoding(options: Options) -> Iterator[Group]:
    """Decoders, crops and packs on one core, then whole loaders."""
    with _one_thread():
        yield _decoders(options)
        yield _crops(options)
        yield _packs(options)
    yield _loaders(options)


def _decoders(options: Options) -> Group:
    images = images_in_files(4 if options.tiny else 100, options.data_dir)
    assert isinstance(images.open, FileOpener)
    encoded = [path.read_bytes() for path in images.open.paths]

    def run(find: Callable[[], Decoder]) -> Callable[[], object]:
        decode = find()
        return lambda: [decode(data) for data in encoded]

    decoders = {"Pillow": lambda: _pillow, "ours": lambda: _ours, "simplejpeg": _simplejpeg}
    arms = [
        Arm(name, of_calls(partial(run, find)), float(len(encoded)))
        for name, find in decoders.items()
    ]
    on_gpu = of_calls(partial(_nvjpeg, encoded, options), device=options.device)
    arms.append(Arm("nvJPEG (torchvision), on the GPU", on_gpu, float(len(encoded))))
    results = measure(arms, options.plan(10.0))
    facts = {"data": images.description, "threads": 1}
    return Group("decoding", "JPEG bytes to RGB pixels, one core", results, "Pillow", facts=facts)


def _crops(options: Options) -> Group:
    num = 4 if options.tiny else 64
    results = measure(crop_arms(options.data_dir, num=num), options.plan(10.0))
    facts = {"photographs": num, "threads": 1}
    title = "Two bicubic crops of decoded photographs to 224 px, one core"
    return Group("decoding", title, results, "float", facts=facts)


def _packs(options: Options) -> Group:
    num = 4 if options.tiny else 64
    results = measure(view_arms(options.data_dir, num=num), options.plan(10.0))
    facts = {"photographs": num, "threads": 1}
    title = "Two crops of photographs to 224 px, from files and from a pack, one core"
    return Group("decoding", title, results, "files", facts=facts)


@contextmanager
def _one_thread() -> Iterator[None]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)


def _pillow(data: bytes) -> Any:
    with Image.open(io.BytesIO(data)) as image:
        return np.asarray(image.convert("RGB"))


def _ours(data: bytes) -> Any:
    return decode_image(data, 3)


def _simplejpeg() -> Decoder:
    try:
        module: Any = importlib.import_module("simplejpeg")
    except ImportError as error:
        raise Unavailable(f"simplejpeg is not installed: {error}") from error
    decode: Decoder = partial(module.decode_jpeg, colorspace="RGB")
    return decode


def _nvjpeg(encoded: list[bytes], options: Options) -> Callable[[], object]:
    """All images in one call, from bytes in host memory to pixels in the GPU's."""
    if not options.on_gpu:
        raise Unavailable("needs a CUDA device")
    from torchvision.io import ImageReadMode, decode_jpeg

    data = [torch.frombuffer(bytearray(image), dtype=torch.uint8) for image in encoded]
    return lambda: decode_jpeg(data, mode=ImageReadMode.RGB, device=options.device)


def _loaders(options: Options) -> Group:
    """Files to views and nothing else, with as many threads as the peer has processes."""
    case = _CASE
    if options.tiny:
        case = Case("files-32", "32 px", "test_resnet", 32, 4, 0, 16, steps=1, modes=("eager",))
    images, runs_dir = case.images(options.data_dir), scratch()
    arms = []
    for workers in options.workers:
        work = float(case.batch_size * case.steps)
        ours = partial(_our_loader, case, images, runs_dir, options, workers)
        arms.append(Arm(f"ours, {workers} threads", ours, work))
        peer = partial(WorkerRun, case, images, workers)
        arms.append(Arm(f"lightly, {workers} workers", peer, work))
    try:
        results = measure(arms, options.plan(20.0))
    finally:
        shutil.rmtree(runs_dir, ignore_errors=True)
    return Group(
        "decoding",
        f"JPEG files to two augmented views, {case.title}",
        results,
        reference=f"lightly, {options.workers[0]} workers",
        facts={"data": images.description},
        note="The loader alone, nothing is trained. Ours decodes, crops and, on a CPU, finishes "
        "the views in threads. No arm normalises.",
    )


def _our_loader(case: Case, images: Images, runs_dir: Path, options: Options, threads: int) -> Run:
    further = [f"train.loader_threads={threads}"]
    recipe = make_recipe(case, "same settings", images, runs_dir, options, further=further)
    return LoaderRun(recipe, case.steps, lead=case.lead_steps)


class WorkerRun:
    """Blocks of batches from a torch DataLoader with lightly's transform."""

    def __init__(self, case: Case, images: Images, workers: int) -> None:
        transform = lightly_transform(case, normalize=False)
        self.loader: DataLoader[Any] = DataLoader(
            TransformedImages(images, transform),
            batch_size=case.batch_size,
            sampler=Endless(images.num),
            num_workers=workers,
        )
        self.lead, self.steps = case.lead_steps, case.steps
        self.multiple = max(1, workers)

    def block(self) -> float:
        batches = iter(self.loader)
        for _ in range(max(self.lead, self.multiple)):
            next(batches)
        timed = -(-self.steps // self.multiple) * self.multiple  # batches come in bursts
        start = time.perf_counter()
        for _ in range(timed):
            next(batches)
        seconds = time.perf_counter() - start
        del batches  # ends the workers
        return seconds * self.steps / timed

    def close(self) -> None:
        del self.loader
