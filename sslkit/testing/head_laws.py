"""What a head promises."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from sslkit.api import Head
from sslkit.randomness import seeded

from .laws import law, refuse
from .network_laws import CLOSE, STILL, WIDTH, NetworkLaws
from .small_runs import distance, listed
from .trial_samples import example

_WIDTHS = (32, 48)
"""Widths of features that heads are built for."""


class HeadLaws(NetworkLaws):
    """The laws of `Head`."""

    kind = "head"

    def make(self, stream: str = "initialisation", in_dim: int = _WIDTHS[0]) -> Head:
        with seeded(0, stream):
            head: Head = self.subject.slot.build(in_dim=in_dim)
        return head

    def samples(self, rows: int = 8, stream: str = "samples", in_dim: int = _WIDTHS[0]) -> Tensor:
        return example((rows, in_dim), torch.float32, stream)

    def width(self, network: Any) -> tuple[str, object]:
        return "out_dim", getattr(network, "out_dim", None)

    @law("take the width of features from in_dim, the argument of the constructor", needs=WIDTH)
    def takes_features_of_any_width(self) -> None:
        """It takes features of the width that it is built for, whichever that is."""
        for in_dim in _WIDTHS:
            self.refuse_other_width(self.make(in_dim=in_dim), self.samples(in_dim=in_dim))

    @law(
        "return from as_layers modules that, applied one after the other, are forward; or leave "
        "as_layers out, and the head is one layer",
        needs=STILL,
    )
    def layers_make_the_head(self) -> str:
        """`as_layers`, applied one after the other, give what `forward` gives, and hold every
        parameter."""
        head, features = self.used(), self.samples()
        layers = list(head.as_layers())
        odd = [layer for layer in layers if not isinstance(layer, nn.Module)]
        refuse(odd or not layers, f"as_layers gave {layers}")
        found = features
        for layer in layers:
            found = self.evaluated(layer, found)
        far = distance(found, self.evaluated(head, features))
        refuse(not far <= CLOSE, f"its {len(layers)} layers give what is {far:.2g} away")
        inside = {id(p) for layer in layers for p in layer.parameters()}
        missing = [name for name, p in head.named_parameters() if id(p) not in inside]
        refuse(missing, f"{listed(missing)} belong to none of its {len(layers)} layers")
        return f"{len(layers)} layer{'s' if len(layers) > 1 else ''}"
