"""Masked images for sslkit: the methods `mae`, `simmim` and `data2vec`, and the callback
`reconstructions`."""

from __future__ import annotations

from collections.abc import Mapping

from sslkit import hookimpl

sslkit_interface = 2


@hookimpl
def register_methods() -> Mapping[str, str]:
    return {
        "mae": "sslkit_mim.mae:MAE",
        "simmim": "sslkit_mim.simmim:SimMIM",
        "data2vec": "sslkit_mim.data2vec:Data2Vec",
    }


@hookimpl
def register_callbacks() -> Mapping[str, str]:
    return {"reconstructions": "sslkit_mim.reconstructions:Reconstructions"}
