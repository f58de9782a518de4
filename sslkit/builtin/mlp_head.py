"""The MLP head: SimCLR's by default, most others by configuration."""

from __future__ import annotations

from collections.abc import Sequence

from pydantic import PositiveInt
from torch import Tensor, nn

from sslkit.api import ComponentConfig, Head
from sslkit.nn.mlp import Activation, HiddenNorm, Init, OutputNorm, mlp


class MLPHead(Head):
    """Linear layers with BatchNorm and an activation between them; the defaults are SimCLR's rule.

    | head              | hidden_norm | hidden_bias | output_norm  | output_bias | num_layers |
    |-------------------|-------------|-------------|--------------|-------------|------------|
    | SimCLR v1 / v2    | bn          | false       | bn_no_shift  | false       | 2 / 3      |
    | SimCLR, lightly   | bn          | false       | bn           | false       | 2          |
    | solo-learn, MoCo v2, SupCon | none | true     | none         | true        | 2          |
    | BYOL              | bn          | true        | none         | false       | 2          |
    | MoCo v3           | bn          | false       | bn_no_affine | false       | 2 or 3     |
    | SimSiam projector | bn          | false       | bn_no_affine | false       | 3          |
    | SimSiam predictor | bn          | false       | none         | true        | 2          |
    | Barlow Twins      | bn          | false       | none         | false       | 3          |
    | VICReg            | bn          | true        | none         | false       | 3          |
    | TiCo              | bn          | false       | none         | true        | 2          |
    | LeJEPA, VISReg (`activation: gelu`) | bn | true | none      | true        | 3          |
    """

    class Config(ComponentConfig):
        num_layers: PositiveInt = 2
        """Linear layers: 1 is a linear projection."""
        hidden_dim: PositiveInt | None = None
        """Width of hidden layers; null takes the width of the backbone."""
        out_dim: PositiveInt = 128
        """Width of the embedding."""
        hidden_norm: HiddenNorm = "bn"
        """Normalisation after each hidden linear layer."""
        hidden_bias: bool = False
        """Bias of hidden linear layers (superfluous before a BatchNorm with shift)."""
        activation: Activation = "relu"
        """Function after each hidden layer."""
        output_norm: OutputNorm = "bn_no_shift"
        """Normalisation after the last layer: `bn_no_shift` scales only, `bn_no_affine` neither
        scales nor shifts."""
        output_bias: bool = False
        """Bias of the last linear layer."""
        init: Init = "default"
        """`default`: torch's initialisation; `normal_0.01`: SimCLR's N(0, 0.01^2)."""

    def __init__(self, config: Config, *, in_dim: int) -> None:
        super().__init__(config)
        self.out_dim = config.out_dim
        self.layers = mlp(
            in_dim,
            config.hidden_dim or in_dim,
            config.out_dim,
            config.num_layers,
            hidden_norm=config.hidden_norm,
            hidden_bias=config.hidden_bias,
            activation=config.activation,
            output_norm=config.output_norm,
            output_bias=config.output_bias,
            init=config.init,
        )

    def forward(self, features: Tensor) -> Tensor:
        embeddings: Tensor = self.layers(features)
        return embeddings

    def as_layers(self) -> Sequence[nn.Module]:
        return tuple(self.layers)
