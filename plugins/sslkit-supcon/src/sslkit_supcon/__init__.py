"""SupCon for sslkit: the method and the loss `supcon`."""

from __future__ import annotations

from collections.abc import Mapping

from sslkit import hookimpl

sslkit_interface = 2


@hookimpl
def register_methods() -> Mapping[str, str]:
    return {"supcon": "sslkit_supcon.supcon:SupCon"}


@hookimpl
def register_losses() -> Mapping[str, str]:
    return {"supcon": "sslkit_supcon.supcon_loss:SupConLoss"}
