"""What `sslkit reproduce` prints."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from .console import print_line
from .terminal import display_path

_WORDS = {
    "recipe.seed": "seed",
    "data.train": "training data, by its fingerprint",
    "data.test": "test data, by its fingerprint",
    "torch.num_threads": "torch threads",
    "hardware.cpu": "processor",
    "hardware.gpus": "GPUs",
}
_MOST_CHANGES = 12
_LONGEST = 60


def print_reproduction(found: Mapping[str, Any]) -> None:
    """The verdict, what was compared, and what had changed. found: `Reproduction.to_json`."""
    first, second = (display_path(Path(found[key])) for key in ("run_dir", "new_run_dir"))
    for line in (*_verdict(found), *_causes(found)):
        print_line(line)
    for why in found["skipped"]:
        print_line(f"not compared: {why}")
    print_line(f"{first} and {second}")


def _verdict(found: Mapping[str, Any]) -> Iterator[str]:
    difference = found["first_difference"]
    where = "to the end" if found["whole"] else f"up to step {found['until']}"
    if found["bit_equal"]:
        yield f"bit-equal {where}: {_compared(found)}"
        return
    if difference is not None:
        before = found["equal_until"]
        equal = "" if before is None else f" (equal up to step {before})"
        yield f"differs at step {difference['step']}{equal}: {_difference(difference)}"
        many = f"{found['differing_steps']} of {len(found['steps'])} log steps differ"
        yield f"{many}; {_compared(found)}"
        later = {each["where"]: each for each in found["differences"] if each["where"] != "log"}
        for name, each in later.items():
            if each != difference:
                yield f"{name} differs: {_difference(each)}"
    if found["failure"] is not None:
        yield f"differs: the new run {found['failure']}"


def _compared(found: Mapping[str, Any]) -> str:
    steps = found["steps"]
    span = f", steps {steps[0]} to {steps[-1]}" if len(steps) > 1 else ""
    log = f"{found['numbers']} logged numbers{span}"
    return "; ".join([f"compared were {log}", *found["compared"]])


def _difference(each: Mapping[str, Any]) -> str:
    first, second = each["first"], each["second"]
    if first is None or second is None:
        return f"{each['what']} is only in the {'first' if second is None else 'new'} run"
    size = "" if each["largest"] is None else f" (by {each['largest']:.3g}{_relative(each)})"
    if isinstance(first, str):
        at_most = "" if each["largest"] is None else f" by up to {each['largest']:.3g}"
        return f"{each['what']} ({first}){at_most}"
    return f"{each['what']} {first!r} -> {second!r}{size}"


def _relative(each: Mapping[str, Any]) -> str:
    if isinstance(each["first"], str) or not each["first"]:
        return ""
    return f", {abs(each['largest'] / each['first']):.1e} of it"


def _causes(found: Mapping[str, Any]) -> Iterator[str]:
    changes: Sequence[Mapping[str, Any]] = found["changes"]
    if found["bit_equal"]:
        if changes:
            yield f"although this changed: {'; '.join(map(_change, changes[:_MOST_CHANGES]))}"
        return
    if len(changes) == 1:
        yield f"the one recorded change that may be the cause: {_change(changes[0])}"
    elif changes:
        yield "what changed and may be the cause, the likeliest first:"
        yield from (f"  {_change(each)}" for each in changes[:_MOST_CHANGES])
        if len(changes) > _MOST_CHANGES:
            yield f"  and {len(changes) - _MOST_CHANGES} more, see --json"
    elif not found["promised"]:
        yield "nothing that is recorded changed; on a GPU equal bits take train.deterministic: true"
    else:
        yield (
            "nothing that is recorded changed: a component is no function of its recipe "
            "(sslkit plugins check NAME), or the hardware is at fault"
        )


def _change(each: Mapping[str, Any]) -> str:
    name, first, second = each["name"], each["first"], each["second"]
    change = f"{_WORDS.get(name, name)} {_shown(first)} -> {_shown(second)}"
    if each["at_step"] is not None:
        return f"{change}, in the first run itself, from step {each['at_step']} on"
    if name == "torch.num_threads":
        return f"{change} (OMP_NUM_THREADS={first} has as many)"
    return change


def _shown(value: Any) -> str:
    return "none" if value is None else str(value)[:_LONGEST]
