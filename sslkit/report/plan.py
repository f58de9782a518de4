"""A plan, for a person on a terminal."""

from __future__ import annotations

import sys
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from sslkit.api import ViewSpec

from .console import print_table, print_text

_BARS, _PLAIN_BARS = " ▁▂▃▄▅▆▇█", " ..::||##"
"""Eighths of a line; the plain ones for terminals that are not UTF-8."""


def print_plan(plan: Mapping[str, Any], *, recipe: bool = False) -> None:
    """What a run would do. recipe: the resolved recipe stands behind it."""
    print_table(("plan", plan["recipe"]), list(_rows(plan)))
    print("learning rate")
    curve = [point["lr"] for point in plan["lr_curve"]]
    print("\n".join(text_plot(curve, label=f"{plan['peak_lr']:.3g}")))
    for name, points in plan["curves"].items():
        values = [point["value"] for point in points]
        print_text(f"{name}: {values[0]:.4g} at the start, {values[-1]:.4g} at the end")
        print("\n".join(text_plot(values, label=f"{max(values):.4g}")))
    print()
    for statement in plan["statements"]:
        print_text(f"- {statement}", indent="  ")
    for warning in plan["warnings"]:
        print_text(f"warning: {warning['path']}: {warning['message']}", indent="  ")
    print()
    if plan["shared"]:
        print(_SHARED_WORDS)
    elif plan["time"] is None:
        print("the dry run built everything and took one step; nothing was kept")
    else:
        print("everything was built and a few steps were measured; nothing was kept")
    if recipe:
        print(f"\n# the resolved recipe\n{plan['resolved_recipe']}", end="")


def _rows(plan: Mapping[str, Any]) -> Iterable[tuple[str, str]]:
    parameters, disk, noun = plan["parameters"], plan["disk"], plan["data"]["noun"]
    yield "recipe hash", plan["recipe_hash"]
    yield "device", f"{plan['device']}, {plan['precision']}"
    yield "data", _data_words(plan["data"])
    yield "views", ", ".join(f"{v['role']} {ViewSpec(v['size'])}" for v in plan["views"])
    batch = f"{plan['batch_size']:,} {noun}s a step"
    if plan["micro_batch_size"]:
        batch += f", in micro-batches of {plan['micro_batch_size']:,}"
    yield "batch", batch
    if plan["shared"]:
        yield from _shared_rows(plan["shared"], noun)
    for name, value in plan["facts"].items():
        yield name, f"{value:,}" if isinstance(value, int) else str(value)
    yield "steps", f"{plan['total_steps']:,}, {plan['steps_per_epoch']:,} an epoch"
    yield (
        "parameters",
        f"{parameters['encoder']:,} in the encoder, {parameters['other']:,} trained beside it, "
        f"{parameters['trainable']:,} trained, {parameters['all']:,} in all",
    )
    loss = "" if plan["first_loss"] is None else f"loss {plan['first_loss']:.4f}, "
    yield "first step", f"{loss}{plan['first_step_seconds']:.2f} s"
    if plan["time"] is not None:
        yield from _time_rows(plan["time"], noun, shared=plan["shared"] is not None)
    where = "of the process" if plan["device"] == "cpu" else "of the device"
    memory = f"{plan['peak_memory_mb']:,.0f} MB {where}"
    if plan["shared"]:
        memory += f", and {plan['shared']['gradient_mb']:,.1f} MB for gradients on their way"
    yield "peak memory", memory
    yield (
        "disk",
        f"{disk['checkpoint_mb']:,.1f} MB a checkpoint, {disk['checkpoints_mb']:,.1f} MB at most; "
        f"{disk['free_mb']:,.0f} MB free",
    )


_SHARED_WORDS = (
    "one process did the work of each, and its messages were counted, not sent: times are without\n"
    "them, memory is that of one process; nothing was kept"
)


def _shared_rows(shared: Mapping[str, Any], noun: str) -> Iterable[tuple[str, str]]:
    each = f"{shared['images']:,} {noun}s each"
    if shared["parts"] > 1:
        each += f", {shared['at_a_time']:,} at a time"
    seen = shared["objective_images"]
    yield "processes", f"{shared['processes']:,}: {each}; {seen:,} in the objective of each"
    for message in shared["messages"]:
        yield (
            f"{message['about']} a step",
            f"{message['number']:,} {message['operation']}, {size(message['bytes'])} in all",
        )
    if count := shared["sharded_parameters"]:
        kept = -(-count // shared["processes"])
        yield "in parts", f"{count:,} parameters, {kept:,} on each; peak memory has all of them"
    yield "sent a step", f"{size(shared['sent_bytes'])} by each process, in a ring"


def _time_rows(time: Mapping[str, Any], noun: str, *, shared: bool) -> Iterable[tuple[str, str]]:
    yield (
        "step",
        f"{time['step_seconds']:.3g} s, {time['images_per_second']:,.0f} {noun}s/s "
        f"(median of {time['measured_steps']} steps)",
    )
    yield (
        "time",
        f"{duration(time['training_seconds'])} of training + {duration(time['feature_seconds'])} "
        f"of features and batch statistics for {time['evaluations']} evaluations; protocols come "
        f"on top{', on the first process alone' if shared else ''}",
    )


def _data_words(data: Mapping[str, Any]) -> str:
    size = " x ".join(map(str, data["image_size"])) + " px" if data["image_size"] else "any size"
    size = size if data["noun"] == "image" else data["sample"]
    words = [
        f"{data['name']}: {data['train']:,} training and {data['test']:,} test "
        f"{data['noun']}s, {size}"
    ]
    if data["classes"]:
        low, high = data["images_per_class"]
        each = f"{low:,}" if low == high else f"{low:,} to {high:,}"
        words.append(f"{data['classes']} classes of {each}")
    else:
        words.append("no labels")
    if data["in_memory_mb"] is not None:
        words.append(f"{data['in_memory_mb']:,.1f} MB in memory")
    if data["left_out_per_epoch"]:
        words.append(f"{data['left_out_per_epoch']:,} left out of each epoch")
    return ", ".join(words)


def print_estimate(found: Mapping[str, Any]) -> None:
    """What a comparison would take: a row for each arm that is to be run, and the total."""
    rows = [
        (
            arm["arm"],
            str(len(arm["missing_seeds"])),
            f"{arm['steps']:,}",
            duration(arm["seconds"]),
            f"{arm['disk_mb']:,.0f} MB",
        )
        for arm in found["arms"]
    ]
    total = f"{found['steps']:,}", duration(found["seconds"]), f"{found['disk_mb']:,.0f} MB"
    rows.append(("all runs", str(found["runs"]), *total))
    print_table(("one run of", "runs to make", "steps", "time", "disk"), rows)
    for arm in found["arms"]:
        for warning in arm["warnings"]:
            print_text(f"warning: {arm['arm']}: {warning}", indent="  ")
    print(
        "Time: training and features, from a few measured steps; protocols come on top. Disk: "
        f"checkpoints.\nNothing was trained or kept; the comparison would go to {found['folder']}"
    )


def size(nbytes: float) -> str:
    """`512 B`, `3.4 kB`, `1,200 MB`."""
    if nbytes < 1e3:
        return f"{nbytes:.0f} B"
    return f"{nbytes / 1e3:.1f} kB" if nbytes < 1e6 else f"{nbytes / 1e6:,.1f} MB"


def duration(seconds: float) -> str:
    """`45 s`, `12.5 min`, `3.4 h`."""
    if seconds < 100:
        return f"{seconds:.3g} s"
    return f"{seconds / 60:.1f} min" if seconds < 6000 else f"{seconds / 3600:.1f} h"


def text_plot(values: Sequence[float], *, height: int = 5, label: str = "") -> list[str]:
    """Columns of blocks, one for each value, from 0 at the bottom to the largest value at the top,
    which `label` names."""
    highest = max(values, default=0.0)
    filled = [round(8 * height * value / highest) if highest > 0 else 0 for value in values]
    lines = []
    utf8 = (getattr(sys.stdout, "encoding", None) or "").lower().replace("-", "") == "utf8"
    blocks = _BARS if utf8 else _PLAIN_BARS
    for row in reversed(range(height)):
        bars = "".join(blocks[min(max(eighths - 8 * row, 0), 8)] for eighths in filled)
        name = label if row == height - 1 else "0" if row == 0 else ""
        lines.append(f"{name:>10} |{bars}".rstrip())
    return lines
