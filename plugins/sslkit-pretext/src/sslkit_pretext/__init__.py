"""Pretext tasks for sslkit: the methods `denoising`, `jigsaw` and `rotnet`, and the head
`conv_decoder`."""

from __future__ import annotations

from collections.abc import Mapping

from sslkit import hookimpl

sslkit_interface = 2


@hookimpl
def register_methods() -> Mapping[str, str]:
    return {
        "denoising": "sslkit_pretext.denoising:DenoisingAutoencoder",
        "jigsaw": "sslkit_pretext.jigsaw:Jigsaw",
        "rotnet": "sslkit_pretext.rotnet:RotNet",
    }


@hookimpl
def register_heads() -> Mapping[str, str]:
    return {"conv_decoder": "sslkit_pretext.conv_decoder:ConvDecoder"}
