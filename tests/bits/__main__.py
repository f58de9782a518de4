"""`python -m tests.bits record|compare|against`: whether a change keeps every bit of what runs
end as."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from .comparing import differences, environment_differences
from .experiments import NAMES
from .recording import Options, record
from .trees import BitsError, Tree, checked_out

REPOSITORY = Path(__file__).resolve().parents[2]
EQUAL, DIFFERENT, NOT_JUDGED = 0, 1, 2


def main(words: Sequence[str] | None = None) -> int:
    """The command. Returns the exit code: 0 the same bits, 1 other bits (or an experiment that
    did not run), 2 not judged."""
    given = _parser().parse_args(words)
    try:
        code: int = given.call(given)
    except BitsError as error:
        print(f"error: {error}", file=sys.stderr)
        return NOT_JUDGED
    return code


def _record(given: argparse.Namespace) -> int:
    found = record(Tree(given.tree.resolve()), _options(given))
    _save(given.out, found)
    failed = [name for name, one in found["experiments"].items() if "error" in one]
    cost = found["cost"]
    print(
        f"{given.out}: {len(found['experiments'])} experiments, {cost['cpu_s']:.0f} s of CPU time,"
        f" {cost['wall_s']:.0f} s; failed: {', '.join(failed) or 'none'}"
    )
    return DIFFERENT if failed else EQUAL


def _compare(given: argparse.Namespace) -> int:
    return _judge(_load(given.first), _load(given.second), given.only, given.anyway)


def _against(given: argparse.Namespace) -> int:
    options = _options(given)
    with checked_out(REPOSITORY, given.commit) as tree:
        before = record(tree, options)
    after = record(Tree(REPOSITORY), options)
    if given.out is not None:
        given.out.mkdir(parents=True, exist_ok=True)
        _save(given.out / "before.json", before)
        _save(given.out / "after.json", after)
    return _judge(before, after, given.only, anyway=False)


def _judge(before: dict[str, Any], after: dict[str, Any], only: Sequence[str], anyway: bool) -> int:
    """Prints what differs. Returns the exit code."""
    changed = environment_differences(before, after)
    if changed and not anyway:
        raise BitsError(f"not judged (--anyway does): {'; '.join(changed)}")
    found = differences(before, after, only)
    for name, lines in found.items():
        print(f"{name}:", *lines, sep="\n  ")
    number = len(only or {**before["experiments"], **after["experiments"]})
    commits = f"{before['commit'][:10]} and {after['commit'][:10]}"
    if found or not number:
        print(
            f"{commits}: {len(found)} of {number} experiments are not the same: {', '.join(found)}"
        )
        return DIFFERENT
    print(f"{commits}: {number} experiments, the same bits")
    return EQUAL


def _options(given: argparse.Namespace) -> Options:
    cifar: Path | None = given.cifar and given.cifar.resolve()
    for split in ("train", "test") if cifar else ():
        if not (cifar / f"{split}.parquet").is_file():  # type: ignore[operator]
            raise BitsError(f"--cifar {given.cifar}: has no {split}.parquet")
    return Options(given.only, given.jobs, cifar, getattr(given, "brief", False))


def _save(path: Path, found: dict[str, Any]) -> None:
    path.write_text(json.dumps(found, indent=0, separators=(",", ":")) + "\n")


def _load(path: Path) -> dict[str, Any]:
    try:
        found = json.loads(path.read_text())
    except (OSError, ValueError) as error:
        raise BitsError(f"{path}: cannot be read: {error}") from error
    if not isinstance(found, dict) or "experiments" not in found:
        raise BitsError(f"{path}: no record; `python -m tests.bits record {path}` writes one")
    return found


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m tests.bits", description=__doc__)
    commands = parser.add_subparsers(required=True)
    recording = commands.add_parser("record", help="runs the experiments and writes what they gave")
    recording.add_argument("out", type=Path, metavar="OUT.json")
    recording.add_argument(
        "--tree", type=Path, default=REPOSITORY, help="another checkout than this one"
    )
    recording.add_argument(
        "--brief", action="store_true", help="leaves out the hashes of single tensors"
    )
    recording.set_defaults(call=_record)
    comparing = commands.add_parser("compare", help="holds two records against each other")
    comparing.add_argument("first", type=Path)
    comparing.add_argument("second", type=Path)
    comparing.add_argument("--anyway", action="store_true", help="judges other environments, too")
    comparing.set_defaults(call=_compare)
    against = commands.add_parser("against", help="records a commit and this tree, and compares")
    against.add_argument("commit")
    against.add_argument("--out", type=Path, metavar="FOLDER", help="keeps both records")
    against.set_defaults(call=_against)
    for command in (recording, comparing, against):
        command.add_argument(
            "--only", action="append", default=[], choices=NAMES, metavar="NAME",
            help=f"one of {', '.join(NAMES)}; may be repeated",
        )  # fmt: skip
    for command in (recording, against):
        command.add_argument("--jobs", type=int, default=1, help="experiments side by side")
        command.add_argument(
            "--cifar", type=Path, metavar="FOLDER",
            help="train.parquet and test.parquet of CIFAR-10; default: synthetic images",
        )  # fmt: skip
    return parser


if __name__ == "__main__":
    sys.exit(main())
