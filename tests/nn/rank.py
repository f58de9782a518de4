"""One of several processes of tests/nn/test_gather.py: `python rank.py RANK WORLD FOLDER`.

Runs every case on all ranks and, as a group of its own, on the first two; writes losses and the
parameter gradients after DistributedDataParallel has averaged them.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch import distributed as dist
from torch.nn.parallel import DistributedDataParallel

from sslkit.nn.functional import info_nce, nt_xent, sup_con
from sslkit.parallel.collectives import all_gather, all_ranks

IMAGES, WIDTH, VIEWS = 4, 6, 3
"""Images of each rank, width of inputs and embeddings, views."""

Loss = Callable[[list[Tensor], Tensor, Tensor, Any], Tensor]
CASES: dict[str, Loss] = {
    "nt_xent": lambda z, y, n, group: nt_xent(z[0], z[1], 0.2, group=group),
    "nt_xent_in_chunks": lambda z, y, n, group: nt_xent(
        z[0], z[1], 0.2, chunk_elements=9, group=group
    ),
    "cold": lambda z, y, n, group: nt_xent(z[0], z[1], 0.001, group=group),
    "in_batch": lambda z, y, n, group: info_nce(z[0], z[1], None, 0.2, group=group),
    "both_ways": lambda z, y, n, group: info_nce(
        z[0], z[1], None, 0.2, symmetric=True, group=group
    ),
    "queue": lambda z, y, n, group: info_nce(z[0], z[1], n, 0.2, group=group),
    "sup_con": lambda z, y, n, group: sup_con(z, y, 0.2, group=group),
}


def data(images: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Inputs (V, B, W), labels (B,), negatives (K, W) and weights (W, W), the same everywhere."""
    generator = torch.Generator().manual_seed(0)
    shapes = ((WIDTH, WIDTH), (11, WIDTH), (VIEWS, images, WIDTH))
    weights, queue, inputs = (
        torch.randn(shape, generator=generator, dtype=torch.float64) for shape in shapes
    )
    return inputs, torch.arange(images) % 5, queue, weights


def evaluate(case: Loss, rank: int, world: int, group: Any) -> dict[str, Tensor]:
    """The loss of a rank, and the gradient of the weights; `group` None for one process."""
    images = IMAGES * world
    mine = slice(0, images) if group is None else slice(rank * IMAGES, (rank + 1) * IMAGES)
    inputs, labels, queue, weights = data(images)
    model = torch.nn.Linear(WIDTH, WIDTH, bias=False, dtype=torch.float64)
    with torch.no_grad():
        model.weight.copy_(weights)
    network: torch.nn.Module = model
    if group is not None:
        network = DistributedDataParallel(model, process_group=group)
    z = network(inputs[:, mine].flatten(0, 1)).unflatten(0, (VIEWS, -1))
    loss = case(list(z), labels[mine], queue, group)
    loss.backward()  # type: ignore[no-untyped-call]
    assert model.weight.grad is not None
    return {"loss": loss.detach(), "gradient": model.weight.grad}


def uneven_shares(rank: int, group: Any) -> str:
    try:
        all_gather(torch.ones(2 + rank, 3), group)
    except ValueError as error:
        return str(error)
    return ""


def main(rank: int, world: int, folder: Path) -> None:
    torch.set_num_threads(1)
    assert all_ranks() is None
    dist.init_process_group("gloo", f"file://{folder / 'init'}", timedelta(seconds=60), world, rank)
    results: dict[str, Any] = {}
    everyone = all_ranks()
    results["uneven"] = uneven_shares(rank, everyone)
    for name, case in CASES.items():
        results[f"{world}:{name}"] = evaluate(case, rank, world, everyone)
    first_two = dist.new_group([0, 1])
    if rank < 2:
        for name, case in CASES.items():
            results[f"2:{name}"] = evaluate(case, rank, 2, first_two)
    torch.save(results, folder / f"rank{rank}.pt")
    dist.barrier()
    dist.destroy_process_group()


if __name__ == "__main__":
    main(int(sys.argv[1]), int(sys.argv[2]), Path(sys.argv[3]))
