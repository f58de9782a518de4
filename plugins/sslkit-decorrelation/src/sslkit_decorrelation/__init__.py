"""Methods that keep embeddings apart by their statistics, and their losses: Barlow Twins, VICReg,
W-MSE, TiCo, LeJEPA with SIGReg, and VISReg."""

from __future__ import annotations

from collections.abc import Mapping

from sslkit import hookimpl

sslkit_interface = 2


@hookimpl
def register_methods() -> Mapping[str, str]:
    return {
        "barlow_twins": "sslkit_decorrelation.barlow_twins:BarlowTwins",
        "lejepa": "sslkit_decorrelation.lejepa:LeJEPA",
        "tico": "sslkit_decorrelation.tico:TiCo",
        "vicreg": "sslkit_decorrelation.vicreg:VICReg",
        "visreg": "sslkit_decorrelation.visreg:VISReg",
        "w_mse": "sslkit_decorrelation.w_mse:WMSE",
    }


@hookimpl
def register_losses() -> Mapping[str, str]:
    return {
        "barlow_twins": "sslkit_decorrelation.barlow_twins:BarlowTwinsLoss",
        "sigreg": "sslkit_decorrelation.sigreg:SIGReg",
        "vicreg": "sslkit_decorrelation.vicreg:VICRegLoss",
        "visreg": "sslkit_decorrelation.visreg:VISRegLoss",
        "w_mse": "sslkit_decorrelation.w_mse:WMSELoss",
    }
