"""How batches pass through the networks of a method, and what becomes of their gradients."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch import distributed as dist
from torch.futures import Future
from torch.nn.parallel import DistributedDataParallel

from sslkit.api import Batch, Method
from sslkit.errors import PluginError
from sslkit.nn.numerics import repeats_bits
from sslkit.nn.shared_statistics import over_ranks, shareable_layers
from sslkit.parallel.sharding import is_sharded, shard
from sslkit.parallel.world import World

Embeddings = dict[str, Tensor]
"""What `Method.embed` returns: per-sample tensors (B, ...)."""


class Embedder:
    """Calls `Method.embed`. With several ranks it does so through torch's DistributedDataParallel,
    which sums the gradients of the networks over the ranks while the backward pass goes on, and
    with BatchNorm over the images of all ranks.

    What the objective itself adds to the gradient of a parameter is the same on all ranks, and is
    kept out of that sum."""

    def __init__(self, method: Method, world: World) -> None:
        self._method = method
        self._world = world
        method.world = world
        self._own: list[tuple[nn.Parameter, Tensor]] = []
        """Gradients of parameters that come from the objective itself, on several ranks."""
        self._made: DistributedDataParallel | None = None
        self._trained: list[nn.Parameter] = []
        """The parameters whose gradients it sums."""

    def __call__(self, batch: Batch) -> Embeddings:
        """The embeddings of the images that are here."""
        if self._world.group is None:
            return self._method.embed(batch)
        with self._world.watching(), self.sharing_statistics():
            return cast(Embeddings, self._ranks(batch))

    def sharing_statistics(self) -> AbstractContextManager[None]:
        """Inside, BatchNorm is over the images of all ranks: in `embed`, and in an objective that
        sees this rank's share."""
        # Looked for anew: a method may have made a teacher since the last pass.
        return over_ranks(shareable_layers(self._method), self._world.group)

    @property
    def _ranks(self) -> nn.Module:
        """What `embed` is called through. Made at the first pass, and when other parameters are
        trained than before: those of a backbone that was frozen until now."""
        return self._parallel()

    def _parallel(self) -> DistributedDataParallel:
        trained = _trained(self._method)
        if self._made is None or [*map(id, trained)] != [*map(id, self._trained)]:
            self._made = None  # before the next one is made: it takes its hooks with it
            self._made, self._trained = self._wrapped(), trained
        return self._made

    def _wrapped(self) -> DistributedDataParallel:
        """By all ranks together; their weights become those of rank 0."""
        self._world.barrier()
        with warnings.catch_warnings(), self._world.watching("when the first step began"):
            warnings.filterwarnings("ignore", "`broadcast_buffers` is deprecated")
            # Without the search for unused parameters torch would order its messages by the first
            # backward pass; a resumed run would then add up in another order than the one that it
            # goes on from.
            made = DistributedDataParallel(
                _Embed(self._method, unused=True),
                process_group=self._world.gradient_group,
                broadcast_buffers=False,
                find_unused_parameters=True,
            )
            made.register_comm_hook(self._world.gradient_group, _summed)
        return made

    def apart(self) -> AbstractContextManager[None]:
        """For passes whose gradients are only added up here, because another pass of the same step
        follows, whose gradients are summed over the ranks together with them."""
        return nullcontext() if self._world.group is None else self._parallel().no_sync()

    def objective_gradients(self, loss: Tensor, embeddings: Embeddings) -> Embeddings:
        """The gradient of the loss with respect to what the objective saw, (B, ...) for each name.
        What it adds to the gradient of parameters is kept until the end of `summing`: it is the
        same on all ranks, or, where the objective is divided, a part of the gradient of the mean
        loss."""
        leaves = {name: value for name, value in embeddings.items() if value.requires_grad}
        if self._world.size == 1:
            loss.backward()  # type: ignore[no-untyped-call]
            return {name: v.grad for name, v in leaves.items() if v.grad is not None}
        # Not `backward`: it would tell torch's DistributedDataParallel that these parameters have
        # their gradient, before the networks have been passed.
        parameters = _trained(self._method)
        divided = self._method.divides_objective
        with self._world.watching():
            found = torch.autograd.grad(
                loss / self._world.size if divided else loss,
                [*leaves.values(), *parameters],
                allow_unused=True,
            )
        own = zip(parameters, found[len(leaves) :], strict=True)
        self._own = [(p, gradient) for p, gradient in own if gradient is not None]
        if divided:
            self._own = [(p, self._world.sum(gradient)) for p, gradient in self._own]
        elif not repeats_bits(loss.device):  # or such parameters would drift apart by rounding
            self._own = [(p, self._world.mean(gradient)) for p, gradient in self._own]
        to_rows = zip(leaves, found, strict=False)
        return {name: gradient for name, gradient in to_rows if gradient is not None}

    @contextmanager
    def summing(self) -> Iterator[None]:
        """For the way back through the networks, after `objective_gradients`."""
        with self._world.watching():
            yield
        for parameter, gradient in self._own:
            summed = parameter.grad
            if summed is None:  # a copy: parameters that are added have one gradient between them
                summed = parameter.grad = torch.zeros_like(parameter)
            summed.add_(gradient)
        self._own = []


class ShardedEmbedder(Embedder):
    """Calls `Method.embed` with the blocks of its networks in parts on the ranks: torch's
    `fully_shard` brings each together while it computes, and sums its gradients where they lie.
    Those of everything else are summed when all parts of a batch have passed."""

    def __init__(self, method: Method, world: World, device: torch.device) -> None:
        """Takes the weights of rank 0 apart; all ranks call this together."""
        super().__init__(method, world)
        assert world.gradient_group is not None
        # Nobody writes into what `embed` gave before it has gone back: `engine.step`.
        warnings.filterwarnings("ignore", "FSDP2-wrapped module .* returned a view tensor")
        self._root = _Embed(method)
        world.barrier()
        with world.watching("when the weights were divided"):
            shard(self._root, method, device, world.gradient_group)
        self._trained = _trained(method)

    @property
    def _ranks(self) -> nn.Module:
        if [*map(id, _trained(self._method))] != [*map(id, self._trained)]:
            raise PluginError(
                f"method: {type(self._method).__name__} trains other parameters than in its first "
                "step, which train.parallel=fsdp cannot; set train.parallel=ddp"
            )
        return self._root

    def apart(self) -> AbstractContextManager[None]:
        return nullcontext()  # each pass adds up where the parts lie, and keeps no whole gradients

    @contextmanager
    def summing(self) -> Iterator[None]:
        with super().summing():
            yield
            with self._world.watching():
                self._sum_whole()

    def _sum_whole(self) -> None:
        """Sums over the ranks what each has found for parameters that are whole, in one message;
        what no rank has found stays None."""
        parameters = [p for p in _trained(self._method) if not is_sharded(p)]
        if not parameters:
            return
        # On the CPU, so that a GPU is not waited for.
        there = self._world.sum(torch.tensor([int(p.grad is not None) for p in parameters]))
        used = [p for p, ranks in zip(parameters, there.tolist(), strict=True) if ranks]
        found = [torch.zeros_like(p) if p.grad is None else p.grad for p in used]
        summed = self._world.sum(torch.cat([gradient.flatten() for gradient in found]))
        rows = torch.split(summed, [gradient.numel() for gradient in found])
        for parameter, gradient, row in zip(used, found, rows, strict=True):
            parameter.grad = gradient.copy_(row.view_as(gradient))


def _trained(method: Method) -> list[nn.Parameter]:
    return [p for p in method.parameters() if p.requires_grad]


class _Embed(nn.Module):
    """`embed` as the forward pass of a module, which is what torch wraps."""

    def __init__(self, method: Method, *, unused: bool = False) -> None:
        """unused: whether to add a parameter that is not used: DistributedDataParallel prints a
        warning where it finds none, though it is asked to look."""
        super().__init__()
        self.method = method
        if unused:
            first = _trained(method)[0]
            self.unused = nn.Parameter(torch.zeros(1, dtype=first.dtype, device=first.device))

    def forward(self, batch: Batch) -> Embeddings:
        """(n, ...) for each name."""
        return self.method.embed(batch)


def _summed(group: Any, bucket: Any) -> Future[Tensor]:
    """The sum over the ranks of some gradients, where torch's own way would give the mean."""
    work = dist.all_reduce(bucket.buffer(), group=group, async_op=True)
    assert work is not None
    return work.get_future().then(lambda done: cast(Tensor, done.value()[0]))


# torch compares these with the classes themselves, and not with their names.
_summed.__annotations__ = {
    "bucket": dist.GradBucket,  # type: ignore[attr-defined]
    "return": Future[Tensor],
}
