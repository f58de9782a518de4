"""Images for evaluation: deterministic batches of a split, and pairs of augmented views."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import closing

import torch
from torch import Tensor

from sslkit.data.prefetch import ordered_groups
from sslkit.data.resize import prepare_for_encoder
from sslkit.data.store import ImageStore
from sslkit.data.views import Chunk, ViewMaker, view_maker
from sslkit.interfaces import Augmentation, Preprocess
from sslkit.randomness import SampleRandom

_PAIR_CHUNK = 256
_DECODE_CHUNK = 16


def evaluation_batches(
    store: ImageStore,
    preprocess: Preprocess,
    batch_size: int,
    device: torch.device | str,
    indices: Tensor | None = None,
) -> Iterator[Tensor]:
    """Yields (B, C, S, S) float32 in [0, 1]: every image once and in order, the last batch partial.

    The shorter side is resized to `preprocess.resize`, then the centre is cropped. indices: (M,)
    int64 positions in the split, where only some are wanted. Raises DataError.
    """
    device = torch.device(device)
    if indices is None:
        indices = torch.arange(len(store))
    indices = indices.cpu()
    if store.resident is None:
        yield from _decoded_batches(store, preprocess, batch_size, device, indices)
        return
    for rows in torch.split(indices, batch_size):
        images = store.resident.index_select(0, rows).to(device)
        yield prepare_for_encoder(images / 255.0, preprocess)


def _decoded_batches(
    store: ImageStore,
    preprocess: Preprocess,
    batch_size: int,
    device: torch.device,
    indices: Tensor,
) -> Iterator[Tensor]:
    def decode(chunk: tuple[Tensor, Tensor]) -> None:
        for index, target in zip(chunk[0].tolist(), chunk[1], strict=True):
            target.copy_(prepare_for_encoder(store.read(index)[None], preprocess)[0])

    def groups() -> Iterator[tuple[Tensor, list[tuple[Tensor, Tensor]]]]:
        for rows in torch.split(indices, batch_size):
            shape = (len(rows), store.channels, preprocess.size, preprocess.size)
            batch = torch.empty(shape, dtype=torch.uint8, pin_memory=device.type == "cuda")
            chunks = zip(
                torch.split(rows, _DECODE_CHUNK), torch.split(batch, _DECODE_CHUNK), strict=True
            )
            yield batch, list(chunks)

    with closing(ordered_groups(decode, groups(), num_threads=store.num_threads)) as decoded:
        for batch, _ in decoded:
            on_device = batch.to(device, non_blocking=device.type == "cuda")
            yield on_device / 255.0


def augmented_pairs(
    store: ImageStore,
    augmentation: Augmentation,
    num: int,
    seed: int,
    device: torch.device | str,
    maker: ViewMaker | None = None,
) -> tuple[Tensor, Tensor]:
    """Two augmented views of `num` images that only `seed` and the size of the set choose.

    Returns two tensors (num, C, S, S), float32 in [0, 1], row i of both from the same image; num
    is the number of images if there are fewer. The views are the first two global ones of the
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
