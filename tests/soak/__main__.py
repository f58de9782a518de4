"""`python -m tests.soak fuzz|kills|rank-kills`: inputs that nobody should give, and runs that are
killed."""

from __future__ import annotations

import argparse
import json
import shlex
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from .warm import import_everything, one_thread

if TYPE_CHECKING:
    from .attempt import InputId
    from .stock import Stock


def main(arguments: Sequence[str] | None = None) -> int:
    """The command. Returns the exit code: 1 where a fault was found, else 0."""
    given = _parser().parse_args(arguments)
    commands = {"fuzz": _fuzz, "kills": _kills, "rank-kills": _rank_kills}
    if given.command != "rank-kills":  # which starts interpreters of its own
        one_thread()
        import_everything()
    with tempfile.TemporaryDirectory(prefix="sslkit-soak-") as name:
        return commands[given.command](given, Path(name).resolve())


def _fuzz(given: argparse.Namespace, scratch: Path) -> int:
    from .attempt import InputId
    from .fuzz import choose, fuzz
    from .packs import save_journal
    from .report import fuzz_report, print_report
    from .stock import make_stock

    (scratch / "stock").mkdir()
    stock = make_stock(scratch / "stock")
    save_journal(stock)
    if given.only:
        return _replay(InputId.parse(given.only), stock, scratch, given.keep)
    ids = choose(given.seed, given.inputs, given.kind)
    tallies = fuzz(ids, stock, scratch, given.jobs)
    report = fuzz_report(given.seed, tallies)
    print_report(report)
    if given.out:
        given.out.write_text(json.dumps(report, indent=1) + "\n")
    return int(bool(report["faults"]))


def _replay(found: InputId, stock: Stock, scratch: Path, keep: Path | None) -> int:
    """One input again, with all that it prints."""
    from .fuzz import prepare
    from .oracle import judge
    from .sandbox import call_sslkit, run

    attempt, folder = prepare(found, stock, keep.resolve() if keep else scratch)
    needs = stock.needs[attempt.command]
    outcome = run(folder, attempt.arguments, call_sslkit)
    faults = judge(outcome, needs, folder)
    if attempt.check is not None and not faults:
        faults = attempt.check(outcome)
    print(f"{found}: {attempt.what}\nin {folder / 'work'}: sslkit {shlex.join(attempt.arguments)}")
    print(
        f"{outcome.stdout}{outcome.stderr}code {outcome.code}, {outcome.cpu_s:.2f} s of CPU time,"
    )
    print(f"{outcome.peak_mb:,.0f} MB ({stock.needs[attempt.command].peak_mb:,.0f} MB when clean)")
    print("\n".join(f"fault: {fault}" for fault in faults) or "no fault")
    return int(bool(faults))


def _kills(given: argparse.Namespace, scratch: Path) -> int:
    from .kills import kill_chains
    from .report import kills_report, print_report

    found = kill_chains(given.seed, given.kills, scratch)
    report = kills_report(given.seed, found)
    print_report(report)
    if given.out:
        given.out.write_text(json.dumps(report, indent=1) + "\n")
    return int(bool(report["faults"]))


def _rank_kills(given: argparse.Namespace, scratch: Path) -> int:
    from tests.ranks.random_kills import kill_chains, report

    found = report(given.seed, kill_chains(given.seed, given.kills, scratch))
    print(json.dumps({key: value for key, value in found.items() if key != "chains"}, indent=1))
    if given.out:
        given.out.write_text(json.dumps(found, indent=1) + "\n")
    return int(bool(found["faults"]))


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m tests.soak", description=__doc__)
    commands = parser.add_subparsers(dest="command", required=True)
    fuzz = commands.add_parser("fuzz", help="Inputs that nobody should give.")
    fuzz.add_argument("--inputs", type=int, default=2000)
    fuzz.add_argument("--kind", action="append", default=[], help="Only this one; repeat for more.")
    fuzz.add_argument("--only", metavar="KIND:SEED:NUMBER", help="Replay one input and show all.")
    fuzz.add_argument("--keep", type=Path, metavar="FOLDER", help="With --only: keep its files.")
    kills = commands.add_parser("kills", help="Runs that are killed, and resumed to the end.")
    kills.add_argument("--kills", type=int, default=60)
    ranks = commands.add_parser("rank-kills", help="The same of runs on two processes.")
    ranks.add_argument("--kills", type=int, default=40)
    for command in (fuzz, kills, ranks):
        command.add_argument("--seed", type=int, default=0)
        command.add_argument("--jobs", type=int, default=2, help="Processes side by side.")
        command.add_argument("--out", type=Path, help="Write the report, as JSON.")
    return parser


if __name__ == "__main__":
    sys.exit(main())
