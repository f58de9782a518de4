"""Data sets that torchvision knows, downloaded where there is internet."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import model_validator

from sslkit.api import DataSource, DataSourceConfig, ImageReader
from sslkit.builtin.sources.arrays import ArrayReader
from sslkit.builtin.sources.image_files import FileReader
from sslkit.builtin.sources.paths import missing
from sslkit.errors import DataError, RecipeError, first_line_of

Name = Literal[
    "cifar10", "cifar100", "stl10", "svhn", "mnist", "fashion_mnist", "kmnist", "imagenette"
]

_CLASSES: dict[str, str] = {
    "cifar10": "CIFAR10",
    "cifar100": "CIFAR100",
    "stl10": "STL10",
    "svhn": "SVHN",
    "mnist": "MNIST",
    "fashion_mnist": "FashionMNIST",
    "kmnist": "KMNIST",
    "imagenette": "Imagenette",
}


class Torchvision(DataSource):
    """A data set of torchvision. All but Imagenette are read into memory as one array.

    torchvision reads the CIFAR files with pickle, after it has compared their MD5 sums with the
    published ones."""

    class Config(DataSourceConfig):
        """Fields of the `torchvision` source."""

        dataset: Name
        """Which data set. MNIST and its relatives have one channel, the others three."""
        root: Path = Path("data")
        """Folder with the files, laid out as torchvision does it."""
        download: bool = False
        """Fetches missing files into `root`."""
        train_split: Literal["train", "unlabeled", "train+unlabeled", "train+extra"] = "train"
        """STL-10: also `unlabeled` (100,000 images) and `train+unlabeled`, both without labels;
        SVHN: also `train+extra`; the others have `train` only."""
        image_size: Literal["full", "320px", "160px"] = "full"
        """Imagenette: which of its three versions. Without effect on the others."""

        @model_validator(mode="after")
        def _check_split(self) -> Torchvision.Config:
            valid = {
                "stl10": ("train", "unlabeled", "train+unlabeled"),
                "svhn": ("train", "train+extra"),
            }.get(self.dataset, ("train",))
            if self.train_split not in valid:
                raise ValueError(
                    f"train_split {self.train_split!r} does not exist for {self.dataset}; "
                    f"valid: {', '.join(valid)}"
                )
            return self

    def __init__(self, config: Config) -> None:
        self.config = config

    def open(self, split: Literal["train", "test"]) -> ImageReader:
        """The reader of a split. Raises RecipeError where `root` lacks the files and `download` is
        off, DataError where they cannot be fetched or are damaged."""
        name = self.config.dataset
        if name == "imagenette":
            data = self._load(split="train" if split == "train" else "val")
            return _file_reader(data, Path(data._image_root))
        if name in ("stl10", "svhn"):
            wanted = self.config.train_split if split == "train" else "test"
            parts = ("train", "extra") if wanted == "train+extra" else (wanted,)
            readers = [_array_reader(self._load(split=part)) for part in parts]
            return readers[0] if len(readers) == 1 else _joined(readers)
        return _array_reader(self._load(train=split == "train"))

    def _load(self, **which: Any) -> Any:
        config = self.config
        if not config.download and not config.root.exists():
            raise missing("data.root", config.root, f"a folder with {config.dataset}")
        from torchvision import datasets

        create: Callable[..., Any] = getattr(datasets, _CLASSES[config.dataset])
        if config.dataset == "imagenette":
            which["size"] = config.image_size
        try:
            return create(str(config.root), **which)
        except (RuntimeError, FileNotFoundError) as error:
            if not config.download:
                raise RecipeError(
                    f"data.root: {config.root} does not hold {config.dataset} "
                    f"({first_line_of(error)}); expected the files as torchvision lays them out; "
                    "set data.download=true where there is internet, or correct data.root"
                ) from error
        try:
            return create(str(config.root), download=True, **which)
        except (RuntimeError, OSError) as error:
            raise DataError(
                f"data: {config.dataset} could not be downloaded to {config.root} "
                f"({first_line_of(error)}); check the connection and the disk, or fetch the files "
                "elsewhere and set data.root"
            ) from error


def _array_reader(data: Any) -> ArrayReader:
    """A reader of any torchvision data set that keeps `data` and its labels in memory."""
    images = _as_nhwc(np.asarray(data.data))
    given = data.targets if hasattr(data, "targets") else data.labels
    labels: NDArray[np.int64] | None = np.asarray(given).astype(np.int64)
    names: Sequence[str] | None = getattr(data, "classes", None)
    if labels is None or (labels < 0).any():  # the unlabelled part of STL-10
        return ArrayReader(images, None, None)
    if names is None:
        names = [str(name) for name in range(int(labels.max()) + 1)]
    return ArrayReader(images, labels, tuple(names))


def _as_nhwc(images: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """(N, H, W, C) from that, from (N, C, H, W), or from (N, H, W)."""
    if images.ndim == 3:
        return images[:, :, :, None]
    return images if images.shape[3] in (1, 3) else images.transpose(0, 2, 3, 1)


def _joined(readers: Sequence[ArrayReader]) -> ArrayReader:
    first = readers[0]
    labels = [reader.labels for reader in readers if reader.labels is not None]
    images = np.concatenate([reader.images for reader in readers])
    return ArrayReader(images, np.concatenate(labels), first.class_names)


def _file_reader(data: Any, root: Path) -> FileReader:
    paths = [str(Path(path).relative_to(root)) for path, _ in data._samples]
    labels = np.array([label for _, label in data._samples], dtype=np.int64)
    names = tuple(name[0] if isinstance(name, tuple) else name for name in data.classes)
    return FileReader(root, paths, 3, labels, names, {})
