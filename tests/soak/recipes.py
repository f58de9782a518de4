"""Recipes and overrides: broken text, strange values, other components, tricks of YAML."""

from __future__ import annotations

import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import yaml

from . import nasty
from .attempt import Attempt
from .oracle import MARKER
from .special import make_special
from .stock import RECIPE, Stock, pick


def make_recipe(generator: random.Random, folder: Path, stock: Stock) -> Attempt:
    """A recipe file that is not as it should be, to validate."""
    path = folder / "recipe.yaml"
    way = pick(
        generator, {"tree": 5, "bytes": 2, "lines": 2, "yaml": 2, "generated": 4, "special": 0.4}
    )
    if way == "special":
        return Attempt("validate", ["validate", str(path.name)], make_special(generator, path))
    content, what = _WAYS[way](generator, stock)
    path.write_bytes(content)
    return Attempt("validate", ["validate", path.name], what)


def make_overrides(generator: random.Random, folder: Path, stock: Stock) -> Attempt:
    """A good recipe with overrides that are not."""
    del stock
    (folder / "recipe.yaml").write_text(RECIPE)
    arguments = ["validate", "recipe.yaml"]
    for _ in range(generator.choice([1, 1, 1, 2, 4])):
        arguments += ["-o", _override(generator)]
    if generator.random() < 0.02:
        arguments += [word for i in range(2000) for word in ("-o", f"train.unknown{i}=1")]
    return Attempt("validate", arguments, f"-o {arguments[3][:80]}")


def make_training(generator: random.Random, folder: Path, stock: Stock) -> Attempt:
    """One step of a recipe with extreme numbers where numbers are not sizes."""
    tree = yaml.safe_load(RECIPE)
    path = generator.choice(_TRAINED_NUMBERS)
    block: Any = tree
    for part in path[:-1]:
        block = block.setdefault(part, {}) if isinstance(block, dict) else block[part]
    block[path[-1]] = nasty.number(generator)
    if generator.random() < 0.3:
        name, method = generator.choice(list(_METHODS.items()))
        tree["method"] = {"name": name, **method}
    (folder / "recipe.yaml").write_text(yaml.safe_dump(tree))
    what = f"{'.'.join(map(str, path))}={block[path[-1]]!r} by {tree['method']['name']}"
    if generator.random() < 0.3:
        return Attempt("dry-run", ["run", "recipe.yaml", "--dry-run"], what)
    return Attempt("run", ["run", "recipe.yaml"], what)


_HEAD = {"name": "mlp", "hidden_dim": 16, "out_dim": 8}
_METHODS: dict[str, dict[str, Any]] = {
    "byol": {"projector": _HEAD, "predictor": _HEAD},
    "moco_v2": {"head": _HEAD, "queue_size": 32},
    "moco_v3": {"projector": _HEAD, "predictor": _HEAD},
}
_TRAINED_NUMBERS: tuple[tuple[str | int, ...], ...] = (
    ("seed",), ("optimizer", "lr"), ("optimizer", "weight_decay"), ("optimizer", "eps"),
    ("optimizer", "betas"), ("schedule", "warmup_epochs"), ("schedule", "final_lr"),
    ("method", "loss", "temperature"), ("method", "teacher_momentum"),
    ("augmentation", "jitter_strength"), ("augmentation", "hue"), ("augmentation", "brightness"),
    ("augmentation", "flip"),
    ("augmentation", "grayscale_probability"), ("backbone", "drop_path_rate"),
    ("train", "log_every_steps"), ("train", "checkpoint_every_steps"), ("train", "clip_grad_norm"),
    ("train", "keep_checkpoints"), ("train", "micro_batch_size"), ("train", "loader_threads"),
    ("evaluate", 0, "k"), ("evaluate", 0, "temperature"), ("evaluate", 0, "every_epochs"),
    ("evaluate", 1, "every_epochs"), ("train", "batch_size"), ("augmentation", "crop_scale"),
)  # fmt: skip


# --- Ways to make a recipe ------------------------------------------------------------------------


def _base(generator: random.Random, stock: Stock) -> str:
    if generator.random() < 0.6:
        return RECIPE
    return stock.recipes[generator.choice(sorted(stock.recipes))]


def _changed_tree(generator: random.Random, stock: Stock) -> tuple[bytes, str]:
    tree = nasty.change_tree(
        generator, yaml.safe_load(_base(generator, stock)), generator.choice([1, 1, 2, 5])
    )
    return _dumped(tree), "a changed tree"


def _dumped(tree: Any) -> bytes:
    text: str = yaml.safe_dump(tree, sort_keys=False, allow_unicode=True)
    return text.encode("utf-8", errors="surrogatepass")


def _changed_bytes(generator: random.Random, stock: Stock) -> tuple[bytes, str]:
    data = _base(generator, stock).encode()
    if generator.random() < 0.4:
        return generator.choice(_ENCODED)(data), "another encoding"
    return nasty.change_bytes(generator, data), "changed bytes"


_ENCODED: tuple[Callable[[bytes], bytes], ...] = (
    lambda data: data.replace(b"\n", b"\r\n"),
    lambda data: data.replace(b"\n", b"\r"),
    lambda data: b"\xef\xbb\xbf" + data,
    lambda data: data.decode().encode("utf-16"),
    lambda data: data.decode().encode("utf-32"),
    lambda data: data + b"\xff\xfe",
    lambda data: data + b"\0",
    lambda data: data.replace(b" ", b"\t"),
    lambda data: data.replace(b" ", "\u00a0".encode()),
    lambda data: b"",
    lambda data: b"\n" * 100_000 + data,
    lambda data: data + b"# " + b"x" * 2_000_000,
    lambda data: data + b"\x85\xe2\x80\xa8",
)


def _changed_lines(generator: random.Random, stock: Stock) -> tuple[bytes, str]:
    lines = _base(generator, stock).splitlines()
    position = generator.randrange(len(lines))
    what = pick(generator, {"twice": 1, "gone": 1, "indented": 1, "swapped": 1, "inserted": 3})
    if what == "twice":
        lines[position:position] = [lines[position]] * generator.choice([1, 2, 500])
    elif what == "gone":
        del lines[position]
    elif what == "indented":
        lines[position] = " " * generator.randrange(1, 9) + lines[position]
    elif what == "swapped":
        other = generator.randrange(len(lines))
        lines[position], lines[other] = lines[other], lines[position]
    else:
        lines.insert(position, f"{nasty.text(generator)}: {nasty.text(generator)}")
    return "\n".join(lines).encode("utf-8", "replace"), f"a line {what}"


def _yaml_tricks(generator: random.Random, stock: Stock) -> tuple[bytes, str]:
    base = _base(generator, stock)
    name, trick = generator.choice(list(_TRICKS.items()))
    if generator.random() < 0.5:
        return (trick + "\n" + base).encode(), name
    return (base + "\n" + trick + "\n").encode(), name


_LAUGHS = "\n".join(
    f"l{i}: &l{i} [{', '.join([f'*l{i - 1}' if i else 'ha'] * 9)}]" for i in range(12)
)
_TRICKS: dict[str, str] = {
    "billion laughs": _LAUGHS,
    "an alias to itself": "loop: &x [*x]",
    "an unknown alias": "name: *nowhere",
    "a merge key": "base: &b {epochs: 1}\ntrain:\n  <<: *b",
    "a python object": f"name: !!python/object/apply:os.system ['touch {MARKER}']",
    "a python name": "name: !!python/name:os.system",
    "a python module": "name: !!python/module:subprocess",
    "a python tuple": "seed: !!python/tuple [1]",
    "a new object": f"name: !!python/object/new:os.system ['touch {MARKER}']",
    "an own tag": "name: !secret x",
    "binary": "name: !!binary aGVsbG8=",
    "a set": "name: !!set {a, b}",
    "an omap": "name: !!omap [a: 1]",
    "a timestamp": "seed: 2001-12-14t21:59:43.10-05:00",
    "a second document": "---\nname: b",
    "a directive": "%YAML 3.0\n---\nname: x",
    "a complex key": "? [a, b]\n: c",
    "a key that is null": "~: 1",
    "a key that is a number": "1: 2\n1.0: 3",
    "deep flow": "x: " + "[" * 5000,
    "deep blocks": "\n".join(" " * i + f"k{i}:" for i in range(400)),
    "many unknown keys": "\n".join(f"key{i}: {i}" for i in range(10_000)),
    "many near keys": "train: {" + ", ".join(f"epochs{i}: 1" for i in range(3000)) + "}",
    "a long key": "k" * 200_000 + ": 1",
    "a long line": "name: " + "n" * 900_000,
    "a huge integer": "seed: " + "9" * 200_000,
    "a huge hexadecimal": "seed: 0x" + "f" * 100_000,
    "a huge exponent": "seed: 1e99999999999",
    "an unclosed quote": "name: 'x",
    "a block scalar": "name: |\n  a\n  b",
    "escapes": r'name: "\x00\u202e\U0010ffff\e[31m"',
    "a long list": "evaluate: [" + ", ".join(["{name: knn, k: 3}"] * 3000) + "]",
}


def _generated(generator: random.Random, stock: Stock) -> tuple[bytes, str]:
    """Installed components, put together at random, some of their fields set."""
    from sslkit.host.plugins import load_plugins

    del stock
    registry = load_plugins().registry
    tree = yaml.safe_load(RECIPE)
    for key, kind in _KINDS.items():
        if generator.random() < 0.4:
            name = generator.choice(sorted(registry.names(kind)))
            block = _component(generator, registry, kind, name)
            tree[key] = [block] * generator.choice([1, 2]) if key in _LISTS else block
    return _dumped(tree), "components at random"


_KINDS = {
    "data": "dataset", "augmentation": "augmentation", "backbone": "backbone", "method": "method",
    "optimizer": "optimizer", "schedule": "schedule", "evaluate": "evaluator",
    "tracking": "tracker", "callbacks": "callback",
}  # fmt: skip
_LISTS = ("evaluate", "callbacks")


def _component(generator: random.Random, registry: Any, kind: str, name: str) -> dict[str, Any]:
    block: dict[str, Any] = {"name": name}
    fields = list(registry.resolve(kind, name).cls.Config.model_fields)
    for field in generator.sample(fields, min(len(fields), generator.randrange(4))):
        block[field] = nasty.value(generator)
    return block


_WAYS: dict[str, Callable[[random.Random, Stock], tuple[bytes, str]]] = {
    "tree": _changed_tree,
    "bytes": _changed_bytes,
    "lines": _changed_lines,
    "yaml": _yaml_tricks,
    "generated": _generated,
}


# --- Overrides ------------------------------------------------------------------------------------


def _override(generator: random.Random) -> str:
    """`PATH=VALUE`, of which at least one part is odd. No NUL: no command line can hold it."""
    tree = yaml.safe_load(RECIPE)
    paths = [".".join(map(str, path)) for path in _paths(tree, ())]
    path = generator.choice([*paths, *_MORE_PATHS])
    if generator.random() < 0.25:
        path = generator.choice(
            [nasty.text(generator), f"{path}.{nasty.text(generator)}", f"{path}.0", f".{path}",
             f"{path}.", path.upper(), path[:-1], f"{path}{path}"]
        )  # fmt: skip
    shown = yaml.safe_dump(nasty.value(generator), default_flow_style=True, width=10**9).strip()
    given = generator.choice([nasty.text(generator), shown.removesuffix("\n..."), shown])
    joined = generator.choice(["="] * 20 + ["", "==", ":", " = "])
    return f"{path}{joined}{given}".replace("\0", "\udcff")


_MORE_PATHS = (
    "train.max_steps", "train.precision", "train.compile", "train.micro_batch_size", "runs_dir",
    "train.device", "train.clip_grad_norm", "train.deterministic", "callbacks", "expect", "seed",
    "method.loss", "method.loss.temperature", "backbone.weights", "backbone.pretrained", "origins",
    "tracking.uri", "tracking.experiment", "data.max_corrupt_fraction", "evaluate.0.every_epochs",
    "evaluate.1", "evaluate.-1", "evaluate.99", "evaluate.0.0", "optimizer.betas.0", "expect.a/b",
)  # fmt: skip


def _paths(tree: Any, path: tuple[Any, ...]) -> list[tuple[Any, ...]]:
    items = (
        tree.items()
        if isinstance(tree, dict)
        else enumerate(tree)
        if isinstance(tree, list)
        else ()
    )
    found = [path] if path else []
    for key, child in items:
        found += _paths(child, (*path, key))
    return found
