"""Pretext tasks for sslkit: the methods `jigsaw` and `rotnet`."""

from __future__ import annotations

from collections.abc import Mapping

from sslkit import hookimpl

sslkit_interface = 2


@hookimpl
def register_methods() -> Mapping[str, str]:
    return {
        "jigsaw": "sslkit_pretext.jigsaw:Jigsaw",
        "rotnet": "sslkit_pretext.rotnet:RotNet",
    }
