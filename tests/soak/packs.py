"""Packs and the journals of packs that are not finished."""

from __future__ import annotations

import hashlib
import json
import random
import struct
from pathlib import Path

from . import nasty
from .attempt import Attempt, Check
from .images import data_arguments
from .sandbox import Outcome, call_sslkit, run
from .special import make_special
from .stock import Stock, pick

_PREFIX = struct.Struct("<8sIIQQ32s")


def make_pack(generator: random.Random, folder: Path, stock: Stock) -> Attempt:
    """A changed pack that is read or checked, or a changed journal that `pack` goes on from."""
    if generator.random() < 0.25:
        return _unfinished(generator, folder, stock)
    path = stock.copy(stock.pack, folder / "data.pack")
    way = pick(generator, {"bytes": 3, "prefix": 2, "description": 5, "special": 0.5})
    if way == "special":
        what = make_special(generator, path)
    elif way == "bytes":
        path.write_bytes(nasty.change_bytes(generator, path.read_bytes()))
        what = "changed bytes"
    else:
        make = _changed_prefix if way == "prefix" else _changed_description
        path.write_bytes(make(generator, path.read_bytes()))
        what = f"changed {way}"
    if generator.random() < 0.4:
        check = _found_out(path, stock)
        return Attempt("pack-verify", ["pack", "--verify", path.name], what, check)
    command = pick(generator, {"embed": 3, "validate": 2, "run": 1, "pack": 1})
    arguments = data_arguments(command, f"{{name: pack, file: {path.name}}}", stock)
    return Attempt(command, arguments, what)


def _found_out(path: Path, stock: Stock) -> Check:
    """`--verify` must not call a pack whole whose bytes are not those that were written."""

    def check(outcome: Outcome) -> list[str]:
        if outcome.code or not path.is_file():
            return []
        changed, written = path.read_bytes(), stock.pack.read_bytes()
        return [] if _pixels(changed) == _pixels(written) else ["calls a damaged pack whole"]

    return check


def _pixels(pack: bytes) -> bytes:
    """Pixels and tables: everything between the prefix and the description."""
    _, _, _, place, _, _ = _PREFIX.unpack_from(pack)
    return pack[4096:place]


def _changed_prefix(generator: random.Random, data: bytes) -> bytes:
    fields = list(_PREFIX.unpack_from(data))
    position = generator.randrange(1, 5)
    limit = 2**32 if position < 3 else 2**64
    fields[position] = generator.choice(
        [0, 1, limit - 1, limit // 2, len(data), (fields[position] + 1) % limit, 2**24]
    )
    return _PREFIX.pack(*fields) + data[_PREFIX.size :]


def _changed_description(generator: random.Random, data: bytes) -> bytes:
    """Another description, under the right digest: the pack of an attacker, not of a bad disk."""
    magic, version, length, place, _, _ = _PREFIX.unpack_from(data)
    tree = json.loads(data[place : place + length])
    text = json.dumps(nasty.change_tree(generator, tree, generator.choice([1, 1, 3]))).encode()
    if generator.random() < 0.1:
        text = generator.choice([b"", b"[" * 100_000, b"null", b"9" * 100_000, b" " * 2**24])
    digest = hashlib.blake2b(text, digest_size=32).digest()
    prefix = _PREFIX.pack(magic, version, len(text), place, place + len(text), digest)
    return prefix + data[_PREFIX.size : place] + text


def _unfinished(generator: random.Random, folder: Path, stock: Stock) -> Attempt:
    """`new.pack.partial` and `new.pack.journal` of a pack that was stopped, then changed."""
    source = f"{{name: image_folder, train: {stock.images}}}"
    arguments = data_arguments("pack", source, stock)
    partial, journal = folder / "new.pack.partial", folder / "new.pack.journal"
    stock.copy(stock.pack, partial)
    journal.write_bytes(stock.journal.read_bytes())
    path = generator.choice([partial, journal, journal])
    if generator.random() < 0.2:
        what = make_special(generator, path)
    else:
        path.write_bytes(nasty.change_bytes(generator, path.read_bytes()))
        what = f"{path.name}: changed bytes"

    def check(outcome: Outcome) -> list[str]:
        made = folder / "new.pack"
        if outcome.code:
            return []
        return [] if made.read_bytes() == stock.pack.read_bytes() else ["writes another pack"]

    return Attempt("pack", arguments, what, check)


def save_journal(stock: Stock) -> None:
    """Keeps the journal of a pack of the stock's images, as it is before the pack is finished."""
    folder = stock.root / "making-journal"
    (folder / "work").mkdir(parents=True)
    source = f"{{name: image_folder, train: {stock.images}}}"

    def stopped(arguments: list[str]) -> None:
        from sslkit.data.pack_journal import Journal

        Journal.finish = lambda self, out: self.close()  # type: ignore[method-assign]
        call_sslkit(arguments)

    run(folder, data_arguments("pack", source, stock), stopped)
    (folder / "work" / "new.pack.journal").rename(stock.journal)
