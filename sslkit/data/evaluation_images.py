"""Images for evaluation: deterministic batches of a split, pairs of augmented views, and what an
evaluator needs to train networks of its own."""

from __future__ import annotations

from collections.abc import Generator, Iterator
from contextlib import closing
from dataclasses import replace
from functools import partial

import torch
from torch import Tensor, nn

from sslkit.api import Augmentation, Batch, EvaluationImages, Preprocess, Split, StreamReader
from sslkit.api.evaluation_inputs import EVALUATION_BATCH
from sslkit.data.cached_split import CachedSplit
from sslkit.data.loader import TrainLoader
from sslkit.data.resize import prepare_for_encoder
from sslkit.data.sampler import ShuffledSampler, shuffled_positions
from sslkit.data.splits import Splits
from sslkit.data.view_base import Chunk, ViewMaker
from sslkit.data.views import view_maker
from sslkit.errors import DataError
from sslkit.evaluation.labels import numbered_classes
from sslkit.nn.batch_norm import (
    batch_statistics,
    calibrate_batch_norm,
    copy_batch_statistics,
    has_batch_statistics,
)
from sslkit.nn.compute import Compute
from sslkit.parallel.shared_work import SharedWork
from sslkit.randomness import Order, SampleRandom, stream_key
from sslkit.threads import ordered_groups

_CALIBRATION_IMAGES = 10_000
_PAIR_CHUNK = 256
_DECODE_CHUNK = 16


def evaluation_batches(
    store: CachedSplit,
    preprocess: Preprocess | None,
    batch_size: int,
    device: torch.device | str,
    indices: Tensor | None = None,
) -> Generator[Tensor, None, None]:
    """Yields (B, C, S, S) float32 in [0, 1]: every image once and in order, the last batch partial.

    The shorter side is resized to `preprocess.resize`, then the centre is cropped. Without
    `preprocess` samples come whole: (B, *shape), pixels as float32 in [0, 1], others as the reader
    gives them. indices: (M,) int64 positions in the split, where only some are wanted. Raises
    DataError.
    """
    device = torch.device(device)
    if indices is None:
        indices = torch.arange(len(store))
    indices = indices.cpu()
    if store.resident is None:
        yield from _decoded_batches(store, preprocess, batch_size, device, indices)
        return
    for rows in torch.split(indices, batch_size) if len(indices) else ():
        samples = _in_unit_range(store, store.resident.index_select(0, rows).to(device))
        yield samples if preprocess is None else prepare_for_encoder(samples, preprocess)


def calibration_rows(store: CachedSplit, seed: int) -> Tensor:
    """Positions (M,) of the training images whose batch statistics every encoder gets, in random
    order: folders are sorted by class, and batches of one class would bias the statistics. Those of
    a stream are its first."""
    if isinstance(store.reader, StreamReader):
        stop = min(len(store), _CALIBRATION_IMAGES)
        return shuffled_positions(0, stop, store.reader.shuffle, seed)
    return Order(seed, 0, len(store))[:_CALIBRATION_IMAGES]


def calibrate(
    network: nn.Module,
    store: CachedSplit,
    preprocess: Preprocess | None,
    *,
    seed: int,
    compute: Compute,
    work: SharedWork | None = None,
) -> None:
    """Gives a network the batch statistics with which it is measured and exported, in place: those
    of up to 10,000 training images, prepared as for evaluation. See `calibrate_batch_norm`.

    store: the training split. seed: of the recipe. work: of ranks that all have the network, and
    share the images; None: this one alone. Raises DataError."""
    if not has_batch_statistics(network):
        return
    work = work or SharedWork()
    parts = list(torch.split(calibration_rows(store, seed), EVALUATION_BATCH))
    if len(parts) > 1 and len(parts[-1]) == 1:  # one image has no batch statistics
        parts[-2:] = [torch.cat(parts[-2:])]
    own = work.own(parts)
    rows = torch.cat(own) if own else torch.empty(0, dtype=torch.int64)
    batches = evaluation_batches(store, preprocess, EVALUATION_BATCH, compute.device, rows)
    with closing(batches):
        in_order = partial(work.in_order, count=len(parts))
        calibrate_batch_norm(network, batches, compute, in_order)
    if work.world.size > 1:  # rank 0 has put them together
        copy_batch_statistics(network, work.world.broadcast(batch_statistics(network)))


def _decoded_batches(
    store: CachedSplit,
    preprocess: Preprocess | None,
    batch_size: int,
    device: torch.device,
    indices: Tensor,
) -> Iterator[Tensor]:
    shape = _prepared_shape(store, preprocess)

    def decode(chunk: tuple[Tensor, Tensor]) -> None:
        for index, target in zip(chunk[0].tolist(), chunk[1], strict=True):
            sample = store.read(index)
            if preprocess is not None:
                sample = prepare_for_encoder(sample[None], preprocess)[0]
            target.copy_(sample)

    def groups() -> Iterator[tuple[Tensor, list[tuple[Tensor, Tensor]]]]:
        for rows in torch.split(indices, batch_size) if len(indices) else ():
            batch = torch.empty(
                (len(rows), *shape),
                dtype=store.sample.torch_dtype,
                pin_memory=device.type == "cuda",
            )
            chunks = zip(
                torch.split(rows, _DECODE_CHUNK), torch.split(batch, _DECODE_CHUNK), strict=True
            )
            yield batch, list(chunks)

    with closing(ordered_groups(decode, groups(), num_threads=store.num_threads)) as decoded:
        for batch, _ in decoded:
            yield _in_unit_range(store, batch.to(device, non_blocking=device.type == "cuda"))


def _in_unit_range(store: CachedSplit, samples: Tensor) -> Tensor:
    """Pixels as values in [0, 1]; what is no image as it is."""
    return samples / 255.0 if store.sample.is_image else samples


def _prepared_shape(store: CachedSplit, preprocess: Preprocess | None) -> tuple[int, ...]:
    if preprocess is not None:
        return store.channels, preprocess.size, preprocess.size
    if store.sample.sides is None:
        raise DataError(
            f"data: the samples are {store.sample} and the backbone takes whole ones of one shape; "
            "pad or cut them in the data source"
        )
    return tuple(side for side in store.sample.shape if side is not None)


def augmented_pairs(
    store: CachedSplit,
    augmentation: Augmentation,
    num: int,
    seed: int,
    device: torch.device | str,
    maker: ViewMaker | None = None,
) -> tuple[Tensor, Tensor]:
    """Two augmented views of `num` images that only `seed` and the size of the set choose.

    Returns two tensors (num, *shape of the view), row i of both from the same image; num is the
    number of images if there are fewer. The views are the first two global ones of the
    augmentation; where it makes only one, that one is drawn twice. maker: of this store and this
    augmentation; a new one may copy all images to the device.
    """
    every = SampleRandom(seed, "pairs", 0, torch.arange(len(store)))
    chosen = every.bits("subset", 1).flatten().argsort(stable=True)[:num].sort().values
    maker = maker or view_maker(store, augmentation, torch.device(device))
    numbers = [i for i, view in enumerate(augmentation.views) if view.role == "global"]
    first, second = (numbers or [0])[0], numbers[1] if len(numbers) > 1 else None

    def views(draw: int) -> Iterator[tuple[Tensor, ...]]:
        def groups() -> Iterator[tuple[None, list[Chunk]]]:
            for indices in torch.split(chosen, _PAIR_CHUNK):
                yield None, maker.chunks(SampleRandom(seed, "augmented_pairs", draw, indices))

        num_threads = store.num_threads if maker.threaded else 0
        with closing(ordered_groups(maker.prepare, groups(), num_threads=num_threads)) as prepared:
            for _, parts in prepared:
                yield maker.finish(parts).images

    made = list(views(0))
    others = [view[first] for view in views(1)] if second is None else [v[second] for v in made]
    return torch.cat([view[first] for view in made]), torch.cat(others)


class StoredImages(EvaluationImages):
    """The images of two stores, for evaluators. Images that lie on the training device already, for
    the views of the run, are used where they are."""

    def __init__(
        self,
        splits: Splits[CachedSplit],
        preprocess: Preprocess | None,
        compute: Compute,
        *,
        seed: int,
        augmentation: Augmentation,
        maker: ViewMaker | None = None,
    ) -> None:
        """seed, augmentation: of the recipe. maker: of the training views, where there is one."""
        self.compute = compute
        self.channels = splits.train.channels
        self.sample = splits.train.sample
        self._preprocess = preprocess
        self._splits = splits
        self._train = splits.train
        self.class_names = tuple(
            splits.train.class_names or numbered_classes(self.labels("train"), self.labels("test"))
        )
        self._augmentation = augmentation
        self._recipe_seed = seed
        self._seed = stream_key(seed, "evaluation", "images")[0]
        self._run_maker = maker  # of the views of `augmentation`
        self._maker = maker

    @property
    def preprocess(self) -> Preprocess:
        """How images are prepared. Raises DataError where the encoder takes other samples."""
        if self._preprocess is None:
            raise DataError(
                f"data: the encoder takes samples of {self._train.sample}, which are not prepared "
                "as images are; choose evaluators that train no network on images"
            )
        return self._preprocess

    def num_images(self, split: Split) -> int:
        return len(self._splits.of(split) or ())

    def labels(self, split: Split) -> Tensor:
        store = self._splits.of(split)
        if store is not None and store.labels is not None:
            return store.labels
        return torch.full((self.num_images(split),), -1)

    def augmented(
        self, augmentation: Augmentation, *, batch_size: int, rows: Tensor | None = None
    ) -> TrainingBatches:
        if self._maker is None:
            self._maker = view_maker(self._train, augmentation, self.device)
        rows = None if rows is None else rows.cpu()
        count = len(self._train) if rows is None else len(rows)
        loader = TrainLoader(
            self._maker.with_augmentation(augmentation),
            ShuffledSampler(len(self._train), min(batch_size, count), self._seed, rows),
            seed=self._seed,
            num_threads=self._train.num_threads,
        )
        return TrainingBatches(loader, self.compute)

    def preprocessed(
        self, split: Split, rows: Tensor | None = None, batch_size: int = EVALUATION_BATCH
    ) -> Iterator[Tensor]:
        store = self._splits.of(split)
        if store is None:
            raise DataError(f"data: there is no {split} split; choose evaluators that need none")
        batches = evaluation_batches(store, self._preprocess, batch_size, self.device, rows)
        with closing(batches):
            for images in batches:
                yield self.compute.layout(images)

    def pairs(self, num: int) -> tuple[Tensor, Tensor]:
        return augmented_pairs(
            self._train,
            self._augmentation,
            num,
            self._recipe_seed,
            self.device,
            self._run_maker,
        )

    def calibrate(self, network: nn.Module, work: SharedWork | None = None) -> None:
        """See `EvaluationImages.calibrate`. work: of ranks that all have the network, and call this
        together; None: this one alone."""
        calibrate(
            network,
            self._train,
            self._preprocess,
            seed=self._recipe_seed,
            compute=self.compute,
            work=work,
        )


class TrainingBatches:
    """The batches of a loader, in the memory format of the networks."""

    def __init__(self, loader: TrainLoader, compute: Compute) -> None:
        self._loader = loader
        self._compute = compute

    @property
    def steps_per_epoch(self) -> int:
        """Batches in an epoch."""
        return self._loader.steps_per_epoch

    def epoch(self, epoch: int) -> Iterator[Batch]:
        """The batches of an epoch, on the training device."""
        batches = self._loader.epoch(epoch)
        with closing(batches):
            for batch in batches:
                yield replace(batch, views=tuple(map(self._compute.layout, batch.views)))
