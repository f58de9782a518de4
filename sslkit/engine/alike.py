"""Whether the ranks of a run are still alike: what each of them keeps must be the same on all, or
they train apart without a word."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

from sslkit.errors import TrainingError
from sslkit.nn.numerics import repeats_bits
from sslkit.parallel.sharding import is_sharded
from sslkit.runs.environment import hardware, torch_settings

from .not_finite import state_tensors
from .training import Training

_WORDS = 511
"""Words of eight bytes in a row of what a digest is taken of. An odd number: where the first bit of
every word turns over, the sum of a row is another one."""
_GROWTH, _MOST = 1e-5, 1e-2
"""What may differ where ranks do not compute the same bits, by the largest magnitude of a tensor:
for each step since they were last alike, and at most."""


def refuse_unlike_ranks(t: Training) -> None:
    """Raises TrainingError, the same on all ranks, where weights, buffers, the state of an
    optimiser or the loss of the last step are not the same bits on all of them.

    Where they cannot be (GPUs without deterministic kernels, machines of different kinds) they may
    differ by rounding: all then take what rank 0 has, and a message says so. Waits for the device
    once where all is well."""
    world = t.compute.world
    if world.size == 1:
        return
    own = digests(t)
    if len(set(world.collect(_in_short(own)))) == 1:
        return
    everywhere = world.collect(own)
    names = list(dict.fromkeys(name for each in everywhere for name in each))
    unlike = [name for name in names if len({each.get(name) for each in everywhere}) > 1]
    apart = unlike if computes_same_bits(t) else take_from_first(t, unlike)
    if apart:
        first = everywhere[0].get(apart[0])
        ranks = [rank for rank, each in enumerate(everywhere) if each.get(apart[0]) != first]
        raise TrainingError(_explain(t, apart, ranks))


def _in_short(found: dict[str, int]) -> str:
    return hashlib.blake2b(repr(found).encode(), digest_size=16).hexdigest()


def digests(t: Training) -> dict[str, int]:
    """What is kept on every rank, in words -> a digest of its bits."""
    named = list(kept(t))
    device = next((value.device for _, value in named if not value.is_cpu), None)
    values = torch.stack([digest(value).to(device or "cpu") for _, value in named]).tolist()
    return dict(zip((name for name, _ in named), values, strict=True))


def kept(t: Training) -> Iterator[tuple[str, Tensor]]:
    """What every rank keeps, and must keep alike: in words, and the tensor itself. Of tensors in
    parts each rank keeps another one."""
    for kind, name, tensor in state_tensors(t.method, t.optimization.optimizer):
        if not is_sharded(tensor):
            yield f"the {kind} '{name}'", tensor
    if (probe := t.learner.probe) is not None:
        for kind, name, tensor in state_tensors(probe.classifier, probe.optimizer):
            yield f"the {kind} '{name}' of the online probe", tensor
    yield "the loss", torch.as_tensor(t.meter.last_loss)


def digest(tensor: Tensor) -> Tensor:
    """A number, int64 on the tensor's device, that depends on every bit and on its place: sums of
    rows and of columns of its bytes as words, each with a weight. It reads the tensor at the speed
    of the memory, a quarter of the time that a cryptographic digest takes."""
    data = tensor.detach().contiguous().flatten().view(torch.uint8)
    if data.storage_offset() % 8:
        data = data.clone()
    whole = data.numel() // (8 * _WORDS) * 8 * _WORDS
    rows = data[:whole].view(torch.int64).view(-1, _WORDS)
    sums = torch.cat([rows.sum(0), rows.sum(1), data[whole:].to(torch.int64)])
    return _mixed(_mixed(sums) + torch.arange(len(sums), device=sums.device)).sum()


def _mixed(words: Tensor) -> Tensor:
    """A hash of each word: the finaliser of SplitMix64 (Steele et al. 2014), with signed shifts."""
    words = (words ^ (words >> 30)) * -0x40A7B892E31B1A47
    words = (words ^ (words >> 27)) * -0x6B2FB644ECCEEE15
    return words ^ (words >> 31)


def computes_same_bits(t: Training) -> bool:
    """Whether ranks that do the same get the same bits; they call this together."""
    machine = hardware()
    settings = {"cpu": machine["cpu"], "gpus": machine["gpus"], **torch_settings()}
    everywhere = t.compute.world.collect(settings)
    return repeats_bits(t.compute.device) and all(each == settings for each in everywhere)


def take_from_first(t: Training, unlike: Sequence[str]) -> list[str]:
    """Gives every rank what rank 0 has, where it differs by rounding. Returns what differs by more;
    all ranks call this together."""
    world, tensors = t.compute.world, dict(kept(t))
    bound = min(_GROWTH * (t.progress.step - (t.saved_step or 0)), _MOST)
    apart, largest = [], 0.0
    for name in unlike:
        mine = tensors.get(name)
        first = world.broadcast(None if mine is None else mine.cpu())
        gap = max(world.collect(distance(mine, first)))
        largest = max(largest, gap)
        if gap > bound:
            apart.append(name)
        elif mine is not None and first is not None:
            mine.copy_(first)
    if not apart:
        t.output.display.message(
            f"step {t.progress.step}: {len(unlike)} tensors, {unlike[0]} first, differed by "
            f"rounding between the processes (by {largest:.1g} of their largest value); all go on "
            "with what rank 0 has"
        )
    return apart


def distance(one: Tensor | None, other: Tensor | None) -> float:
    """The largest difference, by the largest magnitude; infinite where that says nothing: whole
    numbers, another shape, NaN."""
    if one is None or other is None or one.shape != other.shape or not one.is_floating_point():
        return math.inf
    other = other.to(one.device)
    gap = (one.double() - other.double()).abs().max() / other.double().abs().max().clamp_min(1e-12)
    return float(gap.nan_to_num(math.inf))


def _explain(t: Training, apart: Sequence[str], ranks: Sequence[int]) -> str:
    who, others = type(t.method).__name__, ", ".join(map(str, ranks[:6]))
    more = f" (and {len(apart) - 1} more)" if len(apart) > 1 else ""
    return (
        f"after step {t.progress.step}: not the same on rank 0 and {others}: {apart[0]}{more}; the "
        f"processes train apart. {who}, or a component in it, draws random numbers that are not "
        "seeded (numpy's or Python's; use torch's or batch.random), or changes state in embed, "
        "which sees a part of the batch (before_step and after_step are there for that). Mend it "
        "and go on from the last checkpoint: sslkit run --resume "
        f"{t.output.run.run_dir}"
    )
