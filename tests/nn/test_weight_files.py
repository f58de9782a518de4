"""Files of weights: damage is noticed; a small file does not become a large one in memory."""

from __future__ import annotations

import io
import json
import os
import pickle
import struct
import zipfile
from collections import OrderedDict
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor

from sslkit.errors import CheckpointError
from sslkit.nn import safetensors_file
from sslkit.nn.torch_file import load_torch_file
from sslkit.nn.weights import read_weights

DESCRIBED = {"backbone": {"name": "timm", "model": "resnet18"}, "channels": 3}


def weights() -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(0)
    return {f"blocks.{i}.weight": torch.randn(6, 5, generator=generator) for i in range(6)}


@pytest.fixture
def encoder(tmp_path: Path) -> Path:
    path = tmp_path / "encoder.safetensors"
    safetensors_file.save(path, weights(), DESCRIBED)
    return path


def test_a_file_with_a_digest_is_any_file_of_the_format(encoder: Path) -> None:
    torch.testing.assert_close(load_file(encoder), weights(), rtol=0, atol=0)
    torch.testing.assert_close(read_weights(encoder), weights(), rtol=0, atol=0)
    with safe_open(encoder, framework="pt") as file:
        assert json.loads(file.metadata()["sslkit"])["channels"] == 3
    assert safetensors_file.describe(encoder) == DESCRIBED


def test_equal_weights_make_equal_bytes(tmp_path: Path) -> None:
    odd = {'ü"\\': 'a "quoted" \\ line\n', **DESCRIBED}
    files = [tmp_path / f"{i}.safetensors" for i in range(8)]  # 3 keys: 6 random orders
    for file in files:
        safetensors_file.save(file, {"wéight": torch.ones(2), **weights()}, odd)
        assert safetensors_file.describe(file) == odd
    assert "wéight" in load_file(files[0])
    assert len({file.read_bytes() for file in files}) == 1


def test_one_flipped_bit_anywhere_in_an_encoder_is_noticed(encoder: Path) -> None:
    data = encoder.read_bytes()
    for bit in range(0, len(data) * 8, 7):
        changed = bytearray(data)
        changed[bit // 8] ^= 1 << bit % 8
        encoder.write_bytes(changed)
        with pytest.raises(CheckpointError):
            read_weights(encoder)
        with pytest.raises(ValueError):  # noqa: PT011  (a dozen words for a dozen damages)
            safetensors_file.load(encoder)
    encoder.write_bytes(data)
    assert safetensors_file.load(encoder).keys() == weights().keys()


def test_files_of_others_are_read_as_they_are(tmp_path: Path) -> None:
    path = tmp_path / "model.safetensors"
    save_file(weights(), path)
    assert read_weights(path).keys() == weights().keys()
    assert safetensors_file.describe(path) is None
    # As the first release wrote its encoders.
    save_file(weights(), path, {"sslkit": json.dumps(DESCRIBED), "format": "pt"})
    assert safetensors_file.describe(path) == DESCRIBED
    assert read_weights(path).keys() == weights().keys()


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"\xff" * 8,
        struct.pack("<Q", 1 << 40) + b"{}",
        struct.pack("<Q", 2) + b"[]",
        struct.pack("<Q", 5000) + b"[" * 5000,
        struct.pack("<Q", 30) + b'{"__metadata__":{"sslkit":1}} ',
        struct.pack("<Q", 38) + b'{"__metadata__":{"sslkit":"[[[[[[["}}  ',
    ],
)
def test_headers_that_are_none(data: bytes, tmp_path: Path) -> None:
    path = tmp_path / "x.safetensors"
    path.write_bytes(data)
    with pytest.raises(CheckpointError) as caught:
        read_weights(path)
    assert len(str(caught.value).splitlines()) == 1


class _Call:
    """Pickled, it is a call."""

    def __init__(self, function: Any, *arguments: Any) -> None:
        self._reduced = function, arguments

    def __reduce__(self) -> tuple[Any, tuple[Any, ...]]:
        return self._reduced


def archive(content: object, compression: int = zipfile.ZIP_STORED, **records: bytes) -> bytes:
    """A file of torch's format that holds this pickle."""
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", compression) as file:
        file.writestr("a/data.pkl", pickle.dumps(content, protocol=2))
        file.writestr("a/byteorder", "little")
        file.writestr("a/version", "3\n")
        for name, data in records.items():
            file.writestr(f"a/{name}", data)
    return buffer.getvalue()


def bombs() -> Iterator[tuple[str, bytes]]:
    import codecs

    yield "bytearray", archive(_Call(bytearray, 1 << 40))
    doubled: Any = "x" * 1000
    for _ in range(40):
        doubled = _Call(codecs.encode, doubled, "hex")
    yield "encode", archive(doubled)
    yield "compressed", archive(OrderedDict(), zipfile.ZIP_DEFLATED, zeros=b"\0" * (1 << 24))
    yield "code", archive(_Call(os.system, "true"))
    yield "legacy", pickle.dumps(_Call(bytearray, 1 << 40), protocol=2)
    yield "no archive", b"PK\x03\x04" + b"\0" * 100


BOMBS = dict(bombs())


@pytest.mark.parametrize("name", BOMBS)
def test_small_files_that_would_grow_are_refused(name: str, tmp_path: Path) -> None:
    path = tmp_path / "x.pt"
    path.write_bytes(BOMBS[name])
    with pytest.raises(ValueError, match=r"holds Python objects|damaged"):
        load_torch_file(path)


def test_a_file_larger_than_the_free_memory_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "x.pt"
    with path.open("wb") as file:
        file.truncate(1 << 43)
    with pytest.raises(ValueError, match="GB of memory"):
        load_torch_file(path)
    path.unlink()
    os.mkfifo(path)
    with pytest.raises(ValueError, match="no regular file"):
        load_torch_file(path)


@pytest.mark.parametrize(
    "odd",
    [
        torch.eye(4).to_sparse(),
        torch.empty(4, 4, device="meta"),
        torch.quantize_per_tensor(torch.ones(4, 4), 0.1, 0, torch.qint8),
    ],
    ids=["sparse", "meta", "quantised"],
)
def test_tensors_that_no_network_takes_are_refused(tmp_path: Path, odd: torch.Tensor) -> None:
    path = tmp_path / "odd.pth"
    torch.save({"state_dict": {"bn1.weight": torch.ones(4), "conv1.weight": odd}}, path)
    with pytest.raises(CheckpointError, match=r"odd\.pth: .*") as caught:
        read_weights(path)
    assert len(str(caught.value).splitlines()) == 1
