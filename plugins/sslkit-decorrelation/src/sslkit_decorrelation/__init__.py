"""Methods that keep embeddings apart by their statistics: `barlow_twins` and `vicreg`, and their
losses of the same names."""

from __future__ import annotations

from collections.abc import Mapping

from sslkit import hookimpl

sslkit_interface = 2


@hookimpl
def register_methods() -> Mapping[str, str]:
    return {
        "barlow_twins": "sslkit_decorrelation.barlow_twins:BarlowTwins",
        "vicreg": "sslkit_decorrelation.vicreg:VICReg",
    }


@hookimpl
def register_losses() -> Mapping[str, str]:
    return {
        "barlow_twins": "sslkit_decorrelation.barlow_twins:BarlowTwinsLoss",
        "vicreg": "sslkit_decorrelation.vicreg:VICRegLoss",
    }
