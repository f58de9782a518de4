"""MoCo for sslkit: the methods `moco_v1`, `moco_v2` and `moco_v3`."""

from __future__ import annotations

from collections.abc import Mapping

from sslkit import hookimpl

sslkit_interface = 2


@hookimpl
def register_methods() -> Mapping[str, str]:
    return {
        "moco_v1": "sslkit_moco.queue_moco:MoCoV1",
        "moco_v2": "sslkit_moco.queue_moco:MoCoV2",
        "moco_v3": "sslkit_moco.moco_v3:MoCoV3",
    }
