"""What it saves to leave patches out: CPU time of forward and backward of an encoder with some of
its patches as a part of that with all of them, and of the decoder of MAE beside it.

    python -m tests.benchmarks.tokens --kept 0.25 --rounds 12

Arms take turns within a round, on one thread; what is reported is the median of the rounds' ratios
and an interval for it (`pairing`). CPU time, so that neighbours on the machine matter little.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable, Iterator
from typing import Any

import torch

from sslkit.api import Backbone, resolve_component
from sslkit.host.plugins import load_plugins
from sslkit.nn.masking import split_patches
from sslkit.randomness import SampleRandom

from .pairing import Interval, paired_ratios, ratio_interval

CASES: dict[str, tuple[dict[str, Any], int, int]] = {
    "ViT-S/4 at 32 px": ({"model": "vit_small_patch16_224", "patch_size": 4}, 32, 8),
    "ViT-B/16 at 224 px": ({"model": "vit_base_patch16_224"}, 224, 4),
}
"""Fields of the backbone, side of the images, images in a pass."""
DECODER = {"width": 512, "depth": 8, "heads": 16}


def build(fields: dict[str, Any], side: int) -> Backbone:
    """A backbone of timm."""
    block = {"name": "timm", "pool": "token", **fields}
    registry = load_plugins().registry
    built: Backbone = resolve_component(registry, "backbone", block).build(
        channels=3, image_size=side
    )
    return built


def passes(
    backbone: Backbone, side: int, images: int, kept: float
) -> dict[str, Callable[[], None]]:
    """Forward and backward with all patches and with some, by name."""
    assert backbone.token_layout is not None
    rows, columns = backbone.token_layout.grid(side, side)
    batch = torch.rand(images, 3, side, side)
    random = SampleRandom(0, "benchmark", 0, torch.arange(images))
    keep, _ = split_patches(random, rows * columns, int(kept * rows * columns))

    def once(chosen: torch.Tensor | None) -> None:
        tokens = backbone.tokens(batch, keep=chosen)
        (tokens.patches.mean() + tokens.prefix.mean()).backward()  # type: ignore[no-untyped-call]
        backbone.zero_grad()

    return {"all": lambda: once(None), "some": lambda: once(keep)}


def measure(arms: dict[str, Callable[[], None]], rounds: int) -> Iterator[tuple[str, Interval]]:
    """Name of each arm but the first -> its CPU time as a part of the first's."""
    for run in arms.values():
        run()  # what is made once
    seconds: dict[str, list[float]] = {name: [] for name in arms}
    for turn in range(rounds):
        for name in reversed(arms) if turn % 2 else arms:
            start = time.process_time()
            arms[name]()
            seconds[name].append(time.process_time() - start)
    first, *others = arms
    for name in others:
        yield name, ratio_interval(paired_ratios(seconds[first], 1, seconds[name], 1))


def decode(side: int, layout: Any, images: int) -> Callable[[], None]:
    """Forward and backward of MAE's decoder, which sees all patches."""
    width, tokens = DECODER["width"], 1 + layout.grid(side, side)[0] * layout.grid(side, side)[1]
    layer = torch.nn.TransformerEncoderLayer(
        width, DECODER["heads"], 4 * width, 0.0, "gelu", batch_first=True, norm_first=True
    )
    decoder = torch.nn.TransformerEncoder(layer, DECODER["depth"], enable_nested_tensor=False)

    def once() -> None:
        decoder(torch.rand(images, tokens, width)).mean().backward()
        decoder.zero_grad()

    return once


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--kept", type=float, default=0.25, help="part of the patches")
    parser.add_argument("--rounds", type=int, default=12)
    parser.add_argument("--case", choices=CASES, action="append", help="all where none is named")
    given = parser.parse_args()
    torch.set_num_threads(1)
    for case in given.case or CASES:
        fields, side, images = CASES[case]
        backbone = build(fields, side)
        arms = passes(backbone, side, images, given.kept)
        arms["decoder"] = decode(side, backbone.token_layout, images)
        for name, share in measure(arms, given.rounds):
            print(f"{case}: {name}: {share} of the encoder with all patches (n = {share.n})")


if __name__ == "__main__":
    main()
