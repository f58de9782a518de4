"""Reading what `torch.save` wrote, without running code from it and without letting it fill the
memory."""

from __future__ import annotations

import re
import struct
import warnings
import zipfile
from pathlib import Path
from typing import Any, BinaryIO

import psutil
import torch

from sslkit.files import open_file

_REFUSED = re.compile(r"GLOBAL ([\w.]+)")
"""The class or function that `weights_only` refuses, in torch's message."""
_GROWING = re.compile(rb"c(?:builtins|__builtin__)\n(bytearray)\n|c_codecs\n(encode)\n")
"""What `weights_only` calls with any argument, and what makes gigabytes of a few bytes."""
_MAX_PICKLE_BYTES = 256 << 20
_MAX_DIRECTORY_BYTES = 64 << 20
"""Bytes of the list of files in an archive: about 100 bytes for each tensor."""
_END, _END_64 = b"PK\x05\x06", b"PK\x06\x06"


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
    file.seek(0)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of torch, about files that it did not write
            return torch.load(file, map_location="cpu", weights_only=True)
    except OSError:
        raise
    except Exception as error:  # torch raises a dozen types, as the bytes of the file have it
        # torch's own words advise to load the file with weights_only=False, so they are not shown.
        found = _REFUSED.search(str(error))
        raise ValueError(_objects(found[1]) if found else _DAMAGED) from error


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
        return _refuse_calls(file.read(_MAX_PICKLE_BYTES))  # the format before torch 1.6
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
                if entry.filename.endswith(".pkl") and entry.file_size <= _MAX_PICKLE_BYTES:
                    _refuse_calls(archive.read(entry))
                elif entry.filename.endswith(".pkl"):
                    raise ValueError(_DAMAGED)
    # All that zipfile raises; the latter three for a compression that it does not know, a password
    # and an archive that is cut off.
    except (zipfile.BadZipFile, NotImplementedError, RuntimeError, EOFError) as error:
        raise ValueError(_DAMAGED) from error


def _refuse_calls(pickled: bytes) -> None:
    if found := _GROWING.search(pickled):
        raise ValueError(_objects((found[1] or found[2]).decode()))


def _directory_bytes(file: BinaryIO, size: int) -> int:
    """How long the list of files in an archive says it is."""
    file.seek(max(size - (1 << 16) - 22, 0))
    tail = file.read()
    at = tail.rfind(_END)
    if at < 0 or len(tail) < at + 16:
        raise ValueError(_DAMAGED)
    (length,) = struct.unpack_from("<I", tail, at + 12)
    at = tail.rfind(_END_64, 0, at)
    if length == 0xFFFFFFFF and at >= 0 and len(tail) >= at + 48:
        (length,) = struct.unpack_from("<Q", tail, at + 40)
    return int(length)
