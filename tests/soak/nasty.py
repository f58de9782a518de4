"""Values, texts and bytes that programs trip over."""

from __future__ import annotations

import copy
import random
from collections.abc import Callable, Iterator
from typing import Any

NUMBERS: tuple[Any, ...] = (
    0, 1, -1, 2, 3, 7, 255, 256, 65_536, 2**31 - 1, 2**31, -(2**31), 2**32, 2**53 + 1, 2**63 - 1,
    2**63, -(2**63), 2**64, 10**30, 10**99, 0.0, -0.0, 0.5, 1e-3, 1.0, 1.5, -0.5, 1e-30, 5e-324,
    1e30, 1e308, -1e308, float("nan"), float("inf"), float("-inf"),
)  # fmt: skip
TEXTS: tuple[str, ...] = (
    "", " ", "~", ".", "..", "/", "-", "--", "0", "1e3", "0x10", "1_000", "yes", "no", "on", "off",
    "null", "None", "nan", ".inf", "true", "{}", "[]", "a.b", "a b", "%s", "%n", "{0}", "{name}",
    "$HOME", "${HOME}", "`id`", "$(id)", "../../etc/passwd", "/dev/zero", "/dev/stdin", "/dev/full",
    "/proc/self/mem", "/proc/self/environ", "~root", "file:///etc/passwd", "http://127.0.0.1:9/x",
    "hf-hub:a/b", "local-dir:/tmp", "CON", "a\x00b", "a\nb", "a\rb", "a\tb", "\x1b[31mred",
    "\x1b]0;title\x07", "\u202egnp.exe", "\u2028", "\ufeff", "\ufffd", "\U0001f98a", "名前", "ﬀ",
    "é", "e\u0301", "İ", "ß", "\U0010ffff", "x" * 300, "y" * 100_000, "a/" * 2000, "é" * 200,
    "simclr", "knn", "synthetic", "timm", "sslkit:simclr", "os:system", "builtins:eval", "a:b:c",
    "__class__", "__init__", "name", "model_config", "!!python/object/apply:os.system",
    "2024-01-01", "12:30:45", "<<", "*", "&a", "!x", "|", ">", "?", "#", "@", "'", '"', "\\",
)  # fmt: skip


def number(generator: random.Random) -> Any:
    """A number of the list, or one near a power of two or ten."""
    if generator.random() < 0.7:
        return generator.choice(NUMBERS)
    value: int = generator.choice([2, 10]) ** generator.randrange(80) + generator.randint(-1, 1)
    return generator.choice([value, -value, float(value), 1.0 / max(value, 1)])


def text(generator: random.Random) -> str:
    """A text of the list, or a few characters from all of Unicode."""
    if generator.random() < 0.8:
        return generator.choice(TEXTS)
    codes = [generator.choice([127, 0x250, 0xD7FF, 0x10FFFF]) for _ in range(8)]
    points = [generator.randrange(limit) for limit in codes]
    return "".join(chr(point) for point in points if not 0xD800 <= point < 0xE000)


def value(generator: random.Random, depth: int = 0) -> Any:
    """Any value that YAML and JSON can hold."""
    kind = generator.randrange(10)
    if kind < 3:
        return number(generator)
    if kind < 6:
        return text(generator)
    if kind == 6 or depth > 2:
        return generator.choice([None, True, False, [], {}])
    if kind == 7:
        return [value(generator, depth + 1) for _ in range(generator.randrange(1, 5))]
    if kind == 8:
        return {text(generator)[:50]: value(generator, depth + 1) for _ in range(3)}
    return nested(generator.choice([3, 20, 60, 120]), generator.random() < 0.5)


def nested(levels: int, as_list: bool) -> Any:
    """A list in a list in a list, or a block in a block."""
    found: Any = 1
    for _ in range(levels):
        found = [found] if as_list else {"a": found}
    return found


def places(tree: Any) -> Iterator[tuple[Any, Any]]:
    """(container, key) of every value in a tree."""
    keys = (
        list(tree) if isinstance(tree, dict) else range(len(tree)) if isinstance(tree, list) else ()
    )
    for key in keys:
        yield tree, key
        yield from places(tree[key])


def change_tree(generator: random.Random, tree: Any, changes: int) -> Any:
    """The tree with values replaced, removed, renamed, exchanged, or added."""
    tree = copy.deepcopy(tree)
    for _ in range(changes):
        found = list(places(tree))
        if not found:
            return tree
        _change(generator, *generator.choice(found), found)
    return tree


def _change(generator: random.Random, container: Any, key: Any, found: list[Any]) -> None:
    what = generator.randrange(10)
    if what < 5:
        container[key] = value(generator)
    elif what == 5:
        del container[key]
    elif what == 6 and isinstance(container, dict):
        container[text(generator)] = container.pop(key)
    elif what == 7:
        other, there = generator.choice(found)
        try:
            container[key] = copy.deepcopy(other[there])
        except (KeyError, IndexError, RecursionError):
            container[key] = None
    elif what == 8 and isinstance(container, list):
        container.extend([container[key]] * generator.choice([1, 3, 1000]))
    elif isinstance(container, dict):
        container[text(generator)] = value(generator)


def change_bytes(generator: random.Random, data: bytes) -> bytes:
    """The bytes with one to four changes of the kinds that discs, networks and attackers make."""
    for _ in range(generator.choice([1, 1, 2, 4])):
        data = generator.choice(_BYTE_CHANGES)(generator, data)
    return data


def _flip(generator: random.Random, data: bytes) -> bytes:
    changed = bytearray(data)
    for _ in range(generator.choice([1, 1, 3, 20]) if data else 0):
        changed[generator.randrange(len(data))] ^= 1 << generator.randrange(8)
    return bytes(changed)


def _truncate(generator: random.Random, data: bytes) -> bytes:
    return data[: generator.randrange(len(data) + 1)]


def _cut_out(generator: random.Random, data: bytes) -> bytes:
    start = generator.randrange(len(data) + 1)
    return data[:start] + data[start + generator.choice([1, 7, 100, 4096]) :]


def _insert(generator: random.Random, data: bytes) -> bytes:
    start = generator.randrange(len(data) + 1)
    return data[:start] + generator.randbytes(generator.choice([1, 7, 100])) + data[start:]


def _overwrite(generator: random.Random, data: bytes) -> bytes:
    start = generator.randrange(len(data) + 1)
    filler = generator.choice([b"\0", b"\xff", b"\x7f", b"0", b"{"])
    new = filler * generator.choice([1, 4, 8, 64])
    return data[:start] + new + data[start + len(new) :]


def _start_of_file(generator: random.Random, data: bytes) -> bytes:
    """Headers are where formats are thickest."""
    head = bytearray(data[:64])
    for _ in range(3 if head else 0):
        head[generator.randrange(len(head))] = generator.randrange(256)
    return bytes(head) + data[64:]


def _append(generator: random.Random, data: bytes) -> bytes:
    return data + generator.choice([b"\0" * 4096, b"\n", data[:1000], generator.randbytes(50)])


_BYTE_CHANGES: tuple[Callable[[random.Random, bytes], bytes], ...] = (
    _flip, _flip, _truncate, _cut_out, _insert, _overwrite, _start_of_file, _append,
)  # fmt: skip
