"""Contrast and clusters for sslkit: the methods `nnclr` and `swav`, and the loss `dcl`."""

from __future__ import annotations

from collections.abc import Mapping

from sslkit import hookimpl

sslkit_interface = 2


@hookimpl
def register_methods() -> Mapping[str, str]:
    return {"nnclr": "sslkit_cluster.nnclr:NNCLR", "swav": "sslkit_cluster.swav:SwAV"}


@hookimpl
def register_losses() -> Mapping[str, str]:
    return {"dcl": "sslkit_cluster.decoupled:DCL"}
