"""Files of weights: changed headers, strange tensors, and pickles that would run code."""

from __future__ import annotations

import io
import json
import pickle
import pickletools
import random
import struct
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

from . import nasty
from .attempt import Attempt
from .oracle import MARKER
from .stock import Stock, pick


def make_weights(generator: random.Random, folder: Path, stock: Stock) -> Attempt:
    """A file of weights, given to the commands and fields that take one."""
    stock.copy(stock.root / "tiny.yaml", folder / "tiny.yaml")
    suffix = generator.choice([".safetensors", ".pth", ".pt", ".bin"])
    path = folder / f"weights{suffix}"
    stock.copy(stock.run / "encoder.safetensors", path)
    what = write_hostile_weights(generator, path)
    command = pick(generator, {"eval-weights": 3, "load_encoder": 1, "run": 2})
    arguments = {
        "eval-weights": ["eval", path.name, "--recipe", "tiny.yaml"],
        "load_encoder": ["load_encoder", path.name],
        "run": ["run", "tiny.yaml", "-o", f"backbone.weights={path.name}"],
    }[command]
    return Attempt(command, arguments, f"{command} {path.name}: {what}")


def write_hostile_weights(generator: random.Random, path: Path) -> str:
    """Replaces a weight file or checkpoint. Returns what by."""
    if path.suffix == ".safetensors" and generator.random() < 0.8:
        changed, what = _safetensors(generator, path.read_bytes())
        path.write_bytes(changed)
        return what
    what = pick(generator, {**dict.fromkeys(_TORCH_FILES, 1.0), "tensors": 4})
    path.write_bytes(_TORCH_FILES.get(what, _odd_tensors)(generator))
    return what


# --- safetensors ----------------------------------------------------------------------------------


def _safetensors(generator: random.Random, data: bytes) -> tuple[bytes, str]:
    (length,) = struct.unpack("<Q", data[:8])
    header, body = json.loads(data[8 : 8 + length]), data[8 + length :]
    if generator.random() < 0.8:  # an attacker's file, which does not fail by its digest alone
        _drop_digest(header["__metadata__"])
    what = pick(generator, {"tree": 4, "length": 1, "bytes": 2, "entry": 4, "metadata": 3})
    if what == "bytes":
        return nasty.change_bytes(generator, data), "changed bytes"
    if what == "length":
        given = generator.choice([0, 1, length - 1, length + 1, 2**30, 2**40, 2**63, 2**64 - 1])
        return struct.pack("<Q", given) + data[8:], f"a header of {given} bytes"
    if what == "tree":
        header = nasty.change_tree(generator, header, generator.choice([1, 2, 5]))
    elif what == "metadata":
        _change_metadata(generator, header)
    else:
        what = _change_entry(generator, header)
    text = json.dumps(header).encode("utf-8", "surrogatepass")
    return struct.pack("<Q", len(text)) + text + body, f"header: {what}"


def _drop_digest(metadata: dict[str, str]) -> None:
    """Makes the file one that says it has no digest, as those of other programs."""
    metadata.pop("sslkit.sha256", None)
    described = json.loads(metadata["sslkit"])
    described.pop("digested", None)
    metadata["sslkit"] = json.dumps(described)


def _change_metadata(generator: random.Random, header: dict[str, Any]) -> None:
    metadata = header["__metadata__"]
    key = generator.choice(sorted(metadata))
    if generator.random() < 0.8:
        try:
            tree = nasty.change_tree(generator, json.loads(metadata[key]), 1)
        except ValueError:
            tree = nasty.value(generator)
        metadata[key] = json.dumps(tree)
    else:
        metadata[key] = generator.choice(["", "[" * 100_000, "{}", "null", "9" * 10_000])


def _change_entry(generator: random.Random, header: dict[str, Any]) -> str:
    names = [name for name in header if name != "__metadata__"]
    name = generator.choice(names)
    entry = header[name]
    what = pick(generator, {"dtype": 1, "shape": 1, "offsets": 1, "prefix": 1, "name": 1})
    if what == "dtype":
        entry["dtype"] = generator.choice(["F16", "BF16", "F64", "I64", "U8", "F8_E4M3", "X", ""])
    elif what == "shape":
        entry["shape"] = generator.choice([[], [0], [2**40], [2**62, 4], [-1], [1] * 100, [1.5]])
    elif what == "offsets":
        entry["data_offsets"] = generator.choice([[0, 0], [0, 2**50], [8, 4], [-8, 8], [0, 1]])
    elif what == "prefix":
        prefix = generator.choice(["module.", "_orig_mod.", "backbone.", "teacher.", "x" * 10_000])
        for known in names:
            header[prefix + known] = header.pop(known)
    else:
        header[nasty.text(generator)] = header.pop(name)
    return what


# --- torch.save -----------------------------------------------------------------------------------


class _Attack:
    """Unpickled by a careless reader, it makes a file."""

    def __init__(self, how: str) -> None:
        self.how = how

    def __reduce__(self) -> tuple[Any, ...]:
        import os

        if self.how == "system":
            return os.system, (f"touch {MARKER}",)
        if self.how == "eval":
            return eval, (f"open({MARKER!r}, 'w')",)
        return open, (MARKER, "w")


def _saved(content: Any) -> bytes:
    import torch

    buffer = io.BytesIO()
    torch.save(content, buffer)
    return buffer.getvalue()


def _odd_tensors(generator: random.Random) -> bytes:
    """Weights of the right names with strange values, types and sizes, and things between."""
    import timm
    import torch

    state: dict[Any, Any] = dict(timm.create_model("test_resnet", num_classes=0).state_dict())
    for _ in range(generator.choice([0, 1, 2, 10])):
        name = generator.choice([key for key in state if isinstance(key, str)])
        old = state[name]
        shape = tuple(old.shape) if isinstance(old, torch.Tensor) else (2,)
        state[name] = generator.choice(
            [
                torch.full(shape, float("nan")), torch.full(shape, 3e38), torch.zeros(shape).half(),
                torch.zeros(shape, dtype=torch.complex64), torch.zeros(shape).to_sparse(),
                torch.zeros(shape, dtype=torch.int64), torch.zeros(0),
                torch.zeros(()).expand(shape),
                torch.zeros(1).expand(2**20, 2**20), torch.zeros(shape, device="meta"), None, "x",
                3, [1], {}, torch.zeros((1,) * 20), torch.zeros(shape, dtype=torch.bfloat16),
                torch.zeros(shape, dtype=torch.float8_e4m3fn),
            ]
        )  # fmt: skip
    if generator.random() < 0.2:
        state[generator.choice([1, None, (1, 2), b"x", 1.5])] = torch.zeros(1)
    prefix = generator.choice(["", "", "module.", "_orig_mod.", "module.encoder_q.", "backbone."])
    state = {prefix + key if isinstance(key, str) else key: v for key, v in state.items()}
    wrapper = generator.choice([None, "state_dict", "model", "teacher", "x"])
    return _saved({wrapper: state} if wrapper else state)


def _legacy(generator: random.Random) -> bytes:
    return pickle.dumps({"state_dict": _Attack(generator.choice(["system", "eval", "open"]))})


def _attack(generator: random.Random) -> bytes:
    import torch

    found = _Attack(generator.choice(["system", "eval", "open"]))
    return _saved({"state_dict": {"conv.weight": torch.zeros(2), "x": found}})


def _rezipped(change: Callable[[bytes], bytes]) -> Callable[[random.Random], bytes]:
    """A torch file whose pickle is changed, in a whole archive."""

    def made(generator: random.Random) -> bytes:
        import torch

        source = zipfile.ZipFile(io.BytesIO(_saved({"a": torch.zeros(4)})))
        target = io.BytesIO()
        with zipfile.ZipFile(target, "w") as archive:
            for name in source.namelist():
                data = source.read(name)
                archive.writestr(name, change(data) if name.endswith("data.pkl") else data)
        return target.getvalue()

    return made


def _bomb(generator: random.Random) -> bytes:
    target = io.BytesIO()
    with zipfile.ZipFile(target, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("archive/data.pkl", b"\x80\x02}q\x00." + bytes(200_000_000))
        archive.writestr("archive/version", "3\n")
    return target.getvalue()


def _climbing(generator: random.Random) -> bytes:
    target = io.BytesIO()
    with zipfile.ZipFile(target, "w") as archive:
        archive.writestr(f"../{MARKER}", b"x")
        archive.writestr("archive/data.pkl", pickle.dumps({"a": 1}, 2))
        archive.writestr("archive/version", "3\n")
    return target.getvalue()


def _short(data: bytes) -> bytes:
    return pickletools.optimize(data)[: len(data) // 2] + b"."


_TORCH_FILES: dict[str, Callable[[random.Random], bytes]] = {
    "a pickle that runs code": _legacy,
    "an archive that runs code": _attack,
    "half a pickle": _rezipped(_short),
    "a recursive pickle": _rezipped(lambda data: b"\x80\x02]q\x00h\x00a."),
    "a memo of 2^31": _rezipped(lambda data: b"\x80\x02]r\xff\xff\xff\x7f."),
    "a text of 2 GB": _rezipped(lambda data: b"\x80\x02X\xff\xff\xff\x7fa."),
    "a deep pickle": _rezipped(lambda data: b"\x80\x02" + b"](" * 200_000 + b"e" * 200_000 + b"."),
    "a huge integer": _rezipped(lambda data: b"\x80\x02\x8b\xff\xff\xff\x7f."),
    "a bomb": _bomb,
    "names that climb": _climbing,
    "an empty archive": lambda generator: b"PK\x05\x06" + bytes(18),
    "nothing": lambda generator: b"",
    "a text": lambda generator: b"version https://git-lfs.github.com/spec/v1\noid sha256:0\n",
    "a page": lambda generator: b"<!DOCTYPE html><html>404</html>",
    "noise": lambda generator: generator.randbytes(5000),
    "a list": lambda generator: _saved([1, 2, 3]),
    "a number": lambda generator: _saved(1),
    "an empty state": lambda generator: _saved({}),
    "a state of states": lambda generator: _saved({"state_dict": {"model": {"state_dict": {}}}}),
    "changed bytes": lambda generator: nasty.change_bytes(generator, _odd_tensors(generator)),
}
