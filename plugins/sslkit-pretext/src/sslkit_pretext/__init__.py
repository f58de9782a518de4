"""Pretext tasks for sslkit: the method `rotnet`."""

from __future__ import annotations

from collections.abc import Mapping

from sslkit import hookimpl

sslkit_interface = 2


@hookimpl
def register_methods() -> Mapping[str, str]:
    return {"rotnet": "sslkit_pretext.rotnet:RotNet"}
