"""Exporting an encoder: write, load back, compare, keep."""

from __future__ import annotations

import dataclasses
import json
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from math import isnan
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from torch import Tensor

from sslkit.data.pack_writer import only_writer
from sslkit.errors import ExportError, RecipeError, SSLKitError, failure_of
from sslkit.files import UMASK, flush, reason, remove_parts
from sslkit.parallel.finding import require_one_process
from sslkit.runs.folder import RunFolder

from . import card, preprocessing
from .formats import Format, find_format
from .round_trip import TOLERANCE, Difference, compare, reference
from .sample_images import Probe, make_probe
from .source import ExportSource, open_source


@dataclasses.dataclass(frozen=True)
class Exported:
    """An export that was kept."""

    folder: Path
    format: str
    file: Path
    """The file with the network."""
    difference: Difference
    """From the encoder's features."""
    images: str
    """What they were compared on."""
    synthetic: bool
    """Whether those images stand in for data that could not be read."""

    def to_json(self) -> dict[str, Any]:
        """Ready for JSON."""
        return {
            "folder": str(self.folder),
            "format": self.format,
            "file": str(self.file),
            "relative_difference": self.difference.relative,
            "tolerance": TOLERANCE,
            "images": self.images,
            "synthetic": self.synthetic,
        }


def export_encoder(run: str | Path, format: str, out: Path | None = None) -> Exported:
    """Exports the encoder of a run folder, a checkpoint or an encoder.safetensors to a new folder
    (default: `exports/<run>-<format>`), with `preprocess.json` and a model card.

    format: `timm`, `onnx` or `torch-export`. What was written is loaded from disk again and embeds
    images of the run's data, as `preprocess.json` says; the folder appears only if its features are
    those of the encoder to 1e-5 of their root mean square.

    Raises ExportError, CheckpointError, RecipeError and RunFolderError."""
    require_one_process()
    chosen, path = find_format(format), Path(run)
    target = (out or _default_folder(path, format)).absolute()
    if target.exists():
        raise RecipeError(f"--out {target}: exists already; choose another folder or remove it")
    source = open_source(path)
    probe = make_probe(source)
    expected = reference(source, probe)
    try:
        with _appearing(target) as folder:
            _write(chosen, source, folder)
            difference = _difference(chosen, folder, expected, probe)
            if not difference.relative <= TOLERANCE:  # also where it is not a number
                raise _not_kept(difference, probe)
            text = card.model_card(chosen, source, difference, probe)
            (folder / card.FILE).write_text(text, encoding="utf-8")
    except ExportError as error:
        raise ExportError(f"{target}: not kept: {error}") from error
    except (OSError, SafetensorError) as error:  # the latter for a full disk, too
        raise ExportError(
            f"{target}: cannot be written ({reason(error)}); nothing was kept: mend that, or "
            "choose another place, and give the command again"
        ) from error
    except KeyboardInterrupt:
        raise SSLKitError("stopped; nothing was kept") from None
    return Exported(target, format, target / chosen.file, difference, probe.origin, probe.synthetic)


def _default_folder(path: Path, format: str) -> Path:
    """`exports/<run>-<format>`; a checkpoint adds its step."""
    place = path.absolute()
    if place == RunFolder(place.parent).encoder:
        names = [place.parent.name]
    elif place.parent == RunFolder(place.parents[1]).checkpoints:
        names = [place.parents[1].name, place.stem]
    else:
        names = [place.stem if place.is_file() else place.name]
    return Path("exports", "-".join([*names, format]))


def _write(chosen: Format, source: ExportSource, folder: Path) -> None:
    chosen.write(source, folder)
    described = preprocessing.describe(source, chosen.file, chosen.normalization_inside)
    text = json.dumps(described, indent=2) + "\n"
    (folder / preprocessing.FILE).write_text(text, encoding="utf-8")


def _difference(chosen: Format, folder: Path, expected: Tensor, probe: Probe) -> Difference:
    """The largest difference over all ways to load the export. Raises ExportError where it cannot
    be loaded or run."""
    try:
        found = [compare(expected, embed, folder, probe) for embed in chosen.load(folder)]
    except ExportError:
        raise
    except Exception as error:  # whatever the library that loads it raises
        raise ExportError(f"loaded again, it fails: {failure_of(error)}") from error
    return max(found, key=lambda difference: (isnan(difference.relative), difference.relative))


def _not_kept(difference: Difference, probe: Probe) -> ExportError:
    return ExportError(
        f"its features differ from the encoder's by up to {difference.relative:.1e} of their "
        f"scale ({difference.scale:.3g}), on {probe.origin}; at most {TOLERANCE:.0e} is allowed"
    )


@contextmanager
def _appearing(target: Path) -> Iterator[Path]:
    """A folder beside `target`, which becomes it at the end and is removed where that fails. What
    killed processes left of it is removed."""
    with ExitStack() as stack:
        try:
            target.parent.mkdir(parents=True, exist_ok=True)
            stack.enter_context(only_writer(target))
            remove_parts(target)
            made = tempfile.mkdtemp(dir=target.parent, prefix=f".{target.name}.", suffix=".tmp")
        except OSError as error:
            raise RecipeError(
                f"--out {target}: cannot be made ({error.strerror}); choose another place"
            ) from error
        with _renamed(Path(made), target):
            yield Path(made)


@contextmanager
def _renamed(temporary: Path, target: Path) -> Iterator[None]:
    try:
        yield
        for path in temporary.iterdir():
            path.chmod(0o666 & ~UMASK)  # safetensors, as mkdtemp, lets only the owner read
            flush(path)
        temporary.chmod(0o777 & ~UMASK)
        flush(temporary)
        temporary.rename(target)
    except BaseException:
        shutil.rmtree(temporary, ignore_errors=True)
        raise
