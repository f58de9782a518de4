"""What a person sees while data is packed, and when it is done."""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, TextIO, cast, get_args

from sslkit.data.pack import verify
from sslkit.data.pack_format import Interpolation, PackFile, Settings
from sslkit.data.packing import data_of, write_pack
from sslkit.engine.display import start_bar
from sslkit.errors import RecipeError, SSLKitError
from sslkit.parallel.world import find_world

if TYPE_CHECKING:
    from rich.progress import Progress as Bar
    from rich.progress import TaskID

_LINE_EVERY_S = 5.0


def pack_source(
    source: str,
    out: Path,
    overrides: Sequence[str],
    size: int | None,
    interpolation: str,
    *,
    threads: int | None = None,
) -> PackFile:
    """Packs the data of a recipe, or the data block that `source` spells out, and shows how far it
    is. Raises RecipeError, DataError, and SSLKitError where it was stopped."""
    find_world()  # refuses several processes, which would write the same file
    if interpolation not in get_args(Interpolation):
        valid = " or ".join(get_args(Interpolation))
        raise RecipeError(f"--interpolation: got {interpolation!r}; valid is {valid}")
    settings = Settings(size=size, interpolation=cast(Interpolation, interpolation))
    data = data_of(source, overrides)
    progress = make_pack_progress("packing")
    try:
        num_threads = threads or available_cores()
        return write_pack(data, out, settings, num_threads=num_threads, on_progress=progress)
    except KeyboardInterrupt:
        raise SSLKitError("stopped; the same command goes on from here") from None
    finally:
        progress.close()


def verify_pack(path: Path, threads: int | None = None) -> PackFile:
    """Checks every pixel of a pack and shows how far it is. Raises RecipeError, DataError, and
    SSLKitError where it was stopped."""
    progress = make_pack_progress("verifying")
    try:
        return verify(path, num_threads=threads or available_cores(), on_progress=progress)
    except KeyboardInterrupt:
        raise SSLKitError("stopped; nothing is known of the rest") from None
    finally:
        progress.close()


def available_cores() -> int:
    """Cores that this process may use; it changes the speed alone."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


class PackProgress:
    """Plain `key=value` lines, for logs and for machines. Called with the split, the number of its
    images that are done, and that of all."""

    def __init__(self, verb: str, stream: TextIO | None = None) -> None:
        self.verb = verb
        self.stream = stream or sys.stderr
        self._split = ""
        self._start = (0.0, 0)
        self._last = 0.0

    def __call__(self, split: str, done: int, total: int) -> None:
        now = time.monotonic()
        if split != self._split:
            self._split, self._start, self._last = split, (now, done), now
            self.begin(split, done, total)
        elif now - self._last > _LINE_EVERY_S or done == total:
            self._last = now
            self.show(split, done, total, self.images_per_second(now, done))

    def images_per_second(self, now: float, done: int) -> float:
        """The mean over this split, without what was done before."""
        start, already = self._start
        return (done - already) / max(now - start, 1e-9)

    def begin(self, split: str, done: int, total: int) -> None:
        """A split begins, or goes on after `done` images."""
        print(f"{self.verb}: split={split} images={done} of={total}", file=self.stream, flush=True)

    def show(self, split: str, done: int, total: int, speed: float) -> None:
        """Some time has passed."""
        print(
            f"{self.verb}: split={split} images={done} of={total} images_per_second={speed:.0f}",
            file=self.stream,
            flush=True,
        )

    def close(self) -> None:
        """The end, for whatever reason."""


class TerminalPackProgress(PackProgress):
    """A bar for each split, with speed and time left."""

    def __init__(self, verb: str, stream: TextIO | None = None) -> None:
        super().__init__(verb, stream)
        self._bar: Bar | None = None
        self._task: TaskID | None = None

    def __call__(self, split: str, done: int, total: int) -> None:
        if split != self._split:
            super().__call__(split, done, total)
        elif self._bar is not None and self._task is not None:
            speed = self.images_per_second(time.monotonic(), done)
            self._bar.update(self._task, completed=done, note=f"{speed:,.0f} img/s")

    def begin(self, split: str, done: int, total: int) -> None:
        if self._bar is None:
            self._bar = start_bar(self.stream)
        self._task = self._bar.add_task(
            f"{self.verb} {split}", total=total, completed=done, note=""
        )

    def close(self) -> None:
        if self._bar is not None:
            self._bar.stop()
            self._bar = None


def make_pack_progress(verb: str, stream: TextIO | None = None) -> PackProgress:
    """Bars where the stream is a terminal, plain lines elsewhere. verb: what is being done."""
    stream = stream or sys.stderr
    kind = TerminalPackProgress if stream.isatty() else PackProgress
    return kind(verb, stream)


def pack_facts(pack: PackFile) -> dict[str, object]:
    """A pack in a few facts, ready for JSON."""
    return {
        "file": str(pack.path),
        "bytes": pack.path.stat().st_size,
        "settings": pack.description.settings.model_dump(mode="json"),
        "notes": list(pack.description.notes),
        "splits": {
            name: {
                "shape": list(split.shape),
                "classes": None if split.class_names is None else len(split.class_names),
                "labels": split.labels is not None,
                "replaced": [entry.model_dump() for entry in split.unreadable],
                "fingerprint": pack.fingerprint(split),
            }
            for name, split in pack.description.splits().items()
        },
    }


def print_pack(pack: PackFile) -> None:
    """The end of packing or of verifying, for a person."""
    for name, split in pack.description.splits().items():
        count, channels, height, width = split.shape
        replaced = f", {len(split.unreadable)} unreadable ones replaced" if split.unreadable else ""
        print(f"{name}: {count:,} images of {width} x {height} x {channels}{replaced}")
        for entry in split.unreadable[:5]:
            print(f"  {entry.image}: {entry.reason}; replaced by image {entry.replaced_by}")
    for note in pack.description.notes:
        print(f"warning: {note}")
    size = pack.path.stat().st_size
    print(f"{pack.path}: {size / 1e9:.3g} GB, fingerprints and checksums inside")
