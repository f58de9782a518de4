"""Masked images for sslkit: the methods `mae` and `simmim`, and pictures of what they fill in."""

from __future__ import annotations

from collections.abc import Mapping

from sslkit import hookimpl

sslkit_interface = 2


@hookimpl
def register_methods() -> Mapping[str, str]:
    return {"mae": "sslkit_mim.mae:MAE", "simmim": "sslkit_mim.simmim:SimMIM"}


@hookimpl
def register_callbacks() -> Mapping[str, str]:
    return {"reconstructions": "sslkit_mim.reconstructions:Reconstructions"}
