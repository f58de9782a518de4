"""Value, gradient and state on several processes against one: our methods through the engine, and
losses of lightly as its documentation uses them, under DistributedDataParallel.

    python -m tests.benchmarks.ranks_exactness --ranks 2 4 --steps 50
    python -m tests.benchmarks.ranks_exactness --peers

prints the tables of docs/explanation/ranks.md. Gloo.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Iterator
from importlib.metadata import version
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from torch import Tensor, nn
from torch import distributed as dist
from torch.nn.parallel import DistributedDataParallel

from sslkit.parallel.world import World
from tests.ranks.curves import METHODS, curves
from tests.ranks.differences import differences, of_gradients
from tests.ranks.forked import on_ranks

Row = tuple[str, ...]
IMAGES, INPUT, WIDTH = 32, 16, 24


# --- Ours -----------------------------------------------------------------------------------------


def ends(work: Callable[[World], Any], size: int) -> list[Any]:
    """What each rank has found."""
    found = on_ranks(work, size, limit_s=1800)
    for end in found:
        if isinstance(end, BaseException):
            raise end
    return found


def trained(method: str, size: int, steps: int) -> list[dict[str, dict[str, Any]]]:
    """The curves of all cases of a method, on each rank."""
    with TemporaryDirectory() as folder:
        return ends(lambda world: curves(world, Path(folder), method, steps), size)


OURS = ("loss", "gradient", "state", "float32 loss", "float32 gradient")


def our_rows(methods: list[str], sizes: list[int], steps: int) -> Iterator[Row]:
    """For each case: what of `OURS` differs, and by how much, for each number of ranks, the worst
    rank of them; how far one process in float32 is from itself in float64; whether all ranks hold
    the same bits."""
    for method in methods:
        (alone,) = trained(method, 1, steps)
        ranks = {size: trained(method, size, steps) for size in sizes}
        for case, expected in alone.items():
            each = {
                size: [differences(found[case], expected) for found in all_of_them]
                for size, all_of_them in ranks.items()
            }
            columns = [
                ", ".join(power(max(one[what] for one in each[size])) for size in sizes)
                for what in OURS
            ]
            own = of_gradients(expected["single"], expected["double"])
            alike = all(same_bits([found[case] for found in ranks[size]]) for size in sizes)
            yield *case.split("-"), *columns, power(own), "equal" if alike else "not equal"


def same_bits(ranks: list[dict[str, Any]]) -> bool:
    """Whether all hold the same state."""
    first, *others = (rank["double"]["state"] for rank in ranks)
    return all(torch.equal(other[name], first[name]) for other in others for name in first)


def power(value: float) -> str:
    """`3e-15`."""
    return "0" if value == 0 else f"{value:.0e}".replace("e-0", "e-")


# --- lightly --------------------------------------------------------------------------------------


def lightly_losses(gather: bool) -> dict[str, Callable[[Tensor, Tensor], Tensor]]:
    """Loss of two views (n, D). gather: the option that lightly has for several processes, where
    there is one."""
    from lightly import loss

    prototypes = torch.randn(12, WIDTH, generator=torch.Generator().manual_seed(3)).double()
    dino = loss.DINOLoss(output_dim=WIDTH).double()
    msn = loss.MSNLoss(gather_distributed=gather)
    swav = loss.SwaVLoss(sinkhorn_gather_distributed=gather)
    mmcr, frossl, koleo = loss.MMCRLoss(), loss.FroSSLLoss(), loss.KoLeoLoss()
    return {
        "NTXentLoss": loss.NTXentLoss(gather_distributed=gather),
        "DCLLoss": loss.DCLLoss(gather_distributed=gather),
        "VICRegLoss": loss.VICRegLoss(gather_distributed=gather),
        "TiCoLoss": loss.TiCoLoss(gather_distributed=gather),
        "SwaVLoss": lambda a, b: swav([a @ prototypes.t(), b @ prototypes.t()], []),
        "DINOLoss": lambda a, b: dino([a.detach(), b.detach()], [a, b], epoch=0),
        "BarlowTwinsLoss": loss.BarlowTwinsLoss(gather_distributed=gather),
        "DCLWLoss": loss.DCLWLoss(gather_distributed=gather),
        "MSNLoss": lambda a, b: msn(a, b.detach(), prototypes),
        "KoLeoLoss (no option)": lambda a, b: koleo(a) + koleo(b),
        "MMCRLoss (no option)": lambda a, b: mmcr(torch.stack([a, b], 1), torch.stack([b, a], 1)),
        "FroSSLLoss (no option)": lambda a, b: frossl([a, b]),
    }


def network() -> nn.Module:
    """Without anything that is computed across images."""
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(INPUT, 32), nn.Tanh(), nn.Linear(32, WIDTH)).double()


def peer_step(world: World) -> dict[str, tuple[float, Tensor]]:
    """Loss, as the mean over the ranks, and gradient of each, after DistributedDataParallel."""
    views = torch.randn(2, IMAGES, INPUT, generator=torch.Generator().manual_seed(1)).double()
    views[1] = 0.8 * views[0] + 0.6 * views[1]
    own = views.chunk(world.size, dim=1)[world.rank]
    found = {}
    for name, loss in lightly_losses(gather=world.size > 1).items():
        net: nn.Module = network()
        if world.size > 1:
            net = DistributedDataParallel(net)
        a, b = net(own.flatten(0, 1)).chunk(2)
        value = loss(a, b)
        value.backward()  # type: ignore[no-untyped-call]
        mean = value.detach().clone()
        if world.size > 1:
            dist.all_reduce(mean)
        gradient = torch.cat([p.grad.flatten() for p in net.parameters() if p.grad is not None])
        found[name] = float(mean) / world.size, gradient
    return found


def peer_rows(size: int) -> Iterator[Row]:
    """Of each loss, on `size` ranks by one process: value, length of the gradient, cosine."""
    (alone,) = ends(peer_step, 1)
    found, *_ = ends(peer_step, size)
    for name, (value, gradient) in alone.items():
        mean, averaged = found[name]
        cosine = torch.nn.functional.cosine_similarity(averaged, gradient, dim=0)
        length = averaged.norm() / gradient.norm()
        yield name, f"{mean / value:.4f}", f"{float(length):.4f}", f"{float(cosine):.4f}"


def table(head: Row, rows: Iterator[Row]) -> None:
    """In Markdown."""
    print("| " + " | ".join(head) + " |\n|" + "---|" * len(head), flush=True)
    for row in rows:
        print("| " + " | ".join(row) + " |", flush=True)


def main() -> None:
    """The command line."""
    options = _parser().parse_args()
    torch.set_num_threads(1)
    if options.peers:
        print(f"lightly {version('lightly')}, torch {version('torch')}, 2 ranks\n")
        table(("loss", "value", "gradient's length", "cosine"), peer_rows(2))
        return
    head = ("method", "norm", "passes", *OURS, "of one process", "bits")
    table(head, our_rows(options.methods, options.ranks, options.steps))


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--ranks", type=int, nargs="+", default=[2])
    parser.add_argument("--steps", type=int, default=4)
    parser.add_argument("--methods", nargs="+", default=list(METHODS))
    parser.add_argument("--peers", action="store_true", help="lightly's losses and nothing else")
    return parser


if __name__ == "__main__":
    main()
