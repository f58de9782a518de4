"""Masked images for sslkit: the methods `mae`, `simmim`, `maskfeat`, `beit` and `data2vec`, the
tokenizer that `beit` needs, and the callback `reconstructions`."""

from __future__ import annotations

from collections.abc import Mapping

from sslkit import hookimpl

sslkit_interface = 2


@hookimpl
def register_methods() -> Mapping[str, str]:
    return {
        "mae": "sslkit_mim.mae:MAE",
        "simmim": "sslkit_mim.simmim:SimMIM",
        "maskfeat": "sslkit_mim.maskfeat:MaskFeat",
        "beit": "sslkit_mim.beit:BEiT",
        "vq_tokenizer": "sslkit_mim.vq_tokenizer:VQTokenizer",
        "data2vec": "sslkit_mim.data2vec:Data2Vec",
    }


@hookimpl
def register_backbones() -> Mapping[str, str]:
    return {"vq_autoencoder": "sslkit_mim.vq_autoencoder:VQAutoencoder"}


@hookimpl
def register_callbacks() -> Mapping[str, str]:
    return {"reconstructions": "sslkit_mim.reconstructions:Reconstructions"}
