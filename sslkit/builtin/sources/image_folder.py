"""Image files in folders, with or without classes."""

from __future__ import annotations

import os
from functools import cached_property
from pathlib import Path
from typing import Literal

import numpy as np

from sslkit.api import DataSource, DataSourceConfig
from sslkit.builtin.sources.image_files import IMAGE_SUFFIXES, FileReader, Found, find_images
from sslkit.builtin.sources.paths import missing
from sslkit.builtin.sources.regular_files import shown
from sslkit.builtin.sources.split_names import folder_split
from sslkit.errors import RecipeError

_LAYOUT = "class folders have every image exactly one level below (train/<class>/<image>)"


class ImageFolder(DataSource):
    """Image files below a folder. With class folders, each folder of the top level is a class."""

    class Config(DataSourceConfig):
        """Fields of the `image_folder` source."""

        train: Path
        """Folder with the training images."""
        test: Path | None = None
        """Folder with the test images. Its classes must be among those of `train`."""
        labels: Literal["folders", "none", "auto"] = "auto"
        """`folders`: train/<class>/<image>; `none`: no labels, images at any depth; `auto`:
        `folders` if every training image lies exactly one level below and there are at least two
        folders, else `none`. What came of it is recorded with the run."""
        channels: Literal[1, 3] = 3
        """Images are converted to grey (1) or RGB (3)."""

    def __init__(self, config: Config) -> None:
        self.config = config

    def open(self, split: Literal["train", "test"]) -> FileReader | None:
        """The reader of a split. Lists the folder and reads the headers of a few images.

        Raises RecipeError for paths and layouts that are not as the recipe says, DataError for
        folders that cannot be read."""
        root = self.config.train if split == "train" else self.config.test
        if root is None:
            return None
        found = self._train if split == "train" else _listed(f"data.{split}", root)
        if self.config.labels == "auto":
            _refuse_splits(f"data.{split}", root, found)
        if split == "test":
            _refuse_nested(self.config.train, root)
        details = {
            "labels": "none" if self._classes is None else "folders",
            "ignored_files": found.ignored.total(),
            "ignored_endings": {shown(name): n for name, n in found.ignored.most_common(20)},
        }
        channels, notes = self.config.channels, found.note(root)
        if self._classes is None:
            return FileReader(root, found.images, channels, None, None, details, notes)
        names = self._classes
        position = {name: index for index, name in enumerate(names)}
        self._check_classes(f"data.{split}", root, found, position)
        runs = list(found.images.runs())
        labels = np.repeat(
            np.array([position[run.folder] for run in runs], dtype=np.int64),
            [run.stop - run.start for run in runs],
        )
        shown_names = tuple(map(shown, names))
        return FileReader(root, found.images, channels, labels, shown_names, details, notes)

    @cached_property
    def _train(self) -> Found:
        return _listed("data.train", self.config.train)

    @cached_property
    def _classes(self) -> tuple[str, ...] | None:
        """The class names, by which `auto` is decided for both splits; None without labels."""
        if self.config.labels == "none":
            return None
        folders = [run.folder for run in self._train.images.runs()]
        names = sorted({folder for folder in folders if is_class_folder(folder)})
        in_classes = all(map(is_class_folder, folders))
        if self.config.labels == "auto" and not (in_classes and len(names) >= 2):
            return None
        return tuple(names)

    def _check_classes(
        self, field: str, root: Path, found: Found, position: dict[str, int]
    ) -> None:
        for run in found.images.runs():
            if not is_class_folder(run.folder):
                raise RecipeError(
                    f"{field}: {shown(root / found.images[run.start])} is not in a class folder; "
                    f"{_LAYOUT}; move it, or set data.labels=none"
                )
        unknown = sorted({run.folder for run in found.images.runs()} - position.keys())
        if unknown:
            names = ", ".join(map(shown, unknown[:5]))
            raise RecipeError(
                f"{field}: {root} has classes that data.train lacks: {names}; "
                f"valid are the {len(position)} folders of {self.config.train}; correct the paths, "
                "or set data.labels=none"
            )


def is_class_folder(folder: str) -> bool:
    """Whether it lies exactly one level below the folder of the split."""
    return bool(folder) and "/" not in folder


def _refuse_splits(field: str, root: Path, found: Found) -> None:
    """Raises RecipeError where the folders of the top level are splits rather than
    classes."""
    tops = sorted({run.folder.partition("/")[0] for run in found.images.runs() if run.folder})
    splits = {name: split for name in tops if (split := folder_split(name))}
    if len(set(splits.values())) < 2:
        return
    names = list(splits)
    wanted = "train" if field == "data.train" else "test"
    best = next((name for name in names if splits[name] == wanted), names[0])
    raise RecipeError(
        f"{field}: {root} holds {' and '.join(names)}, which are splits and not classes; write "
        f"{field}={root / best}, or data.labels=folders where they are classes, or "
        "data.labels=none to take all of them"
    )


def _refuse_nested(train: Path, test: Path) -> None:
    """Raises RecipeError where one of the folders holds the other."""
    outer, inner = os.path.realpath(train), os.path.realpath(test)
    if os.path.commonpath([outer, inner]) not in (outer, inner):
        return
    how = "is" if outer == inner else "lies inside" if inner.startswith(outer) else "holds"
    raise RecipeError(
        f"data.test: {test} {how} the folder of the training images, {train}, so that test images "
        "are training images; name folders apart from each other, set data.test_fraction, or leave "
        "data.test out"
    )


def _listed(field: str, root: Path) -> Found:
    if not root.exists():
        raise missing(field, root, "a folder of images")
    if not root.is_dir():
        raise RecipeError(
            f"{field}: {root} is a file; expected a folder of images; "
            "for Parquet files use data.name=parquet"
        )
    found = find_images(root)
    if not found.images:
        others = found.ignored.total()
        raise RecipeError(
            f"{field}: {root} holds no images ({others} other files); expected files that end in "
            f"{' '.join(sorted(IMAGE_SUFFIXES))}; correct the path"
        )
    return found
