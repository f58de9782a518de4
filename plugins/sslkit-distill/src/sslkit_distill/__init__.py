"""Self-distillation for sslkit: the method `simsiam` and its loss `negative_cosine`."""

from __future__ import annotations

from collections.abc import Mapping

from sslkit import hookimpl

sslkit_interface = 2


@hookimpl
def register_methods() -> Mapping[str, str]:
    return {"simsiam": "sslkit_distill.simsiam:SimSiam"}


@hookimpl
def register_losses() -> Mapping[str, str]:
    return {"negative_cosine": "sslkit_distill.losses:NegativeCosine"}
