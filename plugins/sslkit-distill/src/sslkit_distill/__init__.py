"""Self-distillation for sslkit: the methods `simsiam`, `dino`, `ibot` and `dinov2`, the head
`dino`, the losses `negative_cosine` and `koleo`."""

from __future__ import annotations

from collections.abc import Mapping

from sslkit import hookimpl

sslkit_interface = 2


@hookimpl
def register_methods() -> Mapping[str, str]:
    return {
        "dino": "sslkit_distill.dino:DINO",
        "dinov2": "sslkit_distill.dinov2:DINOv2",
        "ibot": "sslkit_distill.ibot:IBOT",
        "simsiam": "sslkit_distill.simsiam:SimSiam",
    }


@hookimpl
def register_heads() -> Mapping[str, str]:
    return {"dino": "sslkit_distill.dino_head:DINOHead"}


@hookimpl
def register_losses() -> Mapping[str, str]:
    return {
        "koleo": "sslkit_distill.feature_losses:KoLeo",
        "negative_cosine": "sslkit_distill.feature_losses:NegativeCosine",
    }
