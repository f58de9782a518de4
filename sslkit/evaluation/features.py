"""Features of a frozen encoder, and the two baselines that every evaluator is compared with.

Shapes: B images of a batch, N images of a split, C channels, S side in pixels, F feature width.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from hashlib import blake2b

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from sslkit.api import FeatureBank
from sslkit.api.evaluation_inputs import EVALUATION_BATCH
from sslkit.nn.compute import Compute
from sslkit.nn.modes import frozen
from sslkit.nn.numerics import exact_float32
from sslkit.parallel.shared_work import SharedWork

DEVICE_BYTES = 1 << 31
"""Features of both splits up to this size stay on the training device, others in CPU memory."""
_CHECKED_ROWS = 1 << 16


def encoder_state(encoder: nn.Module) -> dict[str, Tensor]:
    """Every parameter and buffer, those left out of `state_dict` included; not copied."""
    return {
        **{f"parameter {name}": tensor.detach() for name, tensor in encoder.named_parameters()},
        **{f"buffer {name}": tensor.detach() for name, tensor in encoder.named_buffers()},
    }


def state_digest(encoder: nn.Module) -> str:
    """A hash of the names and bits of every parameter and buffer."""
    digest = blake2b(digest_size=16)
    for name, tensor in encoder_state(encoder).items():
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
        digest.update(tensor.cpu().contiguous().flatten().view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()


def extract(
    encoder: nn.Module,
    batches: Iterable[Tensor],
    compute: Compute,
    room: BankSpec | None = None,
) -> Tensor:
    """The features of all batches, (N, F) float32, in the order of the images.

    batches: (B, C, S, S) float images in [0, 1]; batches may differ in length. compute: where
    the encoder is, and how it computes. room: how many rows to make room for, and where; by default
    they are joined on the encoder's device, which needs twice the memory for a moment. The encoder
    is in evaluation mode meanwhile and is not changed. Raises ValueError if there is no batch."""

    def encoded() -> Iterator[Tensor]:
        for images in batches:
            with compute.autocast():
                features = encoder(compute.layout(images)).float()
            yield features

    with frozen(encoder), exact_float32():
        return _joined(encoded(), room)


def pixel_features(
    batches: Iterable[Tensor], *, max_side: int = 32, room: BankSpec | None = None
) -> Tensor:
    """Images as feature vectors, (N, C * s * s) float32, where s is the side of the images or
    `max_side`, whichever is smaller. Larger images are shrunk by averaging areas: a 224 pixel
    image would be 150,528 numbers, most of which only add noise to distances. Samples that are no
    images stay as they are, (N, values).

    Not centred: see `centre_`. room: as for `extract`. Raises ValueError if there is no batch."""

    def shrunk() -> Iterator[Tensor]:
        for images in batches:
            images = images.float().contiguous()
            yield (_shrink(images, max_side) if images.ndim == 4 else images).flatten(1)

    return _joined(shrunk(), room)


@dataclass(frozen=True)
class BankSpec:
    """Room for the features of a split."""

    rows: int
    """Images of the split."""
    together: int
    """Images of all splits: they are kept in one place."""
    work: SharedWork = field(default_factory=SharedWork)
    """The ranks that share the batches, whose rows are all brought to rank 0."""

    def device(self, part: Tensor) -> torch.device:
        """Where features of this width go: to the CPU if all of them are more than 2 GiB. The rule
        looks at shapes only, so that results do not depend on free memory."""
        wanted = self.together * part.shape[1] * part.element_size()
        return part.device if wanted <= DEVICE_BYTES else torch.device("cpu")


def _joined(blocks: Iterator[Tensor], room: BankSpec | None) -> Tensor:
    """The blocks as one, (N, F); of all ranks where they share them, and (0, 0) on all but the
    first."""
    rows = _Rows(room)
    if room is None:
        for block in blocks:
            rows.add(block)
        return rows.joined()
    for block in room.work.in_order(blocks, -(-room.rows // EVALUATION_BATCH)):
        rows.add(block)
    return rows.joined() if room.work.world.is_first else torch.empty(0, 0)


class _Rows:
    """Joins blocks of rows, without a second copy where their number is known."""

    def __init__(self, room: BankSpec | None) -> None:
        self._room = room
        self._buffer: Tensor | None = None
        self._filled = 0
        self._others: list[Tensor] = []  # without room, or beyond it

    def add(self, part: Tensor) -> None:
        if self._buffer is None and self._room is not None:
            shape = self._room.rows, part.shape[1]
            self._buffer = torch.empty(shape, dtype=part.dtype, device=self._room.device(part))
        full = self._buffer is None or self._filled + len(part) > len(self._buffer)
        if full or self._others:
            self._others.append(part)
        elif self._buffer is not None:
            self._buffer[self._filled : self._filled + len(part)] = part
            self._filled += len(part)

    def joined(self) -> Tensor:
        if not self._others and self._filled == 0:
            raise ValueError("no images to take features from")
        if self._buffer is None:
            return torch.cat(self._others)
        rows = self._buffer[: self._filled]
        others = [part.to(rows) for part in self._others]
        return torch.cat([rows, *others]) if others else rows


def _shrink(images: Tensor, max_side: int) -> Tensor:
    height, width = (min(side, max_side) for side in images.shape[-2:])
    return F.interpolate(images, size=(height, width), mode="area")


def centre_(bank: FeatureBank) -> Tensor:
    """Takes the mean of the training split, (1, F), from both splits, in place, and returns it:
    pixels can be the largest bank of all. They need it before cosine similarity: they are all
    positive, so without it every pair of images looks alike."""
    mean = bank.train.mean(dim=0, keepdim=True)
    bank.train.sub_(mean)
    bank.test.sub_(mean)
    return mean


def count_not_finite(features: Tensor) -> int:
    """Rows that hold a NaN or an infinity."""
    blocks = torch.split(features, _CHECKED_ROWS)
    return sum(int((~block.isfinite().all(dim=1)).sum()) for block in blocks)
