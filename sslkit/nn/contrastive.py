"""Contrastive losses as pure functions: NT-Xent, InfoNCE and SupCon.

They take unnormalised embeddings, leave autocast, and compute in float32 (float64 stays float64).
Shapes: B images, D embedding width, V views of each image, K further negatives, M = V B anchors.

Memory is linear in M: O(`chunk_elements` + M D), forward and backward. `chunk_elements` is the
number of similarities held at a time; it moves speed and memory, and the result by rounding only.

`group` names the ranks that share their negatives; each holds B of W B images, in the same number.
A rank's loss is the mean over its own anchors; `sslkit.parallel.collectives` has the
convention for gradients.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor
from torch import distributed as dist
from torch.nn import functional as F

from sslkit.parallel.collectives import all_gather

from .log_partition import DEFAULT_CHUNK_ELEMENTS, cross_log_partitions, self_log_partition
from .numerics import normalize, without_autocast

if TYPE_CHECKING:
    from torch.distributed import ProcessGroup


def nt_xent(
    z_a: Tensor,
    z_b: Tensor,
    temperature: float,
    *,
    chunk_elements: int = DEFAULT_CHUNK_ELEMENTS,
    group: ProcessGroup | None = None,
) -> Tensor:
    """NT-Xent: the mean over 2 B anchors of a softmax cross entropy among 2 B - 1 candidates.

    z_a, z_b: (B, D) embeddings of two views, unnormalised; row i of each belongs to image i. The
    candidates of an anchor are all other embeddings of both views, on all ranks of `group`; the
    positive is the image's other view. The value is that of the paper; its reference code sums the
    two halves and so reports twice as much. Memory: O(`chunk_elements` + B D).

    Raises ValueError for shapes that differ or are not (B, D), B < 2, temperature <= 0, or
    chunk_elements < 1. Source: Chen et al. 2020, arXiv 2002.05709, equation 1 and algorithm 1.
    """
    check_pair(z_a, z_b, temperature, chunk_elements=chunk_elements, group=group)
    with without_autocast(z_a):
        unit = normalize(torch.stack([z_a, z_b]))
        everyone = _of_all_ranks(unit, group)
        rest = _other_images(unit, everyone, temperature, chunk_elements, group)
        return _cross_entropy(_positive(unit, temperature), rest).mean()


def info_nce(
    query: Tensor,
    key: Tensor,
    negatives: Tensor | None = None,
    temperature: float = 0.1,
    *,
    symmetric: bool = False,
    chunk_elements: int = DEFAULT_CHUNK_ELEMENTS,
    group: ProcessGroup | None = None,
) -> Tensor:
    """InfoNCE: the mean over B queries of a softmax cross entropy.

    query, key: (B, D), unnormalised; key i is the positive of query i. Without `negatives` the
    candidates are the B keys of the batch, on all ranks of `group` (CPC, CLIP, MoCo v3); with
    `negatives` (K, D) they are the own key and the K negatives, and no other key of the batch
    (MoCo v1 and v2): `group` has no part in it. `symmetric` averages query to key and key to query;
    in-batch form only. Memory: O(`chunk_elements` + (B + K) D).

    Raises ValueError for shapes that do not fit, temperature <= 0, chunk_elements < 1, B < 2
    without negatives, or `symmetric` with negatives. Source: van den Oord et al. 2018, arXiv
    1807.03748, equation 4; He et al. 2020, arXiv 1911.05722, equation 1.
    """
    check_pair(query, key, temperature, negatives, chunk_elements, group)
    if symmetric and negatives is not None:
        raise ValueError("info_nce: symmetric holds for in-batch negatives only")
    with without_autocast(query):
        unit = normalize(torch.stack([query, key]))
        if negatives is None:
            others = _other_keys(unit, temperature, chunk_elements, group, both=symmetric)
        else:
            queue = normalize(negatives)
            others, _ = cross_log_partitions(
                unit[0], queue, temperature, chunk_elements=chunk_elements
            )
        return _cross_entropy(_positive(unit, temperature), others).mean()


def sup_con(
    views: Sequence[Tensor],
    labels: Tensor,
    temperature: float,
    *,
    chunk_elements: int = DEFAULT_CHUNK_ELEMENTS,
    group: ProcessGroup | None = None,
) -> Tensor:
    """Supervised contrastive loss, the form with the sum outside of the logarithm.

    views: V >= 2 tensors (B, D), unnormalised; row i of each is a view of image i. labels: (B,)
    integers, negative where an image has no label: it is then alone in its class, as in `nt_xent`.
    The positives of an anchor are all other embeddings of its class, on all ranks of `group`; the
    candidates are all other embeddings. An anchor's loss is the mean cross entropy
    over its positives; the value is the mean over all anchors. The reference code multiplies it by
    temperature / 0.07. With all labels distinct and two views it is `nt_xent`. Memory:
    O(`chunk_elements` + V B D).

    Raises ValueError for shapes that do not fit, labels that are not integers, fewer than 2 views,
    B < 2, temperature <= 0, or chunk_elements < 1. Source: Khosla et al. 2020, arXiv 2004.11362,
    equation 2.
    """
    if len(views) < 2:
        raise ValueError(f"sup_con needs at least 2 views, not {len(views)}")
    for view in views[1:]:
        check_pair(views[0], view, temperature, chunk_elements=chunk_elements, group=group)
    if labels.shape != views[0].shape[:1] or labels.is_floating_point() or labels.is_complex():
        raise ValueError(
            f"sup_con: labels must be ({len(views[0])},) integers, "
            f"not {tuple(labels.shape)} of {labels.dtype}"
        )
    with without_autocast(views[0]):
        unit = normalize(torch.stack(list(views)))
        everyone = _of_all_ranks(unit, group)
        rest = _other_images(unit, everyone, temperature, chunk_elements, group)
        everyones_labels = labels if group is None else all_gather(labels, group)
        own, own_mean_gap = _positives(unit, everyone, everyones_labels, temperature, group)
        return (_cross_entropy(own, rest) + own_mean_gap).mean()


def _positive(unit: Tensor, temperature: float) -> Tensor:
    """(B,): the similarity of the two views of each image."""
    first, second = unit.unbind()
    return (first * second).sum(dim=1) / temperature


def _positives(
    unit: Tensor,
    everyone: Tensor,
    labels: Tensor,
    temperature: float,
    group: ProcessGroup | None,
) -> tuple[Tensor, Tensor]:
    """For every anchor (V, B): the log-sum-exp of its similarities with the other views of its own
    image, and how far that is above the mean of its similarities with all its positives.

    The mean needs no similarity matrix: it is a product with the sum of the class.
    """
    num_views, batch, _ = unit.shape
    own = torch.einsum("vbd,wbd->vwb", unit, unit) / temperature
    itself = torch.eye(num_views, dtype=torch.bool, device=unit.device)[:, :, None]
    log_sum = own.masked_fill(itself, -math.inf).logsumexp(dim=1)
    images = everyone.sum(dim=0)
    class_of = _class_numbers(labels)
    class_sums = torch.zeros_like(images).index_add(0, class_of, images)
    sizes = torch.zeros_like(images[:, 0]).index_add(0, class_of, torch.ones_like(images[:, 0]))
    mine = slice(_first_image(batch, group), _first_image(batch, group) + batch)
    # Without the own image, exactly zero where it is alone in its class: NT-Xent to the last bit.
    classmates = class_sums[class_of[mine]] - images[mine]
    positives = own.masked_fill(itself, 0.0).sum(dim=1) + (unit * classmates).sum(2) / temperature
    return log_sum, log_sum - positives / (num_views * sizes[class_of[mine]] - 1.0)


def _class_numbers(labels: Tensor) -> Tensor:
    """Equal labels get equal numbers below B, and each negative one a number of its own: (B,)
    integers to (B,) int64. `torch.unique` would wait for the device, because the shape of its
    result depends on the values."""
    labels = labels.long()
    alone = -1 - torch.arange(len(labels), device=labels.device)
    ordered, order = labels.where(labels >= 0, alone).sort()
    starts = torch.ones_like(order)
    starts[1:] = ordered[1:] != ordered[:-1]
    return torch.empty_like(order).scatter_(0, order, starts.cumsum(0) - 1)


def _of_all_ranks(unit: Tensor, group: ProcessGroup | None) -> Tensor:
    """(V, B, D) to (V, W B, D)."""
    if group is None:
        return unit
    return all_gather(unit.transpose(0, 1), group).transpose(0, 1)


def _first_image(batch: int, group: ProcessGroup | None) -> int:
    """Where the images of this rank start among those of all ranks."""
    return 0 if group is None else dist.get_rank(group) * batch


def _other_images(
    unit: Tensor,
    everyone: Tensor,
    temperature: float,
    chunk_elements: int,
    group: ProcessGroup | None,
) -> Tensor:
    """(V, B): the log-sum-exp of an anchor's similarities with all views of all other images."""
    num_views, total, _ = everyone.shape
    candidates = everyone.flatten(0, 1)
    if group is None:
        own_image = tuple(total * k for k in range(1 - num_views, num_views))
        return self_log_partition(candidates, temperature, own_image, chunk_elements).view(
            num_views, -1
        )
    first = _first_image(unit.shape[1], group)
    own_image = tuple(first + total * k for k in range(num_views))
    by_view = [
        cross_log_partitions(view, candidates, temperature, own_image, chunk_elements)[0]
        for view in unit
    ]
    return torch.stack(by_view)


def _other_keys(
    unit: Tensor, temperature: float, chunk_elements: int, group: ProcessGroup | None, *, both: bool
) -> Tensor:
    """(1, B): the log-sum-exp of a query's similarities with the keys of all other images; with
    `both`, in a second row, that of a key's similarities with the queries."""
    first = (_first_image(unit.shape[1], group),)
    if group is None:
        by_side = cross_log_partitions(
            unit[0], unit[1], temperature, first, chunk_elements, both=both
        )
        return torch.stack([side for side in by_side if side is not None])
    everyone = _of_all_ranks(unit, group)
    pairs = [(unit[0], everyone[1]), (unit[1], everyone[0])][: 1 + both]
    return torch.stack(
        [
            cross_log_partitions(own, others, temperature, first, chunk_elements)[0]
            for own, others in pairs
        ]
    )


def _cross_entropy(positive: Tensor, others: Tensor) -> Tensor:
    """-log(e^positive / (e^positive + e^others)). Value and gradient are exact for confident
    anchors too, where the difference to a log-sum-exp over all candidates would cancel."""
    return -F.logsigmoid(positive - others)


def check_pair(
    a: Tensor,
    b: Tensor,
    temperature: float,
    negatives: Tensor | None = None,
    chunk_elements: int = DEFAULT_CHUNK_ELEMENTS,
    group: ProcessGroup | None = None,
) -> None:
    """Raises ValueError where these are not the arguments of a contrastive loss."""
    if a.ndim != 2 or a.shape != b.shape:
        raise ValueError(
            f"embeddings of two views must both be (B, D), "
            f"not {tuple(a.shape)} and {tuple(b.shape)}"
        )
    images = len(a) if group is None else len(a) * dist.get_world_size(group)
    if negatives is None and images < 2:
        raise ValueError(f"in-batch negatives need at least 2 images, not {images}")
    if negatives is not None and (
        negatives.ndim != 2 or len(negatives) == 0 or negatives.shape[1] != a.shape[1]
    ):
        raise ValueError(
            f"negatives must be (K, {a.shape[1]}) with K >= 1, not {tuple(negatives.shape)}"
        )
    if not temperature > 0.0:
        raise ValueError(f"temperature must be above 0, not {temperature}")
    if chunk_elements < 1:
        raise ValueError(f"chunk_elements must be at least 1, not {chunk_elements}")
