"""The newkind `newname` for sslkit.

This module imports no torch: a class is imported where a recipe names it.
"""

from __future__ import annotations

from collections.abc import Mapping

from sslkit import hookimpl

sslkit_interface = NewInterface


@hookimpl
def register_newkind() -> Mapping[str, str]:
    return {"newname": "sslkit_newname.newkind:NewName"}
