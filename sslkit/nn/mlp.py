"""Projection and prediction heads of the literature: one MLP, every rule an argument."""

from __future__ import annotations

from typing import Literal

from torch import nn

HiddenNorm = Literal["bn", "ln", "none"]
OutputNorm = Literal["none", "bn", "bn_no_shift", "bn_no_affine"]
Activation = Literal["relu", "gelu"]
Init = Literal["default", "normal_0.01"]


def mlp(
    in_dim: int,
    hidden_dim: int,
    out_dim: int,
    num_layers: int = 2,
    *,
    hidden_norm: HiddenNorm = "bn",
    hidden_bias: bool = False,
    activation: Activation = "relu",
    output_norm: OutputNorm = "none",
    output_bias: bool = True,
    init: Init = "default",
) -> nn.Sequential:
    """`num_layers` linear layers, (B, in_dim) to (B, out_dim).

    Hidden layers are Linear, norm, activation; the last is Linear, norm. Each layer is one entry of
    the result, so that `head[:k]` gives the output of layer k (SimCLR v2 fine-tunes from
    `head[:1]`).
    `init`: "default" is torch's, "normal_0.01" draws the linear weights from N(0, 0.01^2) and sets
    biases to zero (SimCLR). Raises ValueError for num_layers < 1.
    """
    if num_layers < 1:
        raise ValueError(f"an MLP needs at least 1 layer, not {num_layers}")
    widths = [in_dim, *[hidden_dim] * (num_layers - 1)]
    layers = [
        nn.Sequential(
            nn.Linear(width, hidden_dim, bias=hidden_bias),
            *_norm(hidden_norm, hidden_dim),
            nn.ReLU(inplace=True) if activation == "relu" else nn.GELU(),
        )
        for width in widths[:-1]
    ]
    last = nn.Linear(widths[-1], out_dim, bias=output_bias)
    head = nn.Sequential(*layers, nn.Sequential(last, *_norm(output_norm, out_dim)))
    if init == "normal_0.01":
        _init_normal(head, std=0.01)
    return head


def _norm(name: HiddenNorm | OutputNorm, width: int) -> list[nn.Module]:
    """Zero or one normalisation layer."""
    if name == "none":
        return []
    if name == "ln":
        return [nn.LayerNorm(width)]
    batch_norm = nn.BatchNorm1d(width, affine=name != "bn_no_affine")
    if name == "bn_no_shift":
        batch_norm.register_parameter("bias", None)
    return [batch_norm]


def _init_normal(head: nn.Module, std: float) -> None:
    for module in head.modules():
        if isinstance(module, nn.Linear):
            nn.init.normal_(module.weight, std=std)
            if module.bias is not None:
                nn.init.zeros_(module.bias)
