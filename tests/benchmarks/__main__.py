"""`python -m tests.benchmarks cpu|gpu|report`: measures, prints tables, writes JSON and pages."""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from datetime import UTC, datetime
from pathlib import Path

import torch

from sslkit.runs.environment import usable_cpus

from .checks import run_checks
from .contrastive import run_losses, run_memory
from .full_runs import run_full
from .gpu import run_ceilings
from .images import DATA_DIR
from .loading import run_decoding
from .machine import describe_machine
from .micro_batches import run_micro_batches
from .options import Options
from .overhead import run_overhead
from .profiling import run_profile
from .report import write_report
from .results import Group, write_results
from .steps import run_steps
from .tables import group_table
from .views import run_augmentation

Part = Callable[[Options], Iterator[Group]]

CPU_PARTS: dict[str, Part] = {
    "steps": run_steps,
    "augmentation": run_augmentation,
    "losses": run_losses,
    "memory": run_memory,
    "micro-batches": run_micro_batches,
    "decoding": run_decoding,
    "overhead": run_overhead,
}
GPU_PARTS: dict[str, Part] = {
    "ceilings": run_ceilings,
    **CPU_PARTS,
    "profile": run_profile,
    "checks": run_checks,
}


def main(arguments: Sequence[str] | None = None) -> int:
    """The command. Returns the exit code: 1 where a check did not pass, else 0."""
    given = _parser().parse_args(arguments)
    if given.command == "report":
        for path in write_report(given.files, given.out):
            print(path)
        return 0
    torch.set_num_threads(given.threads)
    options = _options(given)
    parts = GPU_PARTS if given.command == "gpu" else CPU_PARTS
    wanted = given.part or list(parts)
    began = datetime.now(UTC)
    document = {
        "command": ["python", "-m", "tests.benchmarks", *(arguments or sys.argv[1:])],
        "began": began.isoformat(timespec="seconds"),
        "threads": torch.get_num_threads(),
        "tiny": options.tiny,
        "quick": options.quick,
        "machine": describe_machine(options.device),
    }
    groups: list[Group] = []
    for part in wanted:
        start = time.perf_counter()
        found = _full_runs(given) if part == "runs" else parts[part](options)
        for group in found:
            groups.append(group)
            print(group_table(group), flush=True)
            if given.out is not None:  # after each group: a run that is cut off leaves its first
                write_results(given.out, document, groups)
        print(f"({part}: {time.perf_counter() - start:.0f} s)\n", file=sys.stderr, flush=True)
    failed = [arm for g in groups for arm in g.arms if arm.facts.get("passed") is False]
    return 1 if failed else 0


def _full_runs(given: argparse.Namespace) -> Iterator[Group]:
    if not given.recipe:
        raise SystemExit("--part runs: name recipes with --recipe, and seeds with --seeds")
    return run_full(given.recipe, given.seeds, given.override, given.device)


def _options(given: argparse.Namespace) -> Options:
    on_gpu = given.device == "cuda"
    if on_gpu and not torch.cuda.is_available():
        raise SystemExit("--device cuda: there is no CUDA device; --device cpu --tiny tries it out")
    workers = given.workers or ([8, 16] if on_gpu else [0] if given.tiny else [2])
    return Options(
        device=torch.device(given.device),
        tiny=given.tiny,
        quick=given.quick,
        data_dir=given.data,
        workers=tuple(workers),
        loader_threads=given.loader_threads or (16 if on_gpu else 4),
        cases=tuple(given.case),
        tables=tuple(given.table),
        full=given.full,
    )


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m tests.benchmarks", description=__doc__)
    commands = parser.add_subparsers(dest="command", required=True)
    for name, parts in (("cpu", CPU_PARTS), ("gpu", GPU_PARTS)):
        command = commands.add_parser(name, help=f"measures on a {name.upper()}")
        further = ["runs"] if name == "gpu" else []
        command.add_argument(
            "--part", action="append", choices=[*parts, *further], help="default: all but runs"
        )
        command.add_argument("--out", type=Path, help="JSON with every raw timing")
        command.add_argument("--quick", action="store_true", help="a third of the rounds")
        command.add_argument("--tiny", action="store_true", help="only to see that it runs")
        command.add_argument("--case", action="append", default=[], help="one of the steps")
        command.add_argument(
            "--table", action="append", default=[], choices=["same settings", "as shipped"]
        )
        command.add_argument("--full", action="store_true", help="also what takes minutes")
        command.add_argument("--device", default={"gpu": "cuda"}.get(name, "cpu"))
        command.add_argument("--threads", type=int, default=usable_cpus(), help="of torch")
        command.add_argument("--workers", type=int, nargs="+", help="of the peers' loaders")
        command.add_argument("--loader-threads", type=int, help="train.loader_threads of ours")
        command.add_argument("--data", type=Path, default=DATA_DIR, help="folder of real images")
        command.add_argument("--recipe", action="append", help="of part runs; may be repeated")
        command.add_argument("--seeds", type=int, nargs="+", default=[0], help="of part runs")
        command.add_argument("-o", dest="override", action="append", default=[], metavar="a.b=c")
    report = commands.add_parser("report", help="makes a page with tables and plots")
    report.add_argument("files", type=Path, nargs="+")
    report.add_argument("--out", type=Path, default=Path("docs/benchmarks"))
    return parser


if __name__ == "__main__":
    sys.exit(main())
