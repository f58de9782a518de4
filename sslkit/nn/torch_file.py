"""Reading what `torch.save` wrote, without running code from it and without letting it fill the
memory."""

from __future__ import annotations

import re
import struct
import threading
import warnings
import zipfile
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO

import psutil
import torch
from torch import Tensor

from sslkit.files import chunks, open_file

_REFUSED = re.compile(r"GLOBAL ([\w.]+)")
"""The class or function that `weights_only` refuses, in torch's message."""
_GROWING = re.compile(rb"c(?:builtins|__builtin__)\n(bytearray)\n|c_codecs\n(encode)\n")
"""What `weights_only` calls with any argument, and what makes gigabytes of a few bytes."""
_LONGEST_CALL = 32
"""Bytes of the longest of those."""
_MAX_PICKLE_BYTES = 256 << 20
_MAX_DIRECTORY_BYTES = 64 << 20
"""Bytes of the list of files in an archive: about 100 bytes for each tensor."""
_END, _END_64, _LOCATOR_64 = b"PK\x05\x06", b"PK\x06\x06", b"PK\x06\x07"
_MAX_DEPTH = 64
"""Blocks within blocks; states of optimisers have about five."""
_SPREAD, _SPREAD_BYTES = 4, 1 << 20
"""What is loaded may be so many times as large as the file, and so many bytes larger: tied weights
are in the file once."""
_loading = threading.Lock()


def load_torch_file(path: Path, *, inside: Path | None = None) -> Any:
    """What `torch.save` wrote, on the CPU: tensors and plain values (`weights_only`). Objects are
    refused, which can run code as they are loaded.

    inside: see `sslkit.files.open_file`. Raises OSError where the file cannot be opened, and
    ValueError with the reason in one line."""
    with open_file(path, inside=inside) as file:
        return read_torch_file(file)


def read_torch_file(file: BinaryIO) -> Any:
    """The same for a file that is open."""
    refuse_growth(file)
    size = file.seek(0, 2)
    file.seek(0)
    try:
        with warnings.catch_warnings(), _no_more_globals():
            warnings.simplefilter("ignore")  # of torch, about files that it did not write
            content = torch.load(file, map_location="cpu", weights_only=True)
    except OSError:
        raise
    except Exception as error:  # torch raises a dozen types, as the bytes of the file have it
        # torch's own words advise to load the file with weights_only=False, so they are not shown.
        found = _REFUSED.search(str(error))
        raise ValueError(_objects(found[1]) if found else _DAMAGED) from error
    if _extent(content, {}) > _SPREAD * size + _SPREAD_BYTES:
        raise ValueError(
            "holds the same values many times over: it says more than it has bytes for"
        )
    return content


@contextmanager
def _no_more_globals() -> Iterator[None]:
    """Loads by torch's own list alone. Torch and other packages add to it as they are imported, so
    that what a file may call would depend on what ran before; among it is `traceback.FrameSummary`,
    which reads the file that it is given the name of."""
    with _loading:
        added = torch.serialization.get_safe_globals()
        torch.serialization.clear_safe_globals()
        try:
            yield
        finally:
            torch.serialization.add_safe_globals(added)


def _extent(value: Any, known: dict[int, int], depth: int = 0) -> int:
    """Bytes, about, of a value of which nothing is shared, as whoever walks through it finds it: a
    list that holds another ten times counts it ten times, and a tensor of one number that says it
    has a shape counts as that shape. Raises ValueError for what is nested deeply, or in itself."""
    if isinstance(value, Tensor):
        return _tensor_bytes(value)
    if isinstance(value, str | bytes):
        return len(value)
    if not isinstance(value, Mapping | list | tuple | set):
        return 1
    if depth > _MAX_DEPTH:
        raise ValueError(f"is nested more than {_MAX_DEPTH} deep")
    if id(value) not in known:
        inside: Iterable[Any] = value
        if isinstance(value, Mapping):
            inside = (part for pair in value.items() for part in pair)
        known[id(value)] = 1 + sum(_extent(part, known, depth + 1) for part in inside)
    return known[id(value)]


def _tensor_bytes(value: Tensor) -> int:
    """Bytes of all elements, if each had its own: one may stand for many. What lies on no device
    has none, and compressed sparse tensors share none."""
    if value.layout == torch.sparse_coo:
        return _tensor_bytes(value._indices()) + _tensor_bytes(value._values())
    if value.is_meta or value.layout != torch.strided:
        return 0
    return Tensor.numel(value) * Tensor.element_size(value)


_DAMAGED = "damaged, or not written by torch.save"


def _objects(what: str) -> str:
    return (
        f"holds Python objects ({what}), which can run code and are not loaded; save the "
        "weights alone, with torch.save(model.state_dict(), FILE) or as .safetensors"
    )


def refuse_growth(file: BinaryIO) -> None:
    """Raises ValueError where loading a file would take more memory than the file has bytes, or
    than is free."""
    size = file.seek(0, 2)
    free = psutil.virtual_memory().available
    if size > free:
        raise ValueError(f"takes {size / 1e9:.1f} GB of memory, and {free / 1e9:.1f} GB are free")
    file.seek(0)
    if file.read(4) != b"PK\x03\x04":
        file.seek(0)
        return _refuse_calls_anywhere(file, size)  # the format before torch 1.6
    if _directory_bytes(file, size) > _MAX_DIRECTORY_BYTES:
        raise ValueError(_DAMAGED)
    try:
        with zipfile.ZipFile(file) as archive:
            entries = archive.infolist()
            if any(entry.compress_type != zipfile.ZIP_STORED for entry in entries):
                raise ValueError(_DAMAGED)
            if sum(entry.file_size for entry in entries) > size:
                raise ValueError(_DAMAGED)
            for entry in entries:
                if not entry.filename.lower().endswith(".pkl"):  # torch asks for it in any letters
                    continue
                if entry.file_size > _MAX_PICKLE_BYTES:
                    raise ValueError(_DAMAGED)
                _refuse_calls(archive.read(entry))
    # All that zipfile raises; the latter three for a compression that it does not know, a password
    # and an archive that is cut off.
    except (zipfile.BadZipFile, NotImplementedError, RuntimeError, EOFError) as error:
        raise ValueError(_DAMAGED) from error


def _refuse_calls(pickled: bytes) -> None:
    if found := _GROWING.search(pickled):
        raise ValueError(_objects((found[1] or found[2]).decode()))


def _refuse_calls_anywhere(file: BinaryIO, size: int) -> None:
    before = b""
    for part in chunks(file, size):
        _refuse_calls(before + part)
        before = part[-_LONGEST_CALL:]


def _directory_bytes(file: BinaryIO, size: int) -> int:
    """How long the list of files in an archive is. Raises ValueError where it does not end where
    its end is described: a program may then read another list there than the next one does."""
    start = max(size - (1 << 16) - 22, 0)
    file.seek(start)
    tail = file.read()
    at = tail.rfind(_END)
    if at < 0 or len(tail) < at + 22:
        raise ValueError(_DAMAGED)
    length, offset = struct.unpack_from("<II", tail, at + 12)
    end = start + at
    if at >= 20 and tail[at - 20 : at - 16] == _LOCATOR_64:
        (end,) = struct.unpack_from("<Q", tail, at - 12)
        described = end - start
        if described != at - 76 or tail[described : described + 4] != _END_64:
            raise ValueError(_DAMAGED)
        length, offset = struct.unpack_from("<QQ", tail, described + 40)
    if offset + length != end:
        raise ValueError(_DAMAGED)
    return int(length)
