"""The images of a run: those of the recipe, and those that entries of `evaluate` bring."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from functools import partial

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from sslkit.api import (
    DataSource,
    DataSourceConfig,
    OwnDataEvaluator,
    RunFacts,
    Slot,
    SplitReader,
    StreamReader,
)
from sslkit.data.cached_split import CachedSplit
from sslkit.data.examine import examine, shared_images
from sslkit.data.splits import Splits, notes_of, open_splits
from sslkit.engine.display import Display
from sslkit.errors import DataError, PluginError, RecipeError
from sslkit.parallel.world import World
from sslkit.recipe import Recipe


@dataclass(frozen=True)
class Stores(Splits[CachedSplit]):
    """Both splits of a data source, small images decoded into memory."""

    elsewhere: Mapping[str, Stores] = field(default_factory=dict)
    """Path of an entry of `evaluate` -> the images that it brings; one object for entries that
    bring the same."""

    def agree(self, world: World) -> None:
        """Makes labels the same on all ranks: see `CachedSplit.agree`."""
        for split in self.present().values():
            split.agree(world)
        for stores in {id(each): each for each in self.elsewhere.values()}.values():
            stores.agree(world)

    @property
    def fingerprints(self) -> dict[str, str]:
        """Split -> fingerprint, with the path before it for images that an entry brings."""
        found: dict[str, str] = {split: each.fingerprint for split, each in self.present().items()}
        for path, stores in self.elsewhere.items():
            found |= {f"{path} {split}": each for split, each in stores.fingerprints.items()}
        return found


def brought_data(recipe: Recipe) -> dict[str, Slot[DataSource]]:
    """Path of an entry of `evaluate` -> the data source that it brings to measure on. Those that
    measure on data of their own alone open it themselves."""
    return {
        f"evaluate.{place}": data
        for place, slot in enumerate(recipe.evaluate)
        if not issubclass(slot.cls, OwnDataEvaluator)
        and (data := getattr(slot.config, "data", None)) is not None
    }


def brought_facts(recipe: Recipe, facts: RunFacts) -> dict[str, RunFacts]:
    """The same paths -> what is known of that data. facts: those of the run.

    Raises RecipeError where it cannot be opened, or does not suit the encoder."""
    found = {}
    for path, data in brought_data(recipe).items():
        try:
            splits = open_splits(data)
        except (RecipeError, DataError, PluginError) as error:
            lines = str(error).splitlines()
            raise RecipeError(*(f"{path}.{line}" if line.startswith("data") else
                                f"{path}.data: {line}" for line in lines)) from error  # fmt: skip
        sample = splits.train.sample
        if sample.is_image != facts.sample.is_image:
            raise RecipeError(
                f"{path}.data: its samples are {sample}, and the encoder takes {facts.sample}; "
                "choose other data"
            )
        if sample.channels != facts.channels:
            raise RecipeError(
                f"{path}.data: its images have {sample.channels} channel(s), and the encoder "
                f"takes {facts.channels}; choose other data, or set its channels"
            )
        found[path] = replace(
            facts,
            num_images=len(splits.train),
            image_size=getattr(splits.train, "image_size", None),
            other_samples=None if sample.is_image else sample,
            streamed=isinstance(splits.train, StreamReader),
            num_classes=count_classes(splits.train),
            num_test_images=0 if splits.test is None else len(splits.test),
            test_has_labels=splits.test is not None and splits.test.labels is not None,
            data_notes=notes_of(splits),
            class_sizes=class_sizes(splits.train.labels),
        )
    return found


def count_classes(reader: SplitReader) -> int | None:
    """Number of classes; None without labels, also where every one is negative."""
    if reader.labels is None or not (reader.labels >= 0).any():
        return None
    return len(reader.class_names) if reader.class_names else int(reader.labels.max()) + 1


def class_sizes(labels: NDArray[np.int64] | Tensor | None) -> tuple[int, ...]:
    """Images of each class that has any, in the order of the classes. labels: negative where an
    image has none."""
    if labels is None:
        return ()
    counts = np.unique(np.asarray(labels)[np.asarray(labels) >= 0], return_counts=True)[1]
    return tuple(counts.tolist())


def open_stores(recipe: Recipe, display: Display, world: World | None = None) -> Stores:
    """The images of the recipe, examined; what there is to say of them is shown and noted.
    world: ranks that open them together."""
    own = _open(recipe, recipe.data, "data", display, world)
    opened: dict[Slot[DataSource], Stores] = {}
    elsewhere = {}
    for path, data in brought_data(recipe).items():
        if data not in opened:
            opened[data] = _open(recipe, data, f"{path}.data", display, world)
            _say_shared(own, opened[data], path, display)
        elsewhere[path] = opened[data]
    return Stores(own.train, own.test, elsewhere)


def _open(
    recipe: Recipe, data: Slot[DataSource], field: str, display: Display, world: World | None
) -> Stores:
    opened = open_splits(data).map(partial(open_store, recipe, data, world=world))
    train, test = opened.train, opened.test
    sizes = f"{len(train):,} training"
    nouns = f"{train.sample.noun}s" + (" an epoch" if train.streamed else "")
    sizes += f" and {len(test):,} test {nouns}" if test else f" {nouns}, no test split"
    display.message(f"{field}: {data.name}, {sizes}, {train.place}")
    train.notes = tuple(examine(opened))
    for note in train.notes:
        display.message(f"warning: {field}: {note}")
    return Stores(train, test)


def open_store(
    recipe: Recipe,
    data: Slot[DataSource],
    reader: SplitReader,
    *,
    world: World | None = None,
) -> CachedSplit:
    """The images of a split. world: ranks that open it together."""
    config = data.config
    assert isinstance(config, DataSourceConfig)
    return CachedSplit(
        reader,
        max_corrupt_fraction=config.max_corrupt_fraction,
        seed=recipe.seed,
        num_threads=max(1, recipe.train.loader_threads),
        world=world,
    )


def _say_shared(own: Stores, brought: Stores, path: str, display: Display) -> None:
    """Notes test images that the run trains on: without labels, but it has seen them."""
    if brought.test is None:
        return
    shared = shared_images(own.train, brought.test)
    if shared is None or not shared.number:
        return
    note = f"the run trains on test images of {path}: {shared}"
    own.train.notes = (*own.train.notes, note)
    display.message(f"warning: {path}.data: {note}")
