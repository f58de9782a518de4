"""`sslkit pack`: a data source in one file, and the check of such a file."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import cast, get_args

from sslkit.data.pack import verify
from sslkit.data.pack_format import PackFile, Settings
from sslkit.data.pack_writer import write_pack
from sslkit.engine.pack_progress import make_pack_progress
from sslkit.errors import RecipeError, SSLKitError
from sslkit.nn.image import Interpolation
from sslkit.parallel.finding import require_one_process
from sslkit.recipe import load_data_block


@dataclass(frozen=True)
class PackedData:
    """A pack that was written, or checked."""

    pack: PackFile

    def to_json(self) -> dict[str, object]:
        """Ready for JSON."""
        description = self.pack.description
        return {
            "file": str(self.pack.path),
            "bytes": self.pack.path.stat().st_size,
            "settings": description.settings.model_dump(mode="json"),
            "notes": list(description.notes),
            "splits": {
                name: {
                    "shape": list(split.shape),
                    "classes": None if split.class_names is None else len(split.class_names),
                    "labels": split.labels is not None,
                    "replaced": [entry.model_dump() for entry in split.unreadable],
                    "fingerprint": self.pack.fingerprint(split),
                }
                for name, split in description.splits().items()
            },
        }


def pack_source(
    source: str,
    out: Path,
    overrides: Sequence[str],
    size: int | None,
    interpolation: str,
    *,
    threads: int | None = None,
) -> PackedData:
    """Packs the data of a recipe, or the data block that `source` spells out, and shows how far it
    is. Raises RecipeError, DataError, and SSLKitError where it was stopped."""
    require_one_process()
    if interpolation not in get_args(Interpolation):
        valid = " or ".join(get_args(Interpolation))
        raise RecipeError(f"--interpolation: got {interpolation!r}; valid is {valid}")
    settings = Settings(size=size, interpolation=cast(Interpolation, interpolation))
    data = load_data_block(source, overrides)
    progress = make_pack_progress("packing")
    try:
        num_threads = threads or available_cores()
        written = write_pack(data, out, settings, num_threads=num_threads, on_progress=progress)
        return PackedData(written)
    except KeyboardInterrupt:
        raise SSLKitError("stopped; the same command goes on from here") from None
    finally:
        progress.close()


def verify_pack(path: Path, threads: int | None = None) -> PackedData:
    """Checks every pixel of a pack and shows how far it is. Raises RecipeError, DataError, and
    SSLKitError where it was stopped."""
    progress = make_pack_progress("verifying")
    try:
        cores = threads or available_cores()
        return PackedData(verify(path, num_threads=cores, on_progress=progress))
    except KeyboardInterrupt:
        raise SSLKitError("stopped; nothing is known of the rest") from None
    finally:
        progress.close()


def available_cores() -> int:
    """Cores that this process may use; it changes the speed alone."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1
