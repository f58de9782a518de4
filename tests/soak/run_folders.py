"""Run folders as a stranger might send them: damaged, exchanged, and made to harm."""

from __future__ import annotations

import json
import os
import random
import shutil
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import yaml

from sslkit.runs.checkpoint import FORMAT_WITHOUT_DIGEST

from . import nasty
from .attempt import Attempt, Check
from .fence import SECRET
from .sandbox import Outcome
from .special import make_special
from .stock import EXPECTED, Stock, pick
from .weight_files import write_hostile_weights

_COMMANDS = {
    "eval": 3.0, "embed": 3.0, "export": 2.0, "sync": 2.0, "compare": 2.0, "resume": 3.0,
    "fork": 2.0, "load_encoder": 2.0, "verify": 1.0,
}  # fmt: skip


def make_run_folder(generator: random.Random, folder: Path, stock: Stock) -> Attempt:
    """A copy of a run with one to three changes, and a command that reads it."""
    command = pick(generator, _COMMANDS)
    name = "tracked" if command == "sync" else "run"
    run = stock.copy(stock.run if name == "run" else stock.tracked, folder / name)
    if name == "tracked":
        stock.copy(stock.root / "mlflow.db", folder / "mlflow.db")
    stock.copy(stock.root / "tiny.yaml", folder / "tiny.yaml")
    if command == "resume":
        (run / "results.json").unlink()
    changes = [_change(generator, run, stock) for _ in range(generator.choice([1, 1, 1, 2, 3]))]
    check = _same_features(folder, stock) if command == "embed" and _only_bits(changes) else None
    return Attempt(command, _arguments(command, stock), f"{command}: {'; '.join(changes)}", check)


def _arguments(command: str, stock: Stock) -> list[str]:
    images = f"{{name: image_folder, train: {stock.images}}}"
    return {
        "eval": ["eval", "run", "--protocol", "knn"],
        "embed": ["embed", "run/checkpoints/step-00000006.pt", images, "-O", "features.parquet"],
        "export": ["export", "run", "--format", "timm"],
        "sync": ["sync", "tracked"],
        "compare": ["compare", "run", str(stock.second), "--map", "none"],
        "resume": ["run", "--resume", "run"],
        "fork": ["run", "tiny.yaml", "--fork", "run", "-o", "train.epochs=3"],
        "load_encoder": ["load_encoder", "run"],
        "verify": ["verify", "--run", "run", "tiny.yaml", "-o", EXPECTED],
    }[command]


def _change(generator: random.Random, run: Path, stock: Stock) -> str:
    files = sorted(path for path in run.rglob("*") if path.is_file() and not path.is_symlink())
    if not files:
        return "nothing left"
    # The files that commands read, more often than figures.
    weights = [0.2 if path.suffix in (".png", ".md", "") else 1.0 for path in files]
    (path,) = generator.choices(files, weights)
    what = pick(generator, {"bytes": 3, "content": 5, "special": 1.5, "swap": 1, "paths": 1})
    if what == "content" and path.suffix in _CONTENT:
        with suppress(Exception):  # an earlier change has broken it: then bytes are changed below
            return f"{path.name}: {_CONTENT[path.suffix](generator, path)}"
    if what == "special":
        return make_special(generator, path)
    if what == "swap":
        other = generator.choice(files)
        shutil.copyfile(other, path.with_name("swap.tmp"))
        path.with_name("swap.tmp").replace(path)
        return f"{path.name}: content of {other.name}"
    if what == "paths":
        return _hostile_paths(generator, run, stock)
    path.write_bytes(nasty.change_bytes(generator, path.read_bytes()))
    return f"{path.name}: changed bytes"


def _only_bits(changes: list[str]) -> bool:
    return all(change.endswith("changed bytes") for change in changes)


def _same_features(folder: Path, stock: Stock) -> Check:
    """Whoever reads a damaged checkpoint must not get other numbers without a word."""

    def check(outcome: Outcome) -> list[str]:
        from pyarrow import parquet

        clean = stock.root / "clean" / "embed" / "work" / "features.parquet"
        if outcome.code or "warning" in outcome.stderr:
            return []
        same = parquet.read_table(folder / "features.parquet").equals(parquet.read_table(clean))
        return [] if same else ["embeds by damaged weights without a word"]

    return check


# --- Content by the kind of file ------------------------------------------------------------------


def _json(generator: random.Random, path: Path) -> str:
    if generator.random() < 0.3:
        name, text = generator.choice(list(_JSON_TRICKS.items()))
        path.write_text(text)
        return name
    tree = nasty.change_tree(generator, json.loads(path.read_text()), generator.choice([1, 1, 3]))
    path.write_text(json.dumps(tree))
    return "a changed tree"


_JSON_TRICKS: dict[str, str] = {
    "deep lists": "[" * 200_000 + "]" * 200_000,
    "deep blocks": '{"a":' * 100_000 + "1" + "}" * 100_000,
    "a huge integer": '{"facts": ' + "9" * 1_000_000 + "}",
    "many keys": "{" + ", ".join(f'"k{i}": {i}' for i in range(200_000)) + "}",
    "one key twice": '{"facts": 1, "facts": {}}',
    "a bare value": "1",
    "null": "null",
    "a lone surrogate": '{"facts": "\\ud800", "plugins": "\\udfff"}',
    "NaN": '{"facts": NaN, "x": -Infinity}',
    "nothing": "",
    "not JSON": "{'facts': 1}",
    "a long text": json.dumps({"facts": "x" * 30_000_000}),
}


def _lines(generator: random.Random, path: Path) -> str:
    lines = path.read_text().splitlines()
    name = pick(generator, {**dict.fromkeys(_LINES, 1.0), "a changed line": 5.0})
    position = generator.randrange(len(lines) + 1)
    if name == "a changed line" and lines:
        tree = json.loads(lines[position - 1])
        lines[position - 1] = json.dumps(nasty.change_tree(generator, tree, 1))
    else:
        lines.insert(position, _LINES.get(name, ""))
    path.write_text("\n".join(lines) + "\n")
    return name


_LINES: dict[str, str] = {
    "a deep line": "[" * 100_000 + "]" * 100_000,
    "a long line": '{"step": 3, "metrics": {"a": "' + "x" * 60_000_000 + '"}}',
    "a huge step": '{"step": ' + "9" * 5000 + ', "time_ms": 1, "metrics": {"train/loss": 1}}',
    "a far step": '{"step": 99999999999999999999, "time_ms": 1, "metrics": {"train/loss": 1}}',
    "a step below zero": '{"step": -5, "time_ms": -1, "metrics": {"train/loss": 1}}',
    "values out of range": '{"step": 3, "time_ms": 1, "metrics": {"train/loss": 1e999}}',
    "a huge value": '{"step": 3, "time_ms": 1, "metrics": {"train/loss": ' + "9" * 400 + "}}",
    "many metrics": '{"step": 3, "time_ms": 1, "metrics": {'
    + ", ".join(f'"m/{i}": 1' for i in range(50_000))
    + "}}",
    "odd names": '{"step": 3, "time_ms": 1, "metrics": {"../\\u001b[31m\\u0000": 1, "": 2}}',
    "an infinite step": '{"step": 1e999, "time_ms": 1, "metrics": {}}',
    "not UTF-8": '{"step": 3, "time_ms": 1, "metrics": {"\udcff": 1}}'.encode(
        "utf-8", "surrogateescape"
    ).decode("latin-1"),
}


def _yaml(generator: random.Random, path: Path) -> str:
    tree = yaml.safe_load(path.read_text())
    changed = nasty.change_tree(generator, tree, generator.choice([1, 1, 2]))
    path.write_text(
        yaml.safe_dump(changed, sort_keys=False, allow_unicode=True), "utf-8", "replace"
    )
    return "a changed tree"


def _weights(generator: random.Random, path: Path) -> str:
    return write_hostile_weights(generator, path)


def _checkpoint(generator: random.Random, path: Path) -> str:
    """A checkpoint whose tensors and values are not those of the run."""
    import torch

    if generator.random() < 0.4:
        return write_hostile_weights(generator, path)
    state = torch.load(path, weights_only=True)
    changed = nasty.change_tree(generator, _plain(state), generator.choice([1, 2, 5]))
    if isinstance(changed, dict) and generator.random() < 0.8:
        changed["format"] = FORMAT_WITHOUT_DIGEST  # or it would fail by its digest alone
    torch.save(changed, path)
    return "a changed state"


def _plain(tree: Any) -> Any:
    """The state with plain dicts, and tuples as lists, which can be changed."""
    if isinstance(tree, dict):
        return {key: _plain(value) for key, value in tree.items()}
    return [_plain(value) for value in tree] if isinstance(tree, list | tuple) else tree


_CONTENT: dict[str, Callable[[random.Random, Path], str]] = {
    ".json": _json,
    ".jsonl": _lines,
    ".yaml": _yaml,
    ".safetensors": _weights,
    ".pt": _checkpoint,
}


def _hostile_paths(generator: random.Random, run: Path, stock: Stock) -> str:
    """Names in the folder that lead out of it."""
    secret = stock.root / SECRET / "secret.png"
    what = pick(generator, {"artifacts": 2, "file": 1, "folder": 1})
    if what == "artifacts":
        tracker = run / "tracker.json"
        try:
            record = json.loads(tracker.read_text())
        except (OSError, ValueError):
            record = {}
        climbing = os.path.relpath(secret, run)
        given = generator.choice([str(secret), climbing, "/etc/passwd", ".."])
        record["artifacts"] = [{"path": given, "folder": "", "sent": False}]
        tracker.unlink(missing_ok=True)
        tracker.write_text(json.dumps(record))
        return f"tracker.json names {given}"
    files = sorted(path for path in run.rglob("*") if path.is_file() or path.is_dir())
    path = generator.choice(files)
    path.rename(path.with_name(path.name + ".aside"))
    path.symlink_to(secret if what == "file" else secret.parent)
    return f"{path.name}: a link out of the folder"
