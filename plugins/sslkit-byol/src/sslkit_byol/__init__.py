"""BYOL for sslkit: the method `byol` and its loss `normalized_mse`."""

from __future__ import annotations

from collections.abc import Mapping

from sslkit import hookimpl

sslkit_interface = 2


@hookimpl
def register_methods() -> Mapping[str, str]:
    return {"byol": "sslkit_byol.method:BYOL"}


@hookimpl
def register_losses() -> Mapping[str, str]:
    return {"normalized_mse": "sslkit_byol.losses:NormalizedMSE"}
