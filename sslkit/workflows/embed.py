"""Features of a data source by the encoder of a run, as a Parquet file and as maps."""

from __future__ import annotations

import dataclasses
import json
import os
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import torch

from sslkit import __version__
from sslkit.api import Backbone, DataSource, DataSourceConfig, Slot
from sslkit.data.cached_split import CachedSplit
from sslkit.data.evaluation_images import evaluation_batches
from sslkit.data.pack_writer import only_writer
from sslkit.data.splits import open_splits
from sslkit.engine.pack_progress import PackProgress, make_pack_progress
from sslkit.errors import DataError, RecipeError, SSLKitError, message_of
from sslkit.evaluation.features import count_not_finite, extract, state_digest
from sslkit.experiment.encoder import load_encoder, trained_on
from sslkit.experiment.networks import described_preparation, refuse_unlike_samples
from sslkit.experiment.resolve import resolve_device
from sslkit.files import remove_parts, replacing
from sslkit.nn.compute import Compute
from sslkit.parallel.finding import require_one_process
from sslkit.recipe import load_data_block, load_recipe
from sslkit.report.maps import choose_images, draw_map
from sslkit.report.projection import LEAST_IMAGES, project
from sslkit.runs.folder import run_folder_of

from .feature_file import METADATA, FeatureFile
from .pack import available_cores

if TYPE_CHECKING:
    import pyarrow as pa

_BATCH = 512
_ROW_GROUP = 16 * _BATCH
"""Rows that are held until they are written."""
_SEED = 0
"""Seed of the choice of what stands in for an unreadable image, whose row is then left out."""


@dataclasses.dataclass(frozen=True)
class EmbeddedFile:
    """What was written."""

    path: Path
    rows: int
    width: int
    """Numbers in a feature."""
    labels: bool
    left_out: int
    """Unreadable images, which have no row."""
    origin: dict[str, Any]
    """The metadata: run, encoder, data, preprocessing."""

    def to_json(self) -> dict[str, Any]:
        """Ready for JSON."""
        return {**dataclasses.asdict(self), "path": str(self.path)}


def embed_source(
    run: str | Path,
    out: Path,
    source: str | None = None,
    overrides: Sequence[str] = (),
    *,
    split: Literal["train", "test"] = "train",
    device: str = "auto",
) -> EmbeddedFile:
    """Writes the features of one split of a data source, in float32, to a Parquet file.

    run: a run folder, a checkpoint or an encoder.safetensors. source: a recipe, whose data is
    taken, or a data block in braces; None: the data of the run. Columns: `index` (int64, position
    in the split), `label` (int64; only where there are labels, null where an image has none),
    `image` (text: its path, or what else the source calls it) and `feature` (fixed-size list of
    float32). The images go through the evaluation transform of the encoder, as for every evaluator;
    at most 8,192 features are held at a time. Unreadable images have no row. The file appears when
    it is complete and replaces what was there.

    Raises RecipeError, DataError, CheckpointError, and SSLKitError where it was stopped."""
    require_one_process()
    data = _data(run, source, overrides)
    encoder = load_encoder(run)
    store = _open(data, split)
    on = torch.device(resolve_device(device, "--device"))
    encoder.to(on)
    refuse_unlike_samples(str(run), encoder, trained_on(run), store.sample)
    origin = _origin(run, encoder, data, store, split, on)
    progress = make_pack_progress("embedding")
    try:
        rows = _write(out, encoder, store, split, on, origin, progress)
    except KeyboardInterrupt:
        raise SSLKitError("stopped; nothing was kept") from None
    finally:
        progress.close()
    labelled = store.labels is not None
    return EmbeddedFile(out, rows, encoder.num_features, labelled, len(store) - rows, origin)


def _data(run: str | Path, source: str | None, overrides: Sequence[str]) -> Slot[DataSource]:
    if source is not None:
        return load_data_block(source, overrides)
    path = Path(run)
    if path.suffix == ".safetensors":
        raise RecipeError(f"{path}: an encoder alone has no data; name a recipe or a data block")
    return load_recipe(run_folder_of(path).recipe, overrides).data


def _open(data: Slot[DataSource], split: Literal["train", "test"]) -> CachedSplit:
    reader = open_splits(data).of(split)
    if reader is None:
        raise RecipeError(f"--split {split}: '{data.name}' has no {split} images; take the other")
    assert isinstance(data.config, DataSourceConfig)
    return CachedSplit(
        reader,
        max_corrupt_fraction=data.config.max_corrupt_fraction,
        seed=_SEED,
        num_threads=available_cores(),  # no effect on results
    )


def _origin(
    run: str | Path,
    encoder: Backbone,
    data: Slot[DataSource],
    store: CachedSplit,
    split: str,
    device: torch.device,
) -> dict[str, Any]:
    return {
        "sslkit": __version__,
        "run": str(run),
        "encoder": state_digest(encoder),
        "preprocess": described_preparation(encoder),
        "data": data.dump(),
        "split": split,
        "fingerprint": store.fingerprint,
        "class_names": None if store.class_names is None else list(store.class_names),
        "precision": "fp32",
        "device": str(device),
    }


def _write(
    out: Path,
    encoder: Backbone,
    store: CachedSplit,
    split: str,
    device: torch.device,
    origin: dict[str, Any],
    progress: PackProgress,
) -> int:
    """Writes beside `out`, then renames. Returns the number of rows."""
    from pyarrow import parquet

    schema = _schema(encoder.num_features, store.labels is not None, origin)
    if out.is_dir():
        raise RecipeError(f"--out {out}: is a folder; name the file to write, such as x.parquet")
    rows = 0
    with _said_where(out), ExitStack() as stack:
        try:
            out.parent.mkdir(parents=True, exist_ok=True)
            stack.enter_context(only_writer(out))
            remove_parts(out)
            temporary = stack.enter_context(replacing(out))
        except OSError as error:
            raise RecipeError(
                f"--out {out}: cannot be made ({error.strerror}); choose another place"
            ) from error
        writer = stack.enter_context(parquet.ParquetWriter(temporary, schema, use_dictionary=False))
        for table in _tables(encoder, store, split, device, schema, progress):
            writer.write_table(table)
            rows += table.num_rows
    return rows


@contextmanager
def _said_where(out: Path) -> Iterator[None]:
    """Says which file cannot be written: Arrow does not."""
    try:
        yield
    except OSError as error:
        why = os.strerror(error.errno) if error.errno else message_of(error)
        raise SSLKitError(
            f"--out {out}: cannot be written ({why}); nothing was kept: mend that, or choose "
            "another place, and give the command again"
        ) from error


def _schema(width: int, labelled: bool, origin: dict[str, Any]) -> pa.Schema:
    import pyarrow as pa

    fields = [pa.field("index", pa.int64(), nullable=False)]
    if labelled:
        fields.append(pa.field("label", pa.int64()))
    fields.append(pa.field("image", pa.string(), nullable=False))
    fields.append(pa.field("feature", pa.list_(pa.float32(), width)))
    return pa.schema(fields, {METADATA: json.dumps(origin).encode()})


def _tables(
    encoder: Backbone,
    store: CachedSplit,
    split: str,
    device: torch.device,
    schema: pa.Schema,
    progress: PackProgress,
) -> Iterator[pa.Table]:
    """Row groups, in the order of the images."""
    import pyarrow as pa

    total = len(store)
    progress(split, 0, total)
    for start in range(0, total, _ROW_GROUP):
        indices = torch.arange(start, min(start + _ROW_GROUP, total))
        batches = evaluation_batches(store, encoder.preparation, _BATCH, device, indices)
        features = extract(encoder, batches, Compute(device, "fp32", channels_last=False)).cpu()
        if broken := count_not_finite(features):
            raise DataError(
                f"features of {broken} of the images {start} to {start + len(indices) - 1} are not "
                "finite; see whether the run has diverged"
            )
        # Which images are unreadable is known only now, after they were read.
        kept = torch.tensor([index not in store.corrupt for index in indices.tolist()])
        indices, features = indices[kept], features[kept]
        columns = [pa.array(indices.numpy())]
        if store.labels is not None:
            labels = store.labels[indices]
            columns.append(pa.array(labels.numpy(), mask=(labels < 0).numpy()))
        columns.append(pa.array([_name(store, index) for index in indices.tolist()]))
        flat = pa.array(features.contiguous().flatten().numpy())
        columns.append(pa.FixedSizeListArray.from_arrays(flat, features.shape[1]))
        progress(split, start + len(kept), total)
        yield pa.table(columns, schema=schema)


def _name(store: CachedSplit, index: int) -> str:
    """What the source calls an image; Parquet holds UTF-8, and names of files need not be."""
    return store.reader.describe(index).encode("utf-8", "backslashreplace").decode()


def draw_maps(path: Path, methods: Sequence[str]) -> list[Path]:
    """Maps of at most 2,000 rows of a file that `embed_source` wrote, beside it: `features.pca.png`
    of `features.parquet`. methods: of `sslkit.report.projection.METHODS`.

    Raises DataError where there are too few rows, and what reading the file raises."""
    file = FeatureFile(path)
    labels, names = file.numbers("label"), file.origin["class_names"]
    images = choose_images(file.num_rows, labels, names, seed=_SEED)
    if len(images.rows) < LEAST_IMAGES:
        raise DataError(f"{path}: a map takes {LEAST_IMAGES} images, there are {file.num_rows}")
    features = file.rows(images.rows)
    written = []
    for method in methods:
        figure = draw_map({file.origin["run"]: project(features, method, _SEED)}, images, method)
        written.append(path.with_suffix(f".{method}.png"))
        figure.savefig(written[-1], dpi=150)
    return written
