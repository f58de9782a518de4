"""What a run in several processes sends, and what becomes of the batch, planned in one."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any

from torch import Tensor, nn

from sslkit.api import Batch
from sslkit.engine.loop import checked_step
from sslkit.engine.training import Training
from sslkit.nn.shared_statistics import SharedStatistics, shareable_layers
from sslkit.parallel.division import Division
from sslkit.parallel.imagined import ImaginedRank, Message
from sslkit.parallel.sharding import blocks
from sslkit.recipe.warnings import Advice

_FIRST_BUCKET, _BUCKET = 2**20, 25 * 2**20
"""Bytes of gradients that torch's DistributedDataParallel puts into one message."""
_SMALL_SHARE = 8
"""Images at a time on a process, below which messages and what all repeat are most of a step."""


@dataclass(frozen=True)
class SharedBatch:
    """What one of several processes does in a step."""

    processes: int
    images: int
    """Images of the batch that pass the networks of each process."""
    at_a_time: int
    """How many of them pass together."""
    parts: int
    """In how many micro-batches."""
    objective_images: int
    """Images that the objective sees on each process."""
    gradient_mb: float
    """Memory (10^6 bytes) that torch keeps for the gradients on their way, beside what is
    measured."""
    sharded_parameters: int
    """Parameters, of teachers too, of which each process keeps a part alone; the memory that is
    measured is that of all of them."""
    messages: list[dict[str, Any]]
    """About what, which operation, how many of them a step, bytes of one process in them."""
    sent_bytes: float
    """Bytes that each process sends in a step, passed on in a ring."""


def describe_shared(
    training: Training, world: ImaginedRank, batch: Batch, *, sharded: bool = False
) -> SharedBatch:
    """Takes a step of one rank with what is its share of a batch, and looks at its messages.
    sharded: whether the blocks of its networks would lie in parts."""
    division, method = training.learner.division, training.method
    in_parts = blocks(method) if sharded else []
    layers = shareable_layers(method)
    with (
        training.compute.eager(),
        _noting_statistics(layers, world),
        _noting_blocks(in_parts, world),
    ):
        world.messages.clear()
        checked_step(training, batch)
    parts = {p for block in in_parts for p in block.parameters()}
    whole = [p for p in method.parameters() if p.requires_grad and p not in parts]
    gradients = list(sum_of_whole(whole) if sharded else gradient_messages(iter(whole)))
    # Whether a stop was asked for: agreed on after each step.
    messages = [*gradients, *world.messages, Message("flags", "all_reduce", 1)]
    divides = training.learner.objective_is_divided
    return SharedBatch(
        processes=division.size,
        images=division.share,
        at_a_time=division.piece,
        parts=division.parts,
        objective_images=division.share if divides else division.batch_size,
        gradient_mb=sum(message.nbytes for message in gradients[:-1]) / 1e6,
        sharded_parameters=sum(p.numel() for p in parts),
        messages=_counted(messages),
        sent_bytes=sum(message.sent(division.size) for message in messages),
    )


def gradient_messages(parameters: Iterator[nn.Parameter]) -> Iterator[Message]:
    """Those of torch's DistributedDataParallel: a bucket is sent when the parameters in it have
    reached its size; then which parameters were used at all, 4 bytes for each."""
    sizes = [4]  # the parameter that `engine.embedder` adds
    sizes += [parameter.nbytes for parameter in parameters]
    limit, filled = _FIRST_BUCKET, 0
    for size in sizes:
        filled += size
        if filled >= limit:
            yield Message("gradients", "all_reduce", filled)
            limit, filled = _BUCKET, 0
    if filled:
        yield Message("gradients", "all_reduce", filled)
    yield Message("gradients", "all_reduce", 4 * len(sizes))


def sum_of_whole(parameters: Sequence[nn.Parameter]) -> Iterator[Message]:
    """Those of `engine.embedder.ShardedEmbedder`: the gradients of what is whole, and before, which
    of them there are."""
    yield Message("gradients", "all_reduce", sum(p.nbytes for p in parameters))
    yield Message("gradients", "all_reduce", 8 * len(parameters))


@contextmanager
def _noting_blocks(in_parts: Sequence[nn.Module], world: ImaginedRank) -> Iterator[None]:
    """Notes what torch's `fully_shard` sends: each pass through a block brings it together, and
    again on the way back; when all of these have come to a block, its gradient is divided."""

    def note(block: nn.Module, inputs: Any, output: Any) -> None:
        rows = sum(map(rows_of, block.parameters()))
        world.note("weights", "all_gather", rows)
        if isinstance(output, Tensor) and output.requires_grad:
            output.register_hook(  # type: ignore[no-untyped-call]
                lambda _: world.note("weights", "all_gather", rows)
            )

    def rows_of(parameter: Tensor) -> int:
        return parameter.nbytes // len(parameter) * -(-len(parameter) // world.size)

    handles: list[Any] = [block.register_forward_hook(note) for block in in_parts]
    for block in in_parts:
        trained: list[Any] = [p for p in block.parameters() if p.requires_grad]
        nbytes = sum(map(rows_of, trained)) * world.size
        divided = partial(_note_divided, world, nbytes)
        # torch sends those of a block together
        handles += [p.register_post_accumulate_grad_hook(divided) for p in trained[:1]]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def _note_divided(world: ImaginedRank, nbytes: int, _: Tensor) -> None:
    world.note("gradients", "reduce_scatter", nbytes)


@contextmanager
def _noting_statistics(layers: Sequence[SharedStatistics], world: ImaginedRank) -> Iterator[None]:
    """Notes what BatchNorm over all ranks sends: forward mean, variance and number of values of
    each channel, backward two sums, in float32 at least, for each group of images."""

    def note(layer: Any, inputs: tuple[Tensor, ...], output: Tensor) -> None:
        if not layer.training:
            return
        groups = 1 if layer.groups is None else layer.groups.count
        channel = groups * layer.num_features * max(inputs[0].element_size(), 4)
        world.note("statistics", "all_gather", 3 * channel)
        if output.requires_grad:
            output.register_hook(  # type: ignore[no-untyped-call]
                lambda _: world.note("statistics", "all_reduce", 2 * channel)
            )

    handles = [layer.register_forward_hook(note) for layer in layers]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


@contextmanager
def bearing_single_images(training: Training) -> Iterator[None]:
    """Has BatchNorm bear a piece of one image, which on several processes is one of many: it
    normalises by its running statistics here."""
    division = training.learner.division
    if division.piece > 1 or division.size == 1:
        yield
        return

    def still(layer: Any, inputs: Any) -> None:
        layer.training = False

    layers = shareable_layers(training.method)
    handles = [layer.register_forward_pre_hook(still) for layer in layers]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def _counted(messages: Sequence[Message]) -> list[dict[str, Any]]:
    number, nbytes = Counter[tuple[str, str]](), Counter[tuple[str, str]]()
    for message in messages:
        kind = message.about, message.operation
        number[kind] += 1
        nbytes[kind] += message.nbytes
    return [
        {"about": about, "operation": operation, "number": number[kind], "bytes": nbytes[kind]}
        for kind in number
        for about, operation in [kind]
    ]


def share_statements(division: Division) -> list[str]:
    """What several processes leave as it is; nothing for one."""
    if division.size == 1:
        return []
    return [
        f"{division.size} processes share the batch: loss, gradients, negatives, learning rates, "
        "steps, batch statistics and what is kept of a method are those of one process, up to "
        "rounding"
    ]


def share_warnings(division: Division, method: nn.Module, noun: str) -> list[Advice]:
    """What is rarely meant where a batch is shared; nothing for one process."""
    if division.size == 1:
        return []
    found = []
    if division.piece < _SMALL_SHARE:
        few = f"{division.piece} {noun}{'s' if division.piece > 1 else ''}"
        found.append(
            Advice(
                "--nproc",
                f"each process passes {few} at a time, so that messages and the objective, which "
                "all repeat, are most of a step; take fewer processes or a larger batch",
            )
        )
    if drawing := sum(_draws(module) for module in method.modules()):
        layers = "layer draws" if drawing == 1 else "layers draw"
        found.append(
            Advice(
                "--nproc",
                f"{drawing} {layers} random numbers (dropout, drop path), other ones than with "
                "another number of processes: the curves agree on average alone",
            )
        )
    return found


def _draws(module: nn.Module) -> bool:
    """Whether it is a layer of dropout or drop path that is on; each library has its own class."""
    rates = (getattr(module, name, None) for name in ("p", "prob", "drop_prob"))
    return "drop" in type(module).__name__.lower() and any(
        isinstance(rate, float) and rate > 0 for rate in rates
    )
