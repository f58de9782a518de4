"""MAE against closed forms, the paper's rules, an independent step in float64, and lightly."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import pytest
import torch
from mim_setup import (
    BATCH,
    FACTS,
    PATCHES,
    SIDE,
    SMALL,
    VALUES,
    WIDTH,
    block,
    encoded,
    layer_norm,
    make,
    make_batch,
    pixels_of,
    vit,
)
from pydantic import ValidationError
from sslkit_mim.decoder import Decoder, DecoderConfig
from sslkit_mim.pixels import patch_statistics
from torch import Tensor, nn

from sslkit.api import Batch, Progress, RunFacts, ViewSpec, resolve_component
from sslkit.errors import RecipeError
from sslkit.host.plugins import load_plugins
from sslkit.nn.positions import sine_cosine_positions

FIRST = Progress(0, 1, 1)


def mae(backbone: dict[str, Any] | None = None, **fields: Any) -> Any:
    return make("mae", backbone, **{"decoder": SMALL, **fields})


def loss_of(method: Any, batch: Batch) -> Tensor:
    loss: Tensor = method.objective(method.embed(batch), batch, FIRST).loss
    return loss


def guess_nothing(method: Any) -> None:
    with torch.no_grad():
        for parameter in method.decoder.predict.parameters():
            parameter.zero_()


# --- Closed forms --------------------------------------------------------------------------------


def test_guessing_nothing_costs_what_the_unbiased_variance_leaves() -> None:
    """(n - 1) / n for n values: 767 / 768 for 16 x 16 pixels of three channels."""
    patches = torch.rand(2, 5, 768, dtype=torch.float64)
    mean, deviation = patch_statistics(patches)
    assert ((patches - mean) / deviation).square().mean().item() == pytest.approx(
        767 / 768, abs=1e-4
    )
    method, batch = mae(), make_batch()
    guess_nothing(method)
    small = [pixels_of(image).var(1).min() for image in normalised(batch.views[0])]
    assert min(small) > 0.1  # so that 1e-6 beside it does not show
    expected = (VALUES - 1) / VALUES
    assert loss_of(method, batch).item() == pytest.approx(expected, rel=1e-5)


def test_even_patches_cost_nothing() -> None:
    method = mae({"normalize": "none"})
    guess_nothing(method)
    batch = make_batch()
    even = Batch((torch.full_like(batch.views[0], 0.3),), batch.indices, batch.random)
    assert loss_of(method, even).item() < 1e-12


def test_the_loss_is_of_hidden_patches_alone() -> None:
    """Other visible pixels change what is seen; other hidden ones what is asked for."""
    method, batch = mae(norm_pix=False), make_batch()
    guess_nothing(method)
    visible, hidden = method._split(batch)
    assert visible.shape == (BATCH, 4)
    assert torch.equal(torch.cat([visible, hidden], 1).sort(1).values[0], torch.arange(PATCHES))
    before = loss_of(method, batch)
    for numbers, changes in ((visible, False), (hidden, True)):
        images = batch.views[0].clone()
        for row, image in zip(numbers, images, strict=True):
            for number in row.tolist():
                top, left = 4 * (number // 4), 4 * (number % 4)
                image[:, top : top + 4, left : left + 4] += 0.5
        after = loss_of(method, Batch((images,), batch.indices, batch.random))
        assert (abs(after.item() - before.item()) > 0.1) == changes


@pytest.mark.parametrize(("ratio", "visible"), [(0.75, 4), (0.7, 4), (0.5, 8), (0.9, 1)])
def test_as_many_patches_as_the_paper_keeps(ratio: float, visible: int) -> None:
    assert mae(mask_ratio=ratio).visible == visible == int(PATCHES * (1 - ratio))


# --- A whole step against an independent one -----------------------------------------------------


def normalised(images: Tensor) -> Tensor:
    """By ImageNet's statistics, which a backbone has in float32."""
    mean = torch.tensor([0.485, 0.456, 0.406]).double().view(3, 1, 1)
    std = torch.tensor([0.229, 0.224, 0.225]).double().view(3, 1, 1)
    return (images - mean) / std


def decoder_block(parameters: dict[str, Tensor], number: int) -> dict[str, Tensor]:
    """The weights of a block of the decoder, under the names of `mim_setup.block`."""
    prefix = f"decoder.blocks.{number}."
    names = {"norm1": "norm1.", "norm2": "norm2.", "fc1": "linear1.", "fc2": "linear2."}
    names |= {"qkv": "self_attn.in_proj_", "proj": "self_attn.out_proj."}
    return {
        f"{mine}.{kind}": parameters[f"{prefix}{theirs}{kind}"]
        for mine, theirs in names.items()
        for kind in ("weight", "bias")
    }


def slow_loss(method: Any, batch: Batch, norm_pix: bool) -> Tensor:
    """An image at a time, from the paper's description; positions of the decoder by its formula."""
    w = dict(method.named_parameters())
    positions = sine_cosine_positions(4, 4, SMALL["width"], column_first=True).double()
    order = batch.random.permutation("mask", PATCHES)
    total, count = torch.zeros((), dtype=torch.float64), 0
    for image, numbers in zip(normalised(batch.views[0]), order.tolist(), strict=True):
        keep = numbers[: PATCHES // 4]
        seen = encoded(w, image, keep) @ w["decoder.embed.weight"].T + w["decoder.embed.bias"]
        tokens = [seen[0]]
        for number in range(PATCHES):
            known = number in keep
            token = seen[1 + keep.index(number)] if known else w["decoder.mask_token"][0, 0]
            tokens.append(token + positions[number])
        x = torch.stack(tokens)
        for layer in range(SMALL["depth"]):
            x = block(x, decoder_block(w, layer), SMALL["heads"])
        x = layer_norm(x, w["decoder.norm.weight"], w["decoder.norm.bias"])
        made = x[1:] @ w["decoder.predict.weight"].T + w["decoder.predict.bias"]
        for number, target in enumerate(pixels_of(image)):
            if number in keep:
                continue
            if norm_pix:
                variance = ((target - target.mean()) ** 2).sum() / (VALUES - 1)
                target = (target - target.mean()) / torch.sqrt(variance + 1e-6)
            total = total + ((made[number] - target) ** 2).mean()
            count += 1
    assert count == BATCH * (PATCHES - PATCHES // 4)
    return total / count


@pytest.mark.parametrize("norm_pix", [True, False])
def test_a_step_is_that_of_a_slow_reference(norm_pix: bool) -> None:
    method, batch = mae(norm_pix=norm_pix), make_batch()
    names = [name for name, p in method.named_parameters() if p.requires_grad]
    parameters = [dict(method.named_parameters())[name] for name in names]
    found, wanted = loss_of(method, batch), slow_loss(method, batch, norm_pix)
    assert found.item() == pytest.approx(wanted.item(), rel=1e-12)
    mine = torch.autograd.grad(found, parameters)
    theirs = torch.autograd.grad(wanted, parameters)
    for name, one, other in zip(names, mine, theirs, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-8, atol=1e-11, msg=name)
        assert one.abs().max() > 0.0, name


def test_tokens_of_the_decoder_stay_float32_in_mixed_precision() -> None:
    """As in the code, where mask tokens in float32 lift them; what blocks add is bfloat16."""
    torch.manual_seed(0)
    config = DecoderConfig(width=32, depth=4, heads=4)
    decoder = Decoder(config, 24, (4, 4), 12)
    tokens, visible = torch.randn(3, 5, 24), torch.arange(12).view(3, 4)
    seen: list[Tensor] = []
    decoder.norm.register_forward_pre_hook(lambda _, given: seen.append(given[0]))
    decoder(tokens, visible, prefix=1)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        decoder(tokens, visible, prefix=1)
    exact, mixed = seen
    assert mixed.dtype == torch.float32
    assert 1e-4 < (mixed - exact).norm() / exact.norm() < 0.01


def test_micro_batches_are_the_whole_batch() -> None:
    method, batch = mae(), make_batch()
    parts = [method.embed(batch.select(slice(i, i + 2))) for i in (0, 2, 4)]
    whole = method.embed(batch)
    for name, value in whole.items():
        torch.testing.assert_close(torch.cat([part[name] for part in parts]), value)


def test_encoder_and_decoder_are_lightlys() -> None:
    """With the same weights and the same patches visible, lightly makes the same of them."""
    pytest.importorskip("lightly")
    from lightly.models import utils
    from lightly.models.modules import MaskedVisionTransformerTIMM
    from lightly.models.modules.masked_autoencoder_timm import MAEDecoderTIMM

    method, batch = mae(), make_batch()
    visible, hidden = method._split(batch)
    images = normalised(batch.views[0])
    network = MaskedVisionTransformerTIMM(
        vit=method.backbone.model, weight_initialization="skip", pos_embed_initialization="skip"
    ).double()
    keep = torch.cat([torch.zeros(BATCH, 1, dtype=torch.int64), visible + 1], 1)
    encoder = network.encode(images, idx_keep=keep)
    tokens = method.backbone.tokens(batch.views[0], keep=visible)
    torch.testing.assert_close(torch.cat([tokens.prefix, tokens.patches], 1), encoder)

    with pytest.warns(FutureWarning):
        decoder = MAEDecoderTIMM(PATCHES, 4, 3, WIDTH, *SMALL.values()).double()
    decoder.load_state_dict(
        {lightly_name(name): value for name, value in method.decoder.state_dict().items()}
        | {"decoder_pos_embed": decoder.decoder_pos_embed}
    )
    torch.testing.assert_close(
        decoder.decoder_pos_embed[0, 1:], method.decoder.positions.double(), rtol=0, atol=1e-6
    )
    filled = utils.repeat_token(decoder.mask_token, (BATCH, PATCHES + 1))
    filled = utils.set_at_index(filled, keep, decoder.embed(encoder))
    made = decoder.predict(utils.get_at_index(decoder.decode(filled), hidden + 1))
    target = utils.normalize_mean_var(
        utils.get_at_index(utils.patchify(images, 4), hidden), eps=1e-6
    )
    loss = nn.functional.mse_loss(made, target)
    assert loss_of(method, batch).item() == pytest.approx(loss.item(), rel=1e-6)


def lightly_name(name: str) -> str:
    changes = {
        "embed.": "decoder_embed.",
        "blocks.": "decoder_blocks.",
        "norm.": "decoder_norm.",
        "predict.": "decoder_pred.",
    }
    for mine, theirs in changes.items():
        if name.startswith(mine):
            name = theirs + name.removeprefix(mine)
            break
    for mine, theirs in (
        ("self_attn.in_proj_", "attn.qkv."),
        ("self_attn.out_proj", "attn.proj"),
        ("linear1", "mlp.fc1"),
        ("linear2", "mlp.fc2"),
    ):
        name = name.replace(mine, theirs)
    return name


# --- Its start -----------------------------------------------------------------------------------


def test_the_start_is_the_papers() -> None:
    slot = resolve_component(load_plugins().registry, "method", {"name": "mae", "decoder": SMALL})
    torch.manual_seed(0)
    method: Any = slot.build(vit(model_args={"reg_tokens": 2}), FACTS)
    model = method.backbone.model
    assert not model.pos_embed.requires_grad
    assert not model.pos_embed[0, :3].any()
    positions = sine_cosine_positions(4, 4, WIDTH, column_first=True)
    assert torch.equal(model.pos_embed[0, 3:], positions)
    assert model.cls_token.std().item() == pytest.approx(0.02, rel=0.4)
    assert model.reg_token.std().item() == pytest.approx(0.02, rel=0.4)
    assert method.decoder.mask_token.std().item() == pytest.approx(0.02, rel=0.5)
    attention = model.blocks[0].attn
    inner = method.decoder.blocks[1]
    for weight, fans in (
        (model.patch_embed.proj.weight, VALUES + WIDTH),
        (attention.qkv.weight, 3 * WIDTH + WIDTH),  # as one layer
        (model.blocks[5].mlp.fc1.weight, 3 * WIDTH + WIDTH),
        (inner.self_attn.in_proj_weight, 4 * SMALL["width"]),
        (inner.linear1.weight, 5 * SMALL["width"]),
        (method.decoder.embed.weight, WIDTH + SMALL["width"]),
        (method.decoder.predict.weight, SMALL["width"] + VALUES),
    ):
        bound = math.sqrt(6 / fans)
        assert 0.95 * bound < weight.abs().max() <= bound
        assert weight.std().item() == pytest.approx(bound / math.sqrt(3), rel=0.08)
    linear = [m for m in method.modules() if isinstance(m, nn.Linear)]
    assert all(m.bias is None or not m.bias.any() for m in linear)
    trained = {name for group in method.param_groups() for name, _ in group.params}
    assert "backbone.model.pos_embed" not in trained
    assert {"decoder.mask_token", "backbone.model.cls_token"} <= trained


def test_without_vit_init_the_backbone_stays_as_it_is() -> None:
    backbone = vit()
    before = {name: value.clone() for name, value in backbone.state_dict().items()}
    fields = {"name": "mae", "decoder": SMALL, "vit_init": False}
    resolve_component(load_plugins().registry, "method", fields).build(backbone, FACTS)
    assert all(torch.equal(value, before[name]) for name, value in backbone.state_dict().items())


# --- What is refused -----------------------------------------------------------------------------


@pytest.mark.slow  # 2 seconds
@pytest.mark.parametrize(
    ("backbone", "fields", "said"),
    [
        ({"model": "test_resnet", "patch_size": None, "pool": None}, {}, "needs tokens of patches"),
        ({"model": "beit_base_patch16_224"}, {}, "relative positions do not allow"),
        ({}, {"mask_ratio": 0.95}, r"mask_ratio: 0\.95 leaves 0 of 16 patches visible"),
        ({"model_args": {"pos_embed": "none"}}, {}, "vit_init: it has no learned position"),
    ],
)
def test_what_cannot_be_trained_is_refused_in_a_line(
    backbone: dict[str, Any], fields: dict[str, Any], said: str
) -> None:
    with pytest.raises(RecipeError, match=said) as raised:
        mae(backbone, **fields)
    assert "\n" not in str(raised.value)


def test_a_patch_of_one_value_has_no_deviation() -> None:
    grey = replace(FACTS, channels=1)
    slot = resolve_component(load_plugins().registry, "method", {"name": "mae", "decoder": SMALL})
    with pytest.raises(RecipeError, match="norm_pix: a patch has 1 value"):
        slot.build(vit(patch_size=1), grey)


def test_two_views_are_refused() -> None:
    slot = resolve_component(load_plugins().registry, "method", {"name": "mae"})
    facts = RunFacts(60, 3, None, None, 8, 10, 20, (ViewSpec(SIDE), ViewSpec(SIDE)))
    assert list(slot.cls.problems(slot.config, facts)) == [
        ("", "mae needs 1 view, but the augmentation makes 2")
    ]


def test_a_decoder_of_odd_width_is_refused() -> None:
    with pytest.raises(ValidationError, match="width 18: it must be a multiple of 4"):
        mae(decoder={"width": 18, "depth": 1, "heads": 2})
