"""What `sslkit runs show` prints: one run on one screen."""

from __future__ import annotations

import shlex
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from sslkit.evaluation.scores import is_score

from .console import print_line, print_table
from .run_table import age_of, main_scores, shown
from .terminal import display_path

_FIELDS = (
    ("data", ("data.name", "data.train", "data.path", "data.root")),
    ("method", ("method.name", "method.loss.name", "method.head.name")),
    ("backbone", ("backbone.name", "backbone.model", "backbone.weights")),
    ("optimiser", ("optimizer.name", "optimizer.lr", "schedule.name")),
    ("training", ("train.epochs", "train.batch_size", "train.precision", "train.compile")),
)
"""What of a recipe tells most runs apart."""
_MOST_RESUMES = 3
_LONGEST = 120
"""Characters of one value."""


def print_run_details(found: Mapping[str, Any]) -> None:
    """One run. found: `RunDetails.to_json`."""
    print_line(display_path(Path(found["path"])))
    print_table(("what", "found"), [*_state(found), *_recipe(found), *_environment(found)])
    scores = [_score(each) for each in found["scores"] if is_score(each["metric"])]
    if scores:
        # As everywhere else: samples that are no images have no pixels.
        raw = "raw" if any("raw" in each["values"] for each in found["scores"]) else "pixels"
        print_table(
            ("score", "trained", "untrained", raw), scores,
            title="In %, last epoch; [95 % intervals] for this one training",
        )  # fmt: skip
    elif last := main_scores(found["metrics"]):
        words = ", ".join(f"{key} {shown(key, found['metrics'][key])}" for key in last)
        print_line(f"last evaluation: {words}")
    for step in found["next"]:
        print_line(f"{step['for']}: {step['command']}")


def _state(found: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    why = f": {found['why']}" if found["why"] else ""
    owner = f": {found['owner']}" if found["owner"] else ""
    yield "state", f"{found['state']}{why}{owner}"
    total = "" if found["total_steps"] is None else f" of {found['total_steps']}"
    yield "step", f"{found['step']}{total}"
    if (began := found["began"]) is not None:
        yield "began", f"{began[:16].replace('T', ' ')} UTC, {age_of(began)} ago"
    if found["state"] != "finished" and found["changed"] is not None:
        yield "last sign of life", f"{age_of(found['changed'])} ago"
    loss = found["metrics"].get("train/loss")
    if loss is not None:
        yield "last loss", f"{loss:.6g}"
    yield "saved", ", ".join(found["saved"]) or "nothing"
    yield "files", ", ".join(found["files"]) or "none"


def _recipe(found: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    yield "recipe", f"{found['recipe'].get('name', '-')}, hash {found['recipe_hash'] or '-'}"
    yield "seed", str(found["seed"] if found["seed"] is not None else "-")
    for name, fields in _FIELDS:
        values = [
            f"{_label(field)}{found['recipe'][field]}"[:_LONGEST]
            for field in fields
            if found["recipe"].get(field) not in (None, False)
        ]
        if values:
            yield name, ", ".join(values)


def _label(field: str) -> str:
    """What stands before a value: `method.loss.name` is the name of a loss."""
    *around, last = field.split(".")
    if last != "name":
        return f"{last} "
    return f"{around[-1]} " if len(around) > 1 or around[0] == "schedule" else ""


def _environment(found: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    where = found["environment"]
    hardware, torch = _block(where, "hardware"), _block(where, "torch")
    processes = found["processes"]
    machine = [
        str(where.get("device", "-")), str(hardware.get("cpu", "-")),
        f"torch threads {torch.get('num_threads', '-')}",
        f"{processes} process{'' if processes == 1 else 'es'}", f"host {hardware.get('host', '-')}",
    ]  # fmt: skip
    yield "ran on", ", ".join(machine)
    packages = {**_block(where, "packages"), **_block(where, "plugins")}
    shown_packages = [f"{name} {packages[name]}" for name in ("sslkit", "torch", "timm")
                      if name in packages]  # fmt: skip
    plugins = [f"{name} {version}" for name, version in _block(where, "plugins").items()
               if name not in ("sslkit", "torch", "timm")]  # fmt: skip
    python = f"Python {where.get('python', '-')}"
    yield "versions", ", ".join([python, *shown_packages, *plugins])
    if git := _block(where, "git"):
        dirty = ", changed" if git.get("dirty") else ""
        yield "code", f"commit {str(git.get('commit'))[:12]}{dirty}"
    for split, digest in _block(where, "data").items():
        yield f"{split} data", f"fingerprint {digest}"
    if isinstance(command := where.get("command"), list):
        yield "command", _command(command)
    if where.get("forked_from") is not None:
        yield "forked from", str(where["forked_from"])
    history = where.get("history")
    for resume in history[-_MOST_RESUMES:] if isinstance(history, list) else ():
        if isinstance(resume, Mapping):
            changed = ", ".join(_block(resume, "changed")) or "nothing"
            yield (
                "resumed",
                f"at step {resume.get('step')}, {resume.get('time')}; changed: {changed}",
            )


def _command(words: Sequence[Any]) -> str:
    """The command as it was typed, without where the program lies."""
    program, *rest = [str(word) for word in words] or ["-"]
    name = Path(program).name
    if name == "worker.py":
        return "sslkit compare, which started it"
    return shlex.join([name.replace("__main__.py", "sslkit"), *rest])


def _score(each: Mapping[str, Any]) -> tuple[str, str, str, str]:
    values = each["values"]
    raw = values.get("pixels", values.get("raw"))
    return (
        f"{each['evaluator']} {each['metric']}",
        _estimate(values.get("trained")),
        _estimate(values.get("untrained")),
        _estimate(raw),
    )


def _estimate(found: Mapping[str, Any] | None) -> str:
    if found is None or found["value"] is None:
        return "-"
    text = f"{100 * found['value']:.1f}"
    if found["low"] is not None and found["high"] is not None:
        text += f" [{100 * found['low']:.1f}, {100 * found['high']:.1f}]"
    return text


def _block(around: Mapping[str, Any], key: str) -> Mapping[str, Any]:
    found = around.get(key)
    return found if isinstance(found, Mapping) else {}
