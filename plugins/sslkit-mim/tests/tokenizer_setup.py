"""Small tokenizers in files."""

from __future__ import annotations

import atexit
import dataclasses
from functools import cache
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch

from sslkit.api import resolve_component
from sslkit.host.plugins import load_plugins
from sslkit.nn import safetensors_file

CODES = 16
NETWORK = {"stride": 4, "codes": CODES, "code_dim": 3, "width": 6, "blocks": 1}


def autoencoder(channels: int = 3, **fields: Any) -> Any:
    block = {"name": "vq_autoencoder", **NETWORK, **fields}
    slot = resolve_component(load_plugins().registry, "backbone", block)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return slot.build(channels=channels, image_size=16)


def write_tokenizer(path: Path, channels: int = 3, *, seed: int = 1, **fields: Any) -> Path:
    """As a run writes it: an encoder.safetensors of a random tokenizer, whose codes lie where its
    latents do."""
    network = autoencoder(channels, **fields)
    with torch.no_grad(), torch.random.fork_rng():
        torch.manual_seed(seed)
        found = network.latents(network.hidden(torch.rand(16, channels, 16, 16))).flatten(0, 2)
        network.codebook.copy_(found[:: len(found) // network.num_codes][: network.num_codes])
    described = {
        "backbone": {"name": "vq_autoencoder", **network.config.model_dump(mode="json")},
        "preprocess": dataclasses.asdict(network.preprocess),
        "recipe_hash": "0" * 16,
        "channels": channels,
        "image_size": 16,
    }
    weights = {name: value.contiguous() for name, value in network.export_state().items()}
    safetensors_file.save(path, weights, described)
    return path


@cache
def small_tokenizer() -> str:
    """The path of one that lasts as long as the tests, for parameters that are made before them."""
    folder = TemporaryDirectory(prefix="sslkit-mim-")
    atexit.register(folder.cleanup)
    return str(write_tokenizer(Path(folder.name, "encoder.safetensors")))
