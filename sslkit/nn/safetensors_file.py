"""`.safetensors` files that notice damage: a digest of every byte stands in their metadata.

Other tools read them as any file of the format. A file without a digest, as others write it, is
read as it is; one that says it has a digest and does not is damaged.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any, BinaryIO

from torch import Tensor

from sslkit.files import open_file, parse_json

META = "sslkit"
"""Key of the metadata under which sslkit describes the weights."""
_DIGEST = "sslkit.sha256"
_FIELD = re.compile(rb'"sslkit\.sha256":"([0-9a-f]{64})"')
_PLACEHOLDER = b"0" * 64
_DIGESTED = "digested"
_MAX_HEADER_BYTES = 16 << 20
"""A header takes about 100 bytes for each tensor."""


def save(path: Path, weights: Mapping[str, Tensor], described: Mapping[str, Any]) -> None:
    """Writes the weights, what describes them (plain values), and the digest: equal ones to equal
    bytes. Raises OSError and safetensors' own error; `path` may then hold a part of the file."""
    from safetensors.torch import save_file

    text = json.dumps({**described, _DIGESTED: True})
    metadata = {META: text, "format": "pt", _DIGEST: _PLACEHOLDER.decode()}
    save_file(dict(weights), path, metadata)
    with path.open("r+b") as file:
        header = _ordered(_header(file))
        found = _FIELD.search(header)
        assert found is not None
        digest = _digest(file, header, found).encode()
        file.seek(8)
        file.write(header[: found.start(1)] + digest + header[found.end(1) :])


def describe(path: Path) -> dict[str, Any] | None:
    """What `save` was given beside the weights; None where another program wrote the file. Raises
    OSError and ValueError: where the file is damaged, too."""
    with open_file(path) as file:
        header = _header(file)
        found = _FIELD.search(header)
        if found is not None and found[1].decode() != _digest(file, header, found):
            raise ValueError("is damaged: its bytes are not those that were written (sha256)")
    metadata = _metadata(header)
    if META not in metadata:
        return None
    described = parse_json(str(metadata[META]).encode())
    if not isinstance(described, dict):
        raise ValueError(f"has no block of fields under '{META}' in its metadata")
    if described.pop(_DIGESTED, False) and found is None:
        raise ValueError("is damaged: its digest is not where it was written")
    return described


def load(path: Path) -> dict[str, Tensor]:
    """The weights, onto the CPU, once the digest is checked where there is one. Raises OSError and
    ValueError."""
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    describe(path)
    try:
        weights: dict[str, Tensor] = load_file(path)
    except SafetensorError as error:
        raise ValueError(f"is no file of weights: {error}") from error
    return weights


def _header(file: BinaryIO) -> bytes:
    file.seek(0)
    length = int.from_bytes(file.read(8), "little")
    if not 2 <= length <= _MAX_HEADER_BYTES:
        raise ValueError("is no .safetensors file, or its header is damaged")
    header = file.read(length)
    if len(header) < length:
        raise ValueError("is cut off in its header")
    return header


def _ordered(header: bytes) -> bytes:
    """The header, as long as before, with its metadata in the order of their keys: safetensors
    writes them in a random one."""
    parsed = parse_json(header)
    assert isinstance(parsed, dict)
    parsed["__metadata__"] = dict(sorted(parsed["__metadata__"].items()))
    text = json.dumps(parsed, ensure_ascii=False, separators=(",", ":")).encode()
    assert len(text) <= len(header)  # nothing but the order differs
    return text.ljust(len(header))


def _metadata(header: bytes) -> dict[str, Any]:
    parsed = parse_json(header)
    metadata = parsed.get("__metadata__", {}) if isinstance(parsed, dict) else None
    if not isinstance(metadata, dict):
        raise ValueError("is no .safetensors file, or its header is damaged")
    return metadata


def _digest(file: BinaryIO, header: bytes, found: re.Match[bytes]) -> str:
    """The digest of the whole file, with zeros in its own place."""
    blank = header[: found.start(1)] + _PLACEHOLDER + header[found.end(1) :]
    digest = hashlib.sha256(len(header).to_bytes(8, "little") + blank)
    file.seek(8 + len(header))
    while part := file.read(1 << 20):
        digest.update(part)
    return digest.hexdigest()
