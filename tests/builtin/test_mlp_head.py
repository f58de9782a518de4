"""The MLP head expresses the heads of the literature."""

from __future__ import annotations

import pytest
import torch
from pydantic import ValidationError
from torch import nn
from torchvision.ops import MLP

from sslkit.builtin.mlp_head import MLPHead
from sslkit.nn.mlp import mlp


def head(in_dim: int, **fields: object) -> MLPHead:
    return MLPHead(MLPHead.Config(**fields), in_dim=in_dim)  # type: ignore[arg-type]


def shapes(module: nn.Module) -> list[tuple[int, ...]]:
    return [tuple(parameter.shape) for parameter in module.parameters()]


SIMCLR = {"num_layers": 2, "out_dim": 128}
PLAIN = {"hidden_norm": "none", "hidden_bias": True, "output_norm": "none", "output_bias": True}
BYOL = {
    "hidden_dim": 4096, "out_dim": 256, "hidden_bias": True,
    "output_norm": "none", "output_bias": False,
}  # fmt: skip
MOCO_V3 = {"hidden_dim": 4096, "out_dim": 256, "output_norm": "bn_no_affine"}


@pytest.mark.parametrize(
    ("in_dim", "fields", "expected"),
    [
        # SimCLR v1: no linear biases, BN with scale and shift, then BN with scale only.
        (512, SIMCLR, [(512, 512), (512,), (512,), (128, 512), (128,)]),
        (
            2048,
            {**SIMCLR, "num_layers": 3},  # v2
            [(2048, 2048), (2048,), (2048,)] * 2 + [(128, 2048), (128,)],
        ),
        # solo-learn, MoCo v2, SupCon: biases and no normalisation.
        (
            512,
            {**PLAIN, "hidden_dim": 2048, "out_dim": 256},
            [(2048, 512), (2048,), (256, 2048), (256,)],
        ),
        # BYOL: bias before the hidden BN, none at the output.
        (2048, BYOL, [(4096, 2048), (4096,), (4096,), (4096,), (256, 4096)]),
        # MoCo v3: no biases, BN without affine at the output.
        (2048, MOCO_V3, [(4096, 2048), (4096,), (4096,), (256, 4096)]),
        # VICReg's expander: biases before the hidden BNs, none at the output.
        (
            512,
            {
                "num_layers": 3,
                "hidden_dim": 1024,
                "out_dim": 1024,
                "hidden_bias": True,
                "output_norm": "none",
            },
            [
                (1024, 512),
                (1024,),
                (1024,),
                (1024,),
                (1024, 1024),
                (1024,),
                (1024,),
                (1024,),
                (1024, 1024),
            ],
        ),
        # MoCo v1: one linear layer.
        (2048, {**PLAIN, "num_layers": 1, "out_dim": 128}, [(128, 2048), (128,)]),
    ],
)
def test_parameter_lists(
    in_dim: int, fields: dict[str, object], expected: list[tuple[int, ...]]
) -> None:
    assert shapes(head(in_dim, **fields)) == expected


@pytest.mark.parametrize(
    ("name", "arguments", "fields"),
    [
        ("SimCLRProjectionHead", (512, 512, 128), {"output_norm": "bn"}),
        ("SimCLRProjectionHead", (64, 32, 16, 3), {"output_norm": "bn", "num_layers": 3}),
        ("MoCoProjectionHead", (64, 32, 16), PLAIN),
        ("BarlowTwinsProjectionHead", (64, 32, 16), {"output_norm": "none", "num_layers": 3,
                                                     "output_bias": True}),
        ("SimSiamPredictionHead", (64, 32, 16), {"output_norm": "none", "output_bias": True}),
    ],
)  # fmt: skip
def test_same_function_as_lightly(
    name: str, arguments: tuple[int, ...], fields: dict[str, object]
) -> None:
    heads = pytest.importorskip(
        "lightly.models.modules.heads", reason="the parity group is not installed"
    )
    theirs = getattr(heads, name)(*arguments)
    in_dim, hidden_dim, out_dim = arguments[:3]
    ours = head(in_dim, hidden_dim=hidden_dim, out_dim=out_dim, **fields)
    assert shapes(ours) == shapes(theirs)
    with torch.no_grad():
        for mine, other in zip(ours.parameters(), theirs.parameters(), strict=True):
            mine.copy_(other)
    features = torch.randn(6, in_dim)
    torch.testing.assert_close(ours(features), theirs(features))


def test_gelu_is_that_of_torchvisions_mlp() -> None:
    """LeJEPA and VISReg name their projectors by it."""
    theirs = MLP(8, [16, 16, 4], norm_layer=nn.BatchNorm1d, activation_layer=nn.GELU)
    fields = {"num_layers": 3, "hidden_dim": 16, "out_dim": 4, "hidden_bias": True}
    ours = head(8, **fields, activation="gelu", output_norm="none", output_bias=True)
    with torch.no_grad():
        for mine, other in zip(ours.parameters(), theirs.parameters(), strict=True):
            mine.copy_(other)
    features = torch.randn(6, 8)
    torch.testing.assert_close(ours(features), theirs(features))
    relu = head(8, **fields, output_norm="none", output_bias=True)
    relu.load_state_dict(ours.state_dict())
    assert not torch.allclose(relu(features), ours(features))


def test_defaults_take_the_width_of_the_backbone() -> None:
    projector = head(48)
    assert projector.layers[0][0].out_features == 48
    assert projector(torch.randn(4, 48)).shape == (4, projector.out_dim)


def test_output_normalisation() -> None:
    features = torch.randn(64, 8)
    for norm in ("bn", "bn_no_shift", "bn_no_affine"):
        out = head(8, output_norm=norm)(features)
        torch.testing.assert_close(out.mean(dim=0), torch.zeros(128), atol=1e-5, rtol=0)
        torch.testing.assert_close(
            out.var(dim=0, unbiased=False), torch.ones(128), atol=1e-2, rtol=0
        )


def test_output_norm_survives_synchronisation_over_ranks() -> None:
    converted = nn.SyncBatchNorm.convert_sync_batchnorm(head(8))
    last = converted.layers[-1][-1]
    assert isinstance(last, nn.SyncBatchNorm)
    assert last.bias is None
    assert shapes(converted) == shapes(head(8))


def test_initialisation() -> None:
    torch.manual_seed(0)
    projector = head(256, hidden_bias=True, init="normal_0.01")
    assert projector.layers[0][0].weight.std().item() == pytest.approx(0.01, rel=0.05)
    assert not projector.layers[0][0].bias.any()


def test_layers_can_be_taken_apart() -> None:
    layers = mlp(8, 16, 4, num_layers=3)
    assert layers[:1](torch.randn(5, 8)).shape == (5, 16)
    assert [tuple(layer[0].weight.shape) for layer in layers] == [(16, 8), (16, 16), (4, 16)]


def test_mistakes_are_refused() -> None:
    with pytest.raises(ValidationError, match="num_layers"):
        MLPHead.Config(num_layers=0)
    with pytest.raises(ValidationError, match="bn_no_affine"):
        MLPHead.Config(output_norm="layer")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="at least 1 layer, not 0"):
        mlp(4, 4, 4, num_layers=0)
