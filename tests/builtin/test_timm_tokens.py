"""Tokens of timm's transformers: the whole is what `forward` gives, parts what a slow loop gives,
and what is asked wrongly is refused."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from sslkit.api import Backbone, NoTokensError, Tokens
from sslkit.builtin.timm_backbone import TimmBackbone

TINY = {"model": "test_vit", "patch_size": 4}
"""64 patches of 32 px, width 64, 6 blocks."""
KINDS: list[tuple[dict[str, Any], int]] = [
    (TINY, 32),
    ({**TINY, "pool": "avg"}, 32),
    ({**TINY, "pool": "avg", "model_args": {"fc_norm": False}}, 32),
    ({**TINY, "pool": "avg", "model_args": {"class_token": False}}, 32),
    ({**TINY, "model_args": {"reg_tokens": 3, "no_embed_class": True}}, 32),
    ({**TINY, "model_args": {"reg_tokens": 2, "init_values": 0.1, "pre_norm": True}}, 32),
    ({**TINY, "model_args": {"dynamic_img_size": True}}, 48),
    ({**TINY, "model_args": {"pos_embed": "none"}}, 32),
    ({**TINY, "pool": "map"}, 32),
    ({**TINY, "pool": "max"}, 32),
    ({**TINY, "recompute": True}, 32),
    ({"model": "test_vit", "normalize": "cifar10"}, 224),
    ({"model": "deit_tiny_distilled_patch16_224", "patch_size": 16}, 32),
    ({"model": "beit_base_patch16_224", "patch_size": 16}, 32),
    ({"model": "beit_base_patch16_224", "patch_size": 16, "pool": "token"}, 32),
]


def backbone(size: int = 32, **fields: Any) -> TimmBackbone:
    """Tokens of class and registers, and scales, are not those of the start, which are near 0."""
    torch.manual_seed(0)
    network = TimmBackbone(TimmBackbone.Config(**fields), channels=3, image_size=size)
    with torch.no_grad():
        for name, parameter in network.named_parameters():
            if parameter.ndim == 1 or "token" in name or "bias" in name:
                parameter.add_(0.1 * torch.randn_like(parameter))
    return network


def images(count: int = 3, size: int = 32) -> Tensor:
    return torch.rand(count, 3, size, size, generator=torch.Generator().manual_seed(1))


def kept(count: int, patches: int, keep: int) -> Tensor:
    generator = torch.Generator().manual_seed(2)
    return torch.stack([torch.randperm(patches, generator=generator)[:keep] for _ in range(count)])


def one_by_one(
    network: Any, pictures: Tensor, keep: list[Tensor], masked: Tensor, mask_token: Tensor
) -> tuple[list[Tensor], list[list[Tensor]]]:
    """Behind the norm, and behind each block: an image at a time, from the layers of the model and
    plain attention, so that what is left out is not there at all."""
    model, ends, blocks = network.model, [], []
    for image, chosen, hidden in zip(pictures, keep, masked, strict=True):
        x = network.normalized(image[None])
        size = model.patch_embed.patch_size[0]
        corners = [(r, c) for r in range(0, x.shape[2], size) for c in range(0, x.shape[3], size)]
        parts = [x[0, :, r : r + size, c : c + size].flatten() for r, c in corners]
        weight = model.patch_embed.proj.weight.flatten(1)
        rows = [weight @ part + model.patch_embed.proj.bias for part in parts]
        rows = [mask_token if hide else row for row, hide in zip(rows, hidden, strict=True)]
        positions = model.pos_embed[0]
        prefix = [model.cls_token[0, 0] + positions[0]]
        tokens = torch.stack(prefix + [rows[i] + positions[1 + i] for i in chosen.tolist()])
        found = []
        for block in model.blocks:
            tokens = tokens + attention(block.attn, block.norm1(tokens))
            tokens = tokens + block.mlp(block.norm2(tokens))
            found.append(tokens)
        ends.append(model.norm(tokens))
        blocks.append(found)
    return ends, blocks


def attention(layer: Any, tokens: Tensor) -> Tensor:
    """(n, D) -> (n, D), head by head."""
    query, key, value = layer.qkv(tokens).chunk(3, dim=-1)
    width, parts = tokens.shape[-1] // layer.num_heads, []
    for head in range(layer.num_heads):
        at = slice(head * width, (head + 1) * width)
        scores = query[:, at] @ key[:, at].T / width**0.5
        parts.append(scores.softmax(-1) @ value[:, at])
    return layer.proj(torch.cat(parts, -1))


# --- The whole -----------------------------------------------------------------------------------


@pytest.mark.slow  # 10 seconds
@pytest.mark.parametrize(("fields", "size"), KINDS, ids=str)
@pytest.mark.parametrize("training", [False, True])
def test_pooled_tokens_of_all_patches_are_what_forward_gives(
    fields: dict[str, Any], size: int, training: bool
) -> None:
    network = backbone(32 if size == 48 else size, **fields).train(training)
    pictures, layout = images(2, size), network.token_layout
    assert layout is not None
    tokens = network.tokens(pictures)
    assert torch.equal(network.pool_tokens(tokens), network(pictures))
    rows, columns = layout.grid(size, size)
    assert tokens.prefix.shape == (2, layout.prefix, layout.width)
    assert tokens.patches.shape == (2, rows * columns, layout.width)
    assert tokens.blocks == ()
    assert layout.normed != isinstance(network.model.norm, nn.Identity)
    assert layout.blocks == len(network.model.blocks)


def test_images_of_two_sizes_pass_one_network() -> None:
    """Multi-crop: positions are resampled as in `forward`, and a kept patch has its own."""
    network = backbone(model_args={"dynamic_img_size": True}, **TINY).eval()
    pictures = torch.rand(2, 3, 16, 24)
    keep = kept(2, 24, 24)
    tokens, some = network.tokens(pictures), network.tokens(pictures, keep=keep)
    assert tokens.patches.shape == (2, 24, 64)
    torch.testing.assert_close(some.patches[0], tokens.patches[0, keep[0]])
    hidden = torch.zeros(2, 24, dtype=torch.bool)
    hidden[:, 5] = True
    other = network.tokens(pictures, masked=hidden, mask_token=torch.zeros(64))
    assert not torch.allclose(other.patches, tokens.patches)


def test_outputs_of_blocks_are_timms() -> None:
    network = backbone(**TINY).eval()
    found = network.tokens(images(), blocks=(-1, 0, 4)).blocks
    wanted = network.model.forward_intermediates(
        network.normalized(images()),
        indices=[0, 4, 5],
        output_fmt="NLC",
        return_prefix_tokens=True,
        intermediates_only=True,
    )
    for mine, (patches, prefix) in zip(found, (wanted[2], wanted[0], wanted[1]), strict=True):
        assert torch.equal(mine.patches, patches)
        assert torch.equal(mine.prefix, prefix)
        assert mine.blocks == ()


# --- Some of the patches -------------------------------------------------------------------------


def test_all_patches_kept_are_all_patches() -> None:
    network = backbone(**TINY).eval()
    keep = torch.arange(64).expand(3, -1)
    whole, some = network.tokens(images()), network.tokens(images(), keep=keep)
    assert torch.equal(whole.patches, some.patches)
    assert torch.equal(whole.prefix, some.prefix)


@pytest.mark.parametrize("hide", [False, True])
def test_kept_patches_see_each_other_alone(hide: bool) -> None:
    """Values and gradients against a loop over images, in float64."""
    network, pictures, keep = backbone(**TINY).double(), images().double(), kept(3, 64, 16)
    twin = copy.deepcopy(network)
    token = torch.randn(64, dtype=torch.float64).requires_grad_()
    other = token.detach().clone().requires_grad_()
    masked = torch.rand(3, 64, generator=torch.Generator().manual_seed(3)) < (0.4 if hide else 0.0)
    assert hide == masked.gather(1, keep).any()
    given: dict[str, Any] = {"masked": masked, "mask_token": token} if hide else {}
    tokens = network.tokens(pictures, keep=keep, blocks=(2,), **given)
    ends, blocks = one_by_one(twin, pictures, list(keep), masked, other)
    wanted, middle = torch.stack(ends), torch.stack([found[2] for found in blocks])
    found = torch.cat([tokens.prefix, tokens.patches], 1)
    torch.testing.assert_close(found, wanted, rtol=0, atol=1e-12)
    inner = torch.cat([tokens.blocks[0].prefix, tokens.blocks[0].patches], 1)
    torch.testing.assert_close(inner, middle, rtol=0, atol=1e-12)
    weights = torch.randn(found.shape, dtype=torch.float64)
    ((found * weights).sum() + (inner * weights).sum()).backward()
    ((wanted * weights).sum() + (middle * weights).sum()).backward()
    for (name, mine), theirs in zip(network.named_parameters(), twin.parameters(), strict=True):
        assert mine.grad is not None, name
        torch.testing.assert_close(mine.grad, theirs.grad, rtol=1e-9, atol=1e-10, msg=name)
    if hide:
        torch.testing.assert_close(token.grad, other.grad, rtol=1e-9, atol=1e-10)


def test_the_order_of_kept_patches_orders_what_comes_out() -> None:
    network, keep = backbone(**TINY).double().eval(), kept(3, 64, 16)
    order = torch.randperm(16, generator=torch.Generator().manual_seed(4))
    one = network.tokens(images().double(), keep=keep)
    other = network.tokens(images().double(), keep=keep[:, order])
    torch.testing.assert_close(one.patches[:, order], other.patches, rtol=0, atol=1e-12)
    torch.testing.assert_close(one.prefix, other.prefix, rtol=0, atol=1e-12)


@pytest.mark.parametrize("fused", [True, False])
def test_images_may_keep_different_numbers(fused: bool) -> None:
    """What stands behind the length of a row is as if it were not there, in the gradient too."""
    network = backbone(**TINY).double()
    for block in network.model.blocks:
        block.attn.fused_attn = fused
    keep, lengths = kept(3, 64, 16), torch.tensor([16, 5, 1])
    tokens = network.tokens(images().double(), keep=keep, lengths=lengths, blocks=(1,))
    rows = [row[:length] for row, length in zip(keep, lengths.tolist(), strict=True)]
    nowhere = torch.zeros(3, 64, dtype=torch.bool)
    ends, blocks = one_by_one(network, images().double(), rows, nowhere, torch.zeros(64).double())
    for i, length in enumerate(lengths.tolist()):
        found = torch.cat([tokens.prefix[i], tokens.patches[i, :length]])
        torch.testing.assert_close(found, ends[i], rtol=0, atol=1e-12)
        inner = tokens.blocks[0]
        middle = torch.cat([inner.prefix[i], inner.patches[i, :length]])
        torch.testing.assert_close(middle, blocks[i][1], rtol=0, atol=1e-12)
        assert not tokens.patches[i, length:].any()
        assert not inner.patches[i, length:].any()
    filler = keep.clone()
    filler[1, 5:], filler[2, 1:] = 63, 0
    other = network.tokens(images().double(), keep=filler, lengths=lengths)
    torch.testing.assert_close(other.patches, tokens.patches, rtol=0, atol=1e-12)
    sum_of_squares = tokens.patches.square().sum() + tokens.prefix.square().sum()
    (gradient,) = torch.autograd.grad(sum_of_squares, [network.model.pos_embed])
    used = torch.cat(rows).unique()
    assert gradient.isfinite().all()
    assert sorted(gradient[0, 1:].abs().sum(-1).nonzero()[:, 0].tolist()) == used.tolist()


@pytest.mark.slow  # 2 seconds
def test_masked_patches_do_not_show() -> None:
    """A Beit too: other pixels under the mask change nothing, and positions are still there."""
    for fields in (TINY, {"model": "beit_base_patch16_224", "patch_size": 16}):
        network = backbone(**fields).eval()
        assert network.token_layout is not None
        size, width = network.token_layout.patch_size[0], network.token_layout.width
        masked = torch.zeros(3, (32 // size) ** 2, dtype=torch.bool)
        masked[:, :2] = True
        pictures, token = images(), torch.randn(width)
        other = pictures.clone()
        other[:, :, :size, : 2 * size] = 0.0
        found = [network.tokens(x, masked=masked, mask_token=token) for x in (pictures, other)]
        assert torch.equal(found[0].patches, found[1].patches)
        if network.model.pos_embed is not None:
            assert not torch.allclose(found[0].patches[:, 0], found[0].patches[:, 1])


# --- How it computes -----------------------------------------------------------------------------


def test_recomputed_blocks_have_the_same_gradient() -> None:
    keep, gradients = kept(3, 64, 16), []
    for again in (False, True):
        network = backbone(recompute=again, drop_path_rate=0.3, **TINY).train()
        torch.manual_seed(5)
        tokens = network.tokens(images(), keep=keep, lengths=torch.tensor([16, 9, 3]))
        (tokens.patches.square().sum() + tokens.prefix.sum()).backward()
        gradients.append([p.grad for p in network.parameters()])
    for one, other in zip(*gradients, strict=True):
        assert torch.equal(one, other)


def test_no_value_is_looked_at() -> None:
    """On the meta device, which has none."""
    network = backbone(**TINY).to("meta")
    pictures, masked = images().to("meta"), torch.zeros(3, 64, dtype=torch.bool, device="meta")
    tokens = network.tokens(
        pictures,
        keep=kept(3, 64, 16).to("meta"),
        lengths=torch.ones(3, dtype=torch.int64, device="meta"),
        masked=masked,
        mask_token=torch.zeros(64, device="meta"),
        blocks=(-2,),
    )
    assert network.pool_tokens(tokens).shape == (3, 64)


def test_autocast_takes_a_mask_token_in_float32() -> None:
    network, masked = backbone(**TINY), torch.ones(3, 64, dtype=torch.bool)
    with torch.autocast("cpu", torch.bfloat16):
        tokens = network.tokens(
            images(), masked=masked, mask_token=torch.randn(64), lengths=None, keep=kept(3, 64, 9)
        )
    exact = network.double().tokens(
        images().double(), masked=masked, mask_token=torch.zeros(64).double(), keep=kept(3, 64, 9)
    )
    assert tokens.patches.isfinite().all()
    assert tokens.patches.shape == exact.patches.shape


@pytest.mark.slow  # 3 seconds
def test_a_compiled_backbone_compiles_its_tokens_and_copies_do_not() -> None:
    graphs: list[int] = []

    def backend(graph: Any, inputs: Any) -> Any:
        graphs.append(len(inputs))
        return graph.forward

    network, keep = backbone(**TINY).eval(), kept(3, 64, 16)
    plain = network.tokens(images(), keep=keep)
    network.compile(backend=backend, fullgraph=True)
    found = network.tokens(images(), keep=keep)
    assert len(graphs) == 1
    assert torch.equal(found.patches, plain.patches)
    assert isinstance(found, Tokens)
    twin = copy.deepcopy(network)
    with torch.no_grad():
        twin.model.norm.weight.zero_()
        twin.model.norm.bias.zero_()
    assert not twin.tokens(images(), keep=keep).patches.any()
    assert len(graphs) == 1
    assert torch.equal(network.tokens(images(), keep=keep).patches, plain.patches)


# --- What is refused -----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"keep": torch.zeros(2, 4)}, r"keep is \(2, 4\); valid is \(3, n\)"),
        ({"keep": torch.zeros(3)}, r"keep is \(3,\); valid is \(3, n\)"),
        ({"masked": torch.zeros(3, 63)}, r"masked is \(3, 63\); valid is \(3, 64\)"),
        ({"masked": torch.zeros(3, 64) > 0}, "masked and mask_token go together"),
        ({"mask_token": torch.zeros(64)}, "masked and mask_token go together"),
        ({"mask_token": torch.zeros(1, 1, 64)}, r"mask_token is \(1, 1, 64\); valid is \(64\)"),
        ({"lengths": torch.ones(3)}, "lengths are of the rows of keep, which is missing"),
        ({"blocks": (0, 6)}, "there is no block 6 of 6"),
    ],
)
def test_arguments_that_do_not_fit(given: dict[str, Any], said: str) -> None:
    with pytest.raises(ValueError, match=said):
        backbone(**TINY).tokens(images(), **given)


@pytest.mark.parametrize(
    "fields",
    [
        {"model": "resnet10t"},
        {"model": "test_vit", "model_args": {"patch_drop_rate": 0.5}},
        {"model": "test_vit", "model_args": {"dynamic_img_pad": True, "dynamic_img_size": True}},
        {"model": "eva02_tiny_patch14_224", "patch_size": 16},
    ],
    ids=str,
)
def test_networks_without_tokens_say_so(fields: dict[str, Any]) -> None:
    network = backbone(**fields)
    assert network.token_layout is None
    for call in (
        lambda: network.tokens(images()),
        lambda: network.pool_tokens(Tokens(torch.zeros(1, 1, 64), torch.zeros(1, 4, 64))),
        lambda: Backbone.tokens(network, images()),
    ):
        with pytest.raises(NoTokensError, match="offers no tokens of patches") as raised:
            call()
        assert "\n" not in str(raised.value)


@pytest.mark.slow  # 2 seconds
def test_relative_positions_cannot_leave_patches_out() -> None:
    network = backbone(model="beit_base_patch16_224", patch_size=16)
    assert network.token_layout is not None
    assert not network.token_layout.drops
    with pytest.raises(NoTokensError, match=r"relative positions .* none can be left out"):
        network.tokens(images(), keep=torch.zeros(3, 2, dtype=torch.int64))
