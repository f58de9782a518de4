"""One optimiser step: on the whole batch at once, or on micro-batches with the same gradient."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import replace
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from sslkit.api import Batch, Loss, LossInput, StepOutput
from sslkit.randomness import seeded

if TYPE_CHECKING:
    from .training import Training

Embeddings = dict[str, Tensor]
"""What `Method.embed` returns, in float32: per-sample tensors (B, ...)."""


def train_step(
    t: Training, batch: Batch, *, log: bool = False
) -> tuple[StepOutput, Mapping[str, Tensor | float]]:
    """One optimiser step on one batch; also the online probe's metrics.

    log: whether this step is logged. Without it the method's metrics are not read, and are empty.

    Raises NotFiniteError before the optimiser's step, so that the state is still that before it;
    on an accelerator only in the first step, since asking it makes it wait. PluginError: what a
    component gave in the first step breaks its contract."""
    t.compute.begin_step()
    batch = on_device_layout(t, batch)
    with step_randomness(t, micro_batch=0), t.learner.contract.watching(t.method):
        t.learner.contract.check_batch(batch)
        t.method.before_step(t.progress)
        embeddings, output = forward_backward(t, batch, log=log)
        t.optimization.unscale()
        t.method.after_backward(t.progress)
        if log and len(t.output.callbacks):
            t.output.callbacks.on_gradients(t)
        t.meter.add(output.loss, t.optimization.clip(), len(batch))
        if t.reads_each_step or t.learner.contract.open:
            t.meter.check(t.progress.step + 1, t.optimization.overflows)
        t.learner.contract.check_numbers(t.method, embeddings, output)
        t.learner.contract.close()
        t.optimization.step()
        update_losses(t, output)
        t.method.after_step(t.progress.next(), output.carry)

    if t.learner.probe is None or batch.labels is None:
        return output, {}
    factor = t.optimization.schedule.factor(t.progress)
    world = t.compute.world
    features = world.gather(embeddings["features"].detach())
    return output, t.learner.probe.step(features, world.gather(batch.labels), factor)


def update_losses(t: Training, output: StepOutput) -> None:
    """Lets every loss that keeps state see its inputs of the step, once."""
    calls: dict[Loss, list[LossInput]] = {}
    for loss, inputs in output.losses:
        calls.setdefault(loss, []).append(inputs.detach())
    with torch.no_grad():
        for loss, given in calls.items():
            loss.after_step(t.progress.next(), given)


def forward_backward(
    t: Training, batch: Batch, *, log: bool = False
) -> tuple[Embeddings, StepOutput]:
    """Embeddings and loss of a batch, and the gradient, times the scale of the loss."""
    if t.learner.micro_batch_size is not None and t.learner.micro_batch_size < len(batch):
        return backward_in_parts(t, batch, t.learner.micro_batch_size, log=log)
    world = t.compute.world
    # Ranks are micro-batches: each embeds under its own randomness, and all else is alike on all.
    with nullcontext() if world.size == 1 else step_randomness(t, 0, world.rank):
        embeddings = embed(t, batch)
    output = objective(t, embeddings, batch, log=log)
    t.optimization.backward(output.loss)
    return embeddings, output


def embed(t: Training, batch: Batch) -> Embeddings:
    """The method's embeddings, computed in the precision of the run and given in float32."""
    with t.compute.autocast():
        embeddings = t.method.embed(batch)
    t.learner.contract.check_embeddings(t.method, embeddings, len(batch))
    return {name: full_precision(value) for name, value in embeddings.items()}


def objective(
    t: Training, embeddings: Mapping[str, Tensor], batch: Batch, *, log: bool
) -> StepOutput:
    """The method's loss and, where they are logged, its metrics, read here and now: a queue, a
    teacher and the parameters are still those that the loss was computed from.

    Raises PluginError where the loss cannot be minimised."""
    output = t.method.objective(embeddings, batch, t.progress)
    t.learner.contract.check_output(t.method, output)
    wanted = log or t.learner.contract.open
    return replace(output, metrics=read_metrics(t, output.metrics) if wanted else {})


def read_metrics(t: Training, metrics: Mapping[str, Tensor | float]) -> dict[str, Tensor | float]:
    """The values of metrics, cut loose from whatever they are computed from or share memory with,
    without waiting for the device. Random numbers that they draw are not those of training."""
    with torch.no_grad(), seeded(t.learner.seed, "metrics", t.progress.step):
        return {
            name: value.detach().clone() if isinstance(value, Tensor) else value
            for name, value in metrics.items()
        }


def on_device_layout(t: Training, batch: Batch) -> Batch:
    """The batch with its views in the memory format of the networks."""
    return replace(batch, views=tuple(t.compute.layout(view) for view in batch.views))


def backward_in_parts(
    t: Training, batch: Batch, size: int, *, log: bool
) -> tuple[Embeddings, StepOutput]:
    """The gradient of the whole batch with the activations of `size` images in memory.

    Gradient caching (Gao et al. 2021, arXiv 2101.06983): the parts are embedded and their
    activations dropped; the loss of the whole batch gives the gradient of each embedding; then
    each part is embedded again, with the same randomness, and takes its share of that gradient
    back through the networks. The last part keeps its activations and is embedded once. Exact but
    for what networks compute across samples: batch statistics are those of a part.
    """
    parts = [slice(start, start + size) for start in range(0, len(batch), size)]
    *earlier, last = range(len(parts))

    def embed_part(number: int) -> Embeddings:
        part = batch.select(parts[number])
        with step_randomness(t, micro_batch=number, rank=t.compute.world.rank):
            return embed(t, part)

    before = [buffer.clone() for buffer in t.method.buffers()]
    # With gradients, though they are dropped: a compiled network has other bits without.
    cached = [_detached(embed_part(number)) for number in earlier]
    for buffer, value in zip(t.method.buffers(), before, strict=True):
        buffer.copy_(value)  # running statistics are to see each part once, in the second pass
    kept = embed_part(last)

    joined = {
        name: torch.cat([*(part[name] for part in cached), value.detach()]).requires_grad_(
            value.requires_grad
        )
        for name, value in kept.items()
    }
    output = objective(t, joined, replace(batch, views=()), log=log)
    t.optimization.backward(output.loss)

    _send_back(kept, joined, parts[last])
    del kept
    for number in earlier:
        _send_back(embed_part(number), joined, parts[number])
    return _detached(joined), output


def _send_back(embeddings: Embeddings, whole: Embeddings, rows: slice) -> None:
    """Backward from the embeddings of a part, whose gradients the whole batch's have."""
    pairs = [
        (value, gradient[rows])
        for name, value in embeddings.items()
        if value.requires_grad and (gradient := whole[name].grad) is not None
    ]
    if pairs:
        values, gradients = zip(*pairs, strict=True)
        torch.autograd.backward(values, gradients)


def _detached(embeddings: Embeddings) -> Embeddings:
    return {name: value.detach() for name, value in embeddings.items()}


def step_randomness(t: Training, micro_batch: int, rank: int = 0) -> AbstractContextManager[None]:
    """The scope of library randomness in one micro-batch of the coming step. rank: the rank whose
    images these are; 0 for what all ranks do alike, on the whole batch."""
    return seeded(
        t.learner.seed, "train", t.progress.step, "micro_batch", micro_batch, "rank", rank
    )


def full_precision(value: Tensor) -> Tensor:
    """Half precision to float32, in which every loss is computed; other types as they are."""
    return value.float() if value.dtype in (torch.bfloat16, torch.float16) else value
