"""Parquet files: schemas and types, nulls, labels, paths, metadata and damage."""

from __future__ import annotations

import json
import os
import random
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

from . import nasty
from .attempt import Attempt
from .fence import SECRET
from .images import data_arguments, encoded_image
from .special import make_special
from .stock import Stock, pick

_ROWS = 16


def make_parquet_file(generator: random.Random, folder: Path, stock: Stock) -> Attempt:
    """A Parquet file of images, and a command that reads it."""
    path = folder / "data.parquet"
    way = pick(generator, {"table": 6, "bytes": 3, "special": 0.5, "shards": 1})
    if way == "special":
        what = make_special(generator, path)
    elif way == "bytes":
        stock.copy(stock.parquet, path)
        path.write_bytes(_damaged(generator, path.read_bytes()))
        what = "changed bytes"
    else:
        what = _write_table(generator, path, stock)
    source = f"{{name: parquet, train: {path.name}}}"
    if way == "shards":
        (folder / "shards").mkdir()
        stock.copy(stock.parquet, folder / "shards" / "train-0.parquet")
        other = generator.choice(["train-1.parquet", "test-0.parquet", "._x.parquet", "x.parquet"])
        path.rename(folder / "shards" / other)
        source, what = "{name: parquet, train: shards}", f"{what} as {other}"
    if generator.random() < 0.15:
        source = source[:-1] + ", label_column: label}"
    if generator.random() < 0.15:
        source = source[:-1] + ", cache: cache}"
    if generator.random() < 0.5:
        source = source[:-1] + ", max_corrupt_fraction: 1.0}"
    command = pick(generator, {"embed": 4, "pack": 1, "validate": 2, "run": 2})
    return Attempt(command, data_arguments(command, source, stock), what)


def _damaged(generator: random.Random, data: bytes) -> bytes:
    """Changes anywhere, or in the footer, where the schema and the places of pages stand."""
    if generator.random() < 0.5:
        return nasty.change_bytes(generator, data)
    length = int.from_bytes(data[-8:-4], "little")
    footer = nasty.change_bytes(generator, data[-8 - length : -8])
    size = len(footer) if generator.random() < 0.8 else generator.randrange(2**32)
    return data[: -8 - length] + footer + size.to_bytes(4, "little") + b"PAR1"


def _write_table(generator: random.Random, path: Path, stock: Stock) -> str:
    import pyarrow as pa
    from pyarrow import parquet

    rows = generator.choice([_ROWS, _ROWS, _ROWS, 0, 1, 2])
    good = sorted(stock.images.rglob("*.png"))
    images = [
        encoded_image(generator)[1]
        if generator.random() < odd
        else generator.choice(good).read_bytes()
        for odd in [generator.choice([0.0, 0.1, 1.0])] * rows
    ]
    image_way, image_column = _image_column(generator, images, path.parent, stock)
    label_way = generator.choice([*sorted(_LABELS), *["int64"] * len(_LABELS)])
    columns = {generator.choice(["image"] * 8 + ["img", "", "a.b"]): image_column}
    with suppress(Exception):  # not every version of Arrow makes every type
        columns[generator.choice(["label"] * 6 + ["target", "fine_label", "class"])] = pa.array(
            *_LABELS[label_way](generator, rows)
        )
    for _ in range(generator.choice([0, 0, 0, 1, 200])):
        columns[f"extra{len(columns)}"] = pa.array(range(rows), pa.int64())
    table = pa.table(columns)
    if generator.random() < 0.4:
        table = table.replace_schema_metadata(_metadata(generator, list(columns)))
    options = {
        "compression": generator.choice(["none", "snappy", "gzip", "zstd", "lz4", "brotli"]),
        "row_group_size": generator.choice([1, 3, 1000]),
        "use_dictionary": generator.random() < 0.5,
        "data_page_version": generator.choice(["1.0", "2.0"]),
        "store_schema": generator.random() < 0.7,
    }
    try:
        parquet.write_table(table, path, **options)
    except (pa.ArrowException, NotImplementedError) as error:
        parquet.write_table(pa.table({"x": pa.array([1])}), path)
        return f"no table ({str(error)[:60]})"
    return f"{rows} rows, images: {image_way}, labels: {label_way}"


def _image_column(
    generator: random.Random, images: list[bytes], folder: Path, stock: Stock
) -> tuple[str, Any]:
    import pyarrow as pa

    way = pick(
        generator, {"struct": 5, "paths": 3, "binary": 2, "large": 1, "view": 1, "fixed": 1,
                    "dictionary": 1, "list": 1, "nulls": 2, "text": 1, "numbers": 1, "odd": 2}
    )  # fmt: skip
    struct = pa.struct([("bytes", pa.binary()), ("path", pa.string())])
    if way == "struct":
        return way, pa.array([{"bytes": image, "path": "x.png"} for image in images], struct)
    if way == "paths":
        paths = [_hostile_path(generator, folder, stock) for _ in images]
        return way, pa.array([{"bytes": None, "path": path} for path in paths], struct)
    if way == "nulls":
        rows: list[Any] = [
            generator.choice([{"bytes": image, "path": None}, {"bytes": None, "path": None}, None])
            for image in images
        ]
        return way, pa.array(rows, struct)
    types: dict[str, Callable[[], Any]] = {
        "binary": lambda: pa.array(images, pa.binary()),
        "large": lambda: pa.array(images, pa.large_binary()),
        "view": lambda: pa.array(images, pa.binary_view()),
        "fixed": lambda: pa.array([image.ljust(64)[:64] for image in images], pa.binary(64)),
        "dictionary": lambda: pa.array(images, pa.binary()).dictionary_encode(),
        "list": lambda: pa.array([[image] for image in images], pa.list_(pa.binary())),
        "text": lambda: pa.array(["x.png" for _ in images], pa.string()),
        "numbers": lambda: pa.array([1.5 for _ in images], pa.float64()),
        "odd": lambda: pa.array(
            [{"bytes": "text", "path": 1, "more": [1]} for _ in images],
            pa.struct([("bytes", pa.string()), ("path", pa.int8()), ("more", pa.list_(pa.int8()))]),
        ),
    }
    return way, types[way]()


def _hostile_path(generator: random.Random, folder: Path, stock: Stock) -> str | None:
    secret = stock.root / SECRET / "secret.png"
    return generator.choice(
        [
            str(secret), os.path.relpath(secret, folder), "/etc/passwd", "/dev/zero", "/dev/stdin",
            "/proc/self/mem", "../data.parquet", "missing.png", "", ".", "..", "a\0b", "x" * 5000,
            "https://127.0.0.1:9/x.png", "file:///etc/passwd", "s3://bucket/x", "~/x.png", None,
            "\x1b[31m.png", "data.parquet", "images\\a.png", "C:\\x.png", "\u202egnp",
        ]
    )  # fmt: skip


Values = tuple[list[Any], Any]


def _spread(values: list[Any], kind: str | None) -> Callable[[random.Random, int], Values]:
    def made(generator: random.Random, rows: int) -> Values:
        import pyarrow as pa

        arrow = getattr(pa, kind)() if kind else None
        return [generator.choice(values) for _ in range(rows)], arrow

    return made


_LABELS: dict[str, Callable[[random.Random, int], Values]] = {
    **{kind: _spread([0, 1, 2], kind) for kind in
       ("int8", "int16", "int32", "int64", "uint8", "uint16", "uint32", "uint64")},
    "signed extremes": _spread([-(2**63), 2**63 - 1, 0, -1], "int64"),
    "unsigned extremes": _spread([2**64 - 1, 0, 2**63], "uint64"),
    "sparse": _spread([0, 123_456, 2**31 - 1, 2**31], "int64"),
    "minus one": _spread([-1, 0, 1], "int64"),
    "one class": _spread([7], "int64"),
    "nulls": _spread([None, 0, 1], "int64"),
    "all null": _spread([None], "null"),
    "floats": _spread([0.0, 1.0, 1.5], "float64"),
    "not finite": _spread([float("nan"), float("inf"), 0.0], "float32"),
    "truth": _spread([True, False], "bool_"),
    "texts": _spread(["cat", "dog", "\x1b[31m", "", "x" * 3000, "\u202e"], "string"),
    "large texts": _spread(["cat", "dog", None], "large_string"),
    "bytes": _spread([b"cat", b"\xff"], "binary"),
    "lists": _spread([[0], [1, 2], []], None),
    "blocks": _spread([{"a": 1}, {"a": 2}], None),
    "dates": _spread([0, 86_400], "date32"),
    "moments": lambda generator, rows: ([0] * rows, _timestamp()),
    "decimals": lambda generator, rows: ([None] * rows, _decimal()),
}  # fmt: skip


def _timestamp() -> Any:
    import pyarrow as pa

    return pa.timestamp("us", tz="UTC")


def _decimal() -> Any:
    import pyarrow as pa

    return pa.decimal128(38, 10)


def _metadata(generator: random.Random, columns: list[str]) -> dict[bytes, bytes]:
    """What the library `datasets` writes, right or changed."""
    features: dict[str, Any] = {
        "image": {"_type": "Image"},
        "label": {"_type": "ClassLabel", "names": ["cat", "dog", "fox"]},
    }
    tree: Any = {"info": {"features": features}}
    if generator.random() < 0.7:
        tree = nasty.change_tree(generator, tree, generator.choice([1, 2]))
    text = json.dumps(tree)
    if generator.random() < 0.1:
        text = generator.choice(["", "{", "[" * 100_000, "null", "9" * 10_000])
    return {b"huggingface": text.encode("utf-8", "surrogatepass"), b"x": b"\xff"}
