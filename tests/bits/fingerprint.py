"""What a finished run is reduced to: hashes of its tensors, and the numbers it wrote.

Reads files alone, and needs nothing of sslkit. Text (notes, warnings, names of figures) is left
out, and so is what depends on the clock."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from .trees import BitsError

Values = dict[str, str]
"""Name -> what stands there: numbers as they are, of tensors the start of the SHA-256."""

SECTIONS = ("metrics", "results", "encoder", "checkpoint")
"""In the order in which a difference is easiest to read."""
_TIMED = ("perf/", "system/")
_TIMED_WORDS = ("second", "cost", "perf", "timing")
_SHOWN_DIGITS = 10
_HASH = re.compile(r"[0-9a-f]{64}")
_LINE = 16
"""Blocks of so many values or fewer stand in one line."""
_LIST = 4
"""Longer lists of numbers are hashed."""


def fingerprint(run: Path, *, brief: bool = False) -> dict[str, Any]:
    """Section -> {"sha256": of all of it, "values": what can be read}.

    run: the folder of a finished run. brief: leaves out the hashes of single tensors. Raises
    BitsError where an evaluator failed, as two failures would look the same."""
    results = json.loads((run / "results.json").read_text())
    for part in results.values():
        if isinstance(part, dict) and part.get("errors"):
            raise BitsError(f"evaluators failed: {part['errors']}")
    parts: dict[str, list[tuple[str, str]]] = {
        "metrics": list(_metrics(run)),
        "results": list(_lines(_without_times(results))),
        "encoder": list(_lines(_encoder(run))),
        "checkpoint": list(_lines(_checkpoint(run))),
    }
    found: dict[str, Any] = {}
    for section in SECTIONS:
        lines = parts[section]
        text = "".join(sorted(f"{name}={value}\n" for name, value in lines))  # whatever the order
        tensors = section in ("encoder", "checkpoint")
        found[section] = {
            "sha256": hashlib.sha256(text.encode()).hexdigest(),
            "values": {} if brief and tensors else _shortened(lines),
        }
    return found


def _metrics(run: Path) -> Iterator[tuple[str, str]]:
    for text in (run / "metrics.jsonl").read_text().splitlines():
        line = json.loads(text)
        for name, value in line["metrics"].items():
            if not name.startswith(_TIMED):
                yield f"step {line['step']}, {name}", repr(value)


def _without_times(tree: Any) -> Any:
    """Results without text and seconds."""
    if isinstance(tree, list):
        return [_without_times(value) for value in tree if not isinstance(value, str)]
    if not isinstance(tree, dict):
        return tree
    return {
        key: _without_times(value)
        for key, value in tree.items()
        if not isinstance(value, str) and not any(word in key for word in _TIMED_WORDS)
    }


def _encoder(run: Path) -> dict[str, Any]:
    from safetensors.torch import load_file

    return dict(sorted(load_file(run / "encoder.safetensors").items()))


def _checkpoint(run: Path) -> dict[str, Any]:
    """Weights, the state of the optimiser, and whatever else the last checkpoint holds."""
    import torch

    last = max((run / "checkpoints").glob("step-*.pt"))
    state = torch.load(last, weights_only=True, map_location="cpu")
    return {key: value for key, value in state.items() if key != "format"}


def _lines(tree: Any, where: str = "") -> Iterator[tuple[str, str]]:
    """(name, value) of everything in a tree, in its order. A small block is one value, as in
    `optimization.state.0` = `step float32 9.0, exp_avg <hash>`."""
    if _is_plain(tree):
        yield where, _text(tree)
    elif where and _is_small(tree):
        yield where, ", ".join(f"{key} {_text(value)}" for key, value in sorted(tree.items()))
    else:
        for key, value in tree.items() if isinstance(tree, dict) else enumerate(tree):
            yield from _lines(value, f"{where}.{key}" if where else str(key))


def _is_small(tree: Any) -> bool:
    return isinstance(tree, dict) and len(tree) <= _LINE and all(map(_is_plain, tree.values()))


def _is_plain(value: Any) -> bool:
    """Whether it is one value: no block, and no list of blocks."""
    if isinstance(value, list | tuple):
        return not any(isinstance(item, dict | list | tuple) for item in value)
    return not isinstance(value, dict)


def _text(value: Any) -> str:
    """Exact. Tensors and long lists are hashed whole; `_shortened` cuts the hashes."""
    import torch

    if isinstance(value, torch.Tensor):
        return _tensor_text(value)
    if isinstance(value, list | tuple):
        texts = ", ".join(map(_text, value))
        if len(value) > _LIST:
            return f"{len(value)} values {hashlib.sha256(texts.encode()).hexdigest()}"
        return f"[{texts}]"
    return repr(value)


def _tensor_text(tensor: Any) -> str:
    """The value of a scalar, else the hash of dtype, shape and bytes."""
    import torch

    plain = tensor.detach().contiguous()
    kind = str(plain.dtype).removeprefix("torch.")
    if plain.ndim == 0:
        return f"{kind} {plain.item()!r}"
    digest = hashlib.sha256(f"{kind} {list(plain.shape)} ".encode())
    digest.update(plain.reshape(-1).view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()


def _shortened(lines: list[tuple[str, str]]) -> Values:
    """Name -> value, with the starts of hashes in place of hashes."""
    shown: Values = {}
    for name, value in lines:
        key, number = name, 1
        while key in shown:  # a number that is logged twice in one step
            number += 1
            key = f"{name} ({number})"
        shown[key] = _HASH.sub(lambda found: found[0][:_SHOWN_DIGITS], value)
    return shown
