"""Joint-embedding prediction for sslkit: the method `ijepa`."""

from __future__ import annotations

from collections.abc import Mapping

from sslkit import hookimpl

sslkit_interface = 2


@hookimpl
def register_methods() -> Mapping[str, str]:
    return {"ijepa": "sslkit_jepa.ijepa:IJEPA"}
