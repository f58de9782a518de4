"""Contrastive losses, forward and backward: speed and peak memory by the number of embeddings."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial

import torch
from torch import Tensor

from sslkit.api import LossInput, resolve_component

from .arms import Arm, measure, of_calls
from .images import registry
from .memory import extra_peak_mb
from .options import Options
from .peers import DenseNTXent, lightly_loss
from .results import ArmResult, Group

_WIDTH = 128
_TEMPERATURE = 0.5
_PAIRED = (2048, 8192, 16384)
_ALONE = (8192, 16384, 32768, 65536, 131072)

LossFunction = Callable[[Tensor, Tensor], Tensor]


def run_losses(options: Options) -> Iterator[Group]:
    """A group for each size, in float32; the losses are compared before they are timed."""
    for num in (64,) if options.tiny else _PAIRED:
        calls = 1 if options.tiny else 10 if options.on_gpu else max(1, (4096 // num) ** 2)
        largest = num == _PAIRED[-1] and not options.on_gpu  # ten seconds a call, for lightly's
        arms = [
            Arm(name, of_calls(partial(_step, find, num, options), calls, options.device),
                float(calls), "losses", warmups=int(not largest))
            for name, find in _LOSSES.items()
        ]  # fmt: skip
        results = measure(arms, options.plan(10.0, min_rounds=4 if largest else 6))
        for result in results:
            if result.unavailable is None:
                _describe(result, num, options)
        yield Group(
            "losses", f"NT-Xent, forward and backward, {num:,} embeddings", results,
            reference="lightly", facts={"embeddings": num, "width": _WIDTH, "dtype": "float32"},
        )  # fmt: skip


def run_memory(options: Options) -> Iterator[Group]:
    """The extra memory of our loss by size, far beyond what dense ones can hold; one call each."""
    all_sizes = options.on_gpu or options.full
    sizes = (64, 128) if options.tiny else _ALONE if all_sizes else _ALONE[:-1]
    for num in sizes:
        result = ArmResult("ours", 1.0, "losses")
        _describe(result, num, options)
        facts = {"embeddings": num, "width": _WIDTH, "dtype": "float32"}
        yield Group("memory", f"NT-Xent alone, {num:,} embeddings", [result], facts=facts)


def _ours() -> LossFunction:
    block = {"name": "nt_xent", "temperature": _TEMPERATURE}
    loss = resolve_component(registry(), "loss", block).build()
    return lambda first, second: loss(LossInput(views=(first, second)))


_LOSSES: dict[str, Callable[[], LossFunction]] = {
    "ours": _ours,
    "lightly": lambda: lightly_loss(_TEMPERATURE),
    "plain": lambda: DenseNTXent(_TEMPERATURE),
}


def _step(find: Callable[[], LossFunction], num: int, options: Options) -> Callable[[], Tensor]:
    """A call: loss and gradients of fixed random embeddings; returns the loss."""
    loss_of = find()
    generator = torch.Generator().manual_seed(0)
    views = [
        torch.randn(num // 2, _WIDTH, generator=generator).to(options.device).requires_grad_()
        for _ in range(2)
    ]

    def step() -> Tensor:
        for view in views:
            view.grad = None
        loss = loss_of(views[0], views[1])
        loss.backward()  # type: ignore[no-untyped-call]
        return loss.detach()

    return step


def _describe(result: ArmResult, num: int, options: Options) -> None:
    """Memory and value of a loss; on a GPU it may be out of memory, which is a result too."""
    try:
        step = _step(_LOSSES[result.name], num, options)
        _step(_LOSSES[result.name], 64, options)()  # libraries take their workspaces now
        result.extra_memory_mb = extra_peak_mb(step, options.device)
        if result.seconds:
            result.facts["loss"] = float(step())
    except torch.OutOfMemoryError as error:
        result.facts["out_of_memory"] = str(error).splitlines()[0]
