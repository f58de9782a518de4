"""One optimiser step: on the whole batch at once, or on micro-batches with the same gradient."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from sslkit.api import Batch, Loss, Method, StepOutput
from sslkit.errors import PluginError
from sslkit.randomness import seeded

from .contract import FEATURES
from .step_metrics import calls_of_losses, read_metrics

if TYPE_CHECKING:
    from sslkit.parallel.division import Division

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
    # Weights in parts send messages anywhere; otherwise only what sends them is watched, since a
    # component's own errors may sound like a lost process.
    with (
        t.compute.world.watching() if t.compute.sharded else nullcontext(),
        step_randomness(t, micro_batch=0),
        t.learner.contract.watching(t.method),
    ):
        t.learner.contract.check_batch(batch)
        t.method.before_step(t.progress)
        embeddings, batch, output = forward_backward(t, batch, log=log)
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
    return output, t.learner.probe.step(embeddings["features"].detach(), batch.labels, factor)


def update_losses(t: Training, output: StepOutput) -> None:
    """Lets every loss that keeps state see its inputs of the step, once."""
    with torch.no_grad():
        for loss, given in calls_of_losses(output).items():
            loss.after_step(t.progress.next(), given)


def forward_backward(
    t: Training, batch: Batch, *, log: bool = False
) -> tuple[Embeddings, Batch, StepOutput]:
    """The gradient of the batch, times the scale of the loss, left in the parameters; what it came
    from: embeddings and batch, whole on every rank, and the loss. Where the objective is divided
    the embeddings are those of this rank's share, but for features that a probe sees.

    batch: what passes the networks here, this rank's share of it where there are several. The whole
    one has no views then."""
    if not t.learner.division.is_whole:
        return backward_in_parts(t, batch, log=log)
    embeddings = embed(t, batch)
    output = objective(t, embeddings, batch, log=log)
    t.optimization.backward(output.loss)
    return embeddings, batch, output


def embed(t: Training, batch: Batch) -> Embeddings:
    """The method's embeddings, computed in the precision of the run and given in float32."""
    with t.compute.autocast():
        embeddings = t.learner.embedder(batch)
    t.learner.contract.check_embeddings(t.method, embeddings, len(batch))
    return {name: full_precision(value) for name, value in embeddings.items()}


def objective(
    t: Training, embeddings: Mapping[str, Tensor], batch: Batch, *, log: bool
) -> StepOutput:
    """The method's loss and, where they are logged, its metrics, read here and now: a queue, a
    teacher and the parameters are still those that the loss was computed from.

    Raises PluginError where the loss cannot be minimised."""
    divided = t.learner.objective_is_divided
    with t.learner.embedder.sharing_statistics() if divided else nullcontext():
        output = t.method.objective(embeddings, batch, t.progress)
    t.learner.contract.check_output(t.method, output)
    if divided:
        refuse_losses_with_state(t.method, output)
    if not (log or t.learner.contract.open):
        return replace(output, metrics={})
    return replace(output, metrics=read_metrics(t.method, output, t.learner.seed, t.progress.step))


def refuse_losses_with_state(method: Method, output: StepOutput) -> None:
    """Raises PluginError where a loss would keep state of this rank's share alone."""
    for loss, _ in output.losses:
        if type(loss).after_step is not Loss.after_step:
            raise PluginError(
                f"method: {type(method).__name__} divides its objective among processes, and its "
                f"loss {type(loss).__name__} keeps state of what it sees, which would be another "
                "one on each; keep it in the method, by way of `world`, or do not divide"
            )


def on_device_layout(t: Training, batch: Batch) -> Batch:
    """The batch with its views in the memory format of the networks."""
    return replace(batch, views=tuple(t.compute.layout(view) for view in batch.views))


def backward_in_parts(
    t: Training, batch: Batch, *, log: bool
) -> tuple[Embeddings, Batch, StepOutput]:
    """The gradient of the whole batch, of which only a part passes the networks here at a time:
    a micro-batch, the share of a rank, or both.

    Gradient caching (Gao et al. 2021, arXiv 2101.06983): the parts are embedded and their
    activations dropped; the loss of the whole batch gives the gradient of each embedding; then
    each part is embedded again, with the same randomness, and takes its share of that gradient
    back through the networks. The last part keeps its activations and is embedded once. Exact but
    for what networks compute across samples: batch statistics are those of a micro-batch, on all
    ranks together.
    """
    embedder = t.learner.embedder
    *earlier, last = range(t.learner.division.parts)

    before = [buffer.clone() for buffer in t.method.buffers()] if earlier else []
    # With gradients, though they are dropped: a compiled network has other bits without.
    with embedder.apart():
        cached = [_detached(embed_part(t, batch, number)) for number in earlier]
    for buffer, value in zip(t.method.buffers() if earlier else (), before, strict=True):
        buffer.copy_(value)  # running statistics are to see each part once, in the second pass
    with nullcontext() if not earlier else embedder.apart():
        kept = embed_part(t, batch, last)

    own = {
        name: torch.cat([*(part[name] for part in cached), value.detach()])
        for name, value in kept.items()
    }
    joined, seen = share_rows(t, own, batch)
    for name, value in kept.items():
        joined[name].requires_grad_(value.requires_grad)
    output = objective(t, joined, seen, log=log)
    gradients = embedder.objective_gradients(t.optimization.scaled(output.loss), joined)

    with embedder.summing():
        back = partial(_send_back, gradients, t.learner.objective_rows)
        with nullcontext() if not earlier else embedder.apart():
            back(kept, last)
        del kept
        for number in earlier:
            with nullcontext() if number == earlier[-1] else embedder.apart():
                back(embed_part(t, batch, number), number)
    if t.learner.objective_is_divided:
        features = {} if t.learner.probe is None else {FEATURES: own[FEATURES]}
        found, whole = gather_batch(t, features, batch)
        return {**own, **found}, whole, mean_over_ranks(t, output)
    return _detached(joined), seen, output


def embed_part(t: Training, batch: Batch, number: int) -> Embeddings:
    """The embeddings of this rank's piece of a micro-batch."""
    division = t.learner.division
    part = piece_of(batch, division, number)
    with step_randomness(t, micro_batch=number, rank=division.rank):
        return embed(t, part)


def piece_of(batch: Batch, division: Division, number: int) -> Batch:
    """This rank's piece of a micro-batch. batch: its share."""
    part = batch.select(division.pieces()[number])
    if batch.passing is None:
        return part
    peers = batch.passing.select(division.peers(number))
    return replace(part, passing=peers, first_passing=division.first_peer)


def share_rows(t: Training, own: Embeddings, batch: Batch) -> tuple[Embeddings, Batch]:
    """What the objective sees: the whole batch, or this rank's share where the method divides its
    objective."""
    if t.compute.world.size == 1 or t.learner.objective_is_divided:
        return own, replace(batch, views=())
    return gather_batch(t, own, batch)


def gather_batch(t: Training, own: Embeddings, batch: Batch) -> tuple[Embeddings, Batch]:
    """The embeddings of the whole batch, and all of the batch but its views, from the share that
    each rank has: in one message, and in the order of the batch, so that all ranks go on with the
    same bits."""
    labels = {} if batch.labels is None else {"labels": batch.labels}
    given = {
        **{f"embedding {name}": value for name, value in own.items()},
        **{f"target {name}": value for name, value in batch.targets.items()},
        **labels,
    }
    gathered = t.compute.world.gather_rows(given) if given else {}
    found = {name: t.learner.division.in_order(rows) for name, rows in gathered.items()}
    assert batch.passing is not None
    whole = Batch(
        views=(),
        indices=batch.passing.indices,
        random=batch.passing,
        labels=found.get("labels"),
        targets={name: found[f"target {name}"] for name in batch.targets},
    )
    return {name: found[f"embedding {name}"] for name in own}, whole


def mean_over_ranks(t: Training, output: StepOutput) -> StepOutput:
    """What a divided objective gave on this rank, with the loss and the metrics of the batch."""
    with torch.no_grad():
        loss = output.loss.detach()
        values = [torch.as_tensor(value, device=loss.device) for value in output.metrics.values()]
        means = t.compute.world.mean(torch.stack([loss, *(v.to(loss) for v in values)]))
    metrics = dict(zip(output.metrics, means[1:].unbind(), strict=True))
    return replace(output, loss=means[0], metrics=metrics)


def _send_back(
    gradients: Embeddings, rows: Sequence[slice], embeddings: Embeddings, number: int
) -> None:
    """Backward from the embeddings of this rank's piece of a micro-batch. gradients: of what the
    objective saw; rows: where there each piece stands."""
    pairs = [
        (value, gradients[name][rows[number]])
        for name, value in embeddings.items()
        if value.requires_grad and name in gradients
    ]
    if pairs:
        values, upstream = zip(*pairs, strict=True)
        torch.autograd.backward(values, upstream)


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
