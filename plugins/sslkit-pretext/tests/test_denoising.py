"""The denoising autoencoder: its noise, its formula, and what it refuses."""

from __future__ import annotations

import copy
import math
from dataclasses import replace
from typing import Any

import pytest
import torch
from pretext_setup import (
    BATCH,
    SIDE,
    facts,
    in_parts,
    make_batch,
    make_method,
    objective,
    problems,
    train,
)
from pydantic import ValidationError
from sslkit_pretext.conv_decoder import ConvDecoder
from sslkit_pretext.denoising import DenoisingAutoencoder
from torch import Tensor

from sslkit.api import Batch, ViewSpec
from sslkit.errors import RecipeError

VALUES = 3 * SIDE * SIDE
LINEAR = {"name": "mlp", "num_layers": 1, "out_dim": VALUES, "output_norm": "none"}
"""A decoder without batch statistics."""


def make_denoising(**fields: Any) -> DenoisingAutoencoder:
    made: DenoisingAutoencoder = make_method("denoising", **{"decoder": LINEAR, **fields})
    return made


def damaged(method: DenoisingAutoencoder, batch: Batch) -> Tensor:
    """What the backbone is given."""
    seen: list[Tensor] = []
    handle = method.backbone.register_forward_pre_hook(lambda _, given: seen.append(given[0]))
    method.embed(batch)
    handle.remove()
    return seen[0]


# --- The noise ------------------------------------------------------------------------------------


def test_a_mask_sets_its_part_of_the_values_to_0_and_leaves_the_others() -> None:
    batch = make_batch(size=60)
    clean, found = batch.views[0], damaged(make_denoising(noise_level=0.25), batch)
    lost = found != clean
    assert not found[lost].any()
    deviation = math.sqrt(0.25 * 0.75 / clean.numel())
    assert abs(lost.double().mean() - 0.25) < 4 * deviation
    for other in (lost[:, 1:], lost[:, :1].expand(-1, 2, -1, -1)):
        assert other.any()
    together = (lost[:, 0] & lost[:, 1]).double().mean()  # channels by themselves
    assert abs(together - 0.0625) < 4 * math.sqrt(0.0625 / (clean.numel() / 3))


def test_normal_noise_is_normal() -> None:
    batch = make_batch(size=60)
    noise = (
        damaged(make_denoising(noise="gaussian", noise_level=0.3), batch) - batch.views[0]
    ) / 0.3
    values = noise.flatten().sort().values
    count = len(values)
    below = 0.5 * (1.0 + torch.erf(values / math.sqrt(2.0)))
    steps = torch.arange(1, count + 1) / count
    assert (below - steps).abs().max() < 1.63 / math.sqrt(count)  # Kolmogorov-Smirnov, 1 %
    first, second = noise.flatten(1).chunk(2, dim=1)  # from the same pairs
    assert abs((first * second).mean()) < 4 / math.sqrt(first.numel())


@pytest.mark.parametrize("noise", ["mask", "gaussian"])
def test_the_noise_is_of_the_image_and_the_epoch(noise: str) -> None:
    method, batch = make_denoising(noise=noise), make_batch()
    whole = damaged(method, batch)
    part = damaged(method, batch.select(slice(4, 7)))
    assert torch.equal(part, whole[4:7])
    later = replace(batch, random=replace(batch.random, epoch=1))
    assert not torch.equal(damaged(method, later), whole)


def test_without_noise_it_sees_the_image() -> None:
    batch = make_batch()
    for noise in ("mask", "gaussian"):
        assert torch.equal(
            damaged(make_denoising(noise=noise, noise_level=0), batch), batch.views[0]
        )


# --- The formula ----------------------------------------------------------------------------------


def reference(method: DenoisingAutoencoder, batch: Batch) -> Tensor:
    """The loss in loops, from the definition, with the networks of the method."""
    total = torch.zeros((), dtype=torch.float64)
    lost = batch.random.uniform("noise", VALUES) < method.config.noise_level
    for row, image in enumerate(batch.views[0]):
        seen = image.flatten().clone()
        for place in lost[row].nonzero().flatten().tolist():
            seen[place] = 0.0
        made = method.decoder(method.backbone(seen.view_as(image)[None]))[0]
        total = total + ((made - image.flatten()) ** 2).sum()
    return total / (len(batch) * VALUES)


def test_the_loss_is_that_of_the_definition() -> None:
    method, batch = make_denoising(), make_batch()
    torch.testing.assert_close(
        objective(method, batch).loss, reference(method, batch), rtol=1e-12, atol=0
    )


def test_three_steps_are_those_of_the_definition() -> None:
    method = make_denoising()
    other = copy.deepcopy(method)
    list(train(method, map(make_batch, range(3))))
    for step in range(3):
        reference(other, make_batch(step)).backward()
        with torch.no_grad():
            for parameter in other.parameters():
                assert parameter.grad is not None
                parameter -= 0.3 * parameter.grad
                parameter.grad = None
    for name, value in method.state_dict().items():
        torch.testing.assert_close(value, other.state_dict()[name], rtol=1e-10, atol=1e-12)


def test_values_with_a_closed_form() -> None:
    """Black for every image costs the mean square; the mean image, the variance, of which nothing
    is then explained; the image itself, nothing."""
    method, batch = make_denoising(), make_batch()
    clean = batch.views[0].flatten(1)
    found = method.embed(batch)
    for made, loss, explained in (
        (torch.zeros_like(clean), float((clean**2).mean()), None),
        (clean.mean(0).expand_as(clean), float(clean.var(0, correction=0).mean()), 0.0),
        (clean, 0.0, 1.0),
    ):
        output = method.objective({**found, "reconstruction": made}, batch, None)  # type: ignore[arg-type]
        assert float(output.loss) == pytest.approx(loss, rel=1e-12)
        if explained is not None:
            assert output.metrics["explained_variance"] == pytest.approx(explained, abs=1e-12)


def test_what_is_to_be_made_is_not_rounded_in_mixed_precision() -> None:
    method, batch = make_denoising().float(), make_batch()
    images = batch.views[0].float()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        found = method.embed(replace(batch, views=(images,)))
    assert torch.equal(found["clean"], images.flatten(1))


def test_of_images_that_are_all_alike_nothing_is_to_be_explained() -> None:
    method, batch = make_denoising(), make_batch(size=1)
    output = method.objective(method.embed(batch), batch, None)  # type: ignore[arg-type]
    assert float(output.metrics["explained_variance"]) == 0.0


def test_parts_of_a_batch_give_what_the_batch_gives() -> None:
    method, batch = make_denoising(), make_batch()
    whole, parts = method.embed(batch), in_parts(method, batch, 3)
    assert whole["reconstruction"].shape == whole["clean"].shape == (BATCH, VALUES)
    for name, value in whole.items():
        torch.testing.assert_close(parts[name], value, rtol=1e-12, atol=1e-12)


def test_pictures_are_the_image_what_is_seen_and_what_is_made() -> None:
    method, batch = make_denoising(), make_batch()
    method.train()
    pictures = method.pictures(batch)
    assert list(pictures) == ["image", "seen", "reconstruction"]
    assert torch.equal(pictures["image"], batch.views[0])
    assert torch.equal(pictures["seen"], damaged(method, batch))
    made = method.embed(batch)["reconstruction"].view_as(batch.views[0])
    torch.testing.assert_close(pictures["reconstruction"], made)
    assert method.training


def test_the_callback_reconstructions_draws_them() -> None:
    """It is a callback of sslkit-mim, for any method that makes pictures."""
    reconstructions = pytest.importorskip("sslkit_mim.reconstructions")
    method = make_denoising()
    assert isinstance(method, reconstructions.MakesPictures)
    figure = reconstructions.pictures_figure(method.pictures(make_batch(size=4)))
    titles = [axis.get_title() for axis in figure.axes if axis.get_title()]
    assert titles == ["image", "seen", "reconstruction"]
    assert len(figure.axes) == 12


# --- The decoder ----------------------------------------------------------------------------------


@pytest.mark.parametrize(("size", "sides"), [(32, [4, 8, 16, 32]), (12, [3, 6, 12]), (3, [3])])
def test_the_decoder_doubles_the_side(size: int, sides: list[int]) -> None:
    decoder = ConvDecoder(ConvDecoder.Config(size=size, width=40), in_dim=6)
    values: Tensor = torch.rand(2, 6)
    shapes = []
    for layer in decoder.as_layers():
        values = layer(values)
        shapes.append(tuple(values.shape[1:]))
    widths = [40, 20, 16, 16]
    expected = [(width, side, side) for width, side in zip(widths, sides, strict=False)]
    assert shapes == [*expected, (3 * size * size,)]
    assert decoder.out_dim == 3 * size * size


def test_it_learns_the_colours_of_images_by_heart() -> None:
    batch = make_batch(size=4)
    colours = batch.views[0][:, :, :1, :1].expand_as(batch.views[0])
    batch = replace(batch, views=(colours,))
    decoder = {"name": "conv_decoder", "size": SIDE, "width": 16}
    method = make_method("denoising", decoder=decoder, noise_level=0.1)
    first, *_, last = train(method, iter([batch] * 150), lr=0.1)
    assert float(first.metrics["explained_variance"]) < 0.0
    assert float(last.metrics["explained_variance"]) > 0.5


# --- What it refuses ------------------------------------------------------------------------------


def test_it_needs_one_view_that_its_decoder_makes() -> None:
    assert problems("denoising", facts()) == []
    ((_, said),) = problems("denoising", facts(ViewSpec(SIDE), ViewSpec(SIDE)))
    assert said.startswith("denoising needs 1 view, but the augmentation makes 2")
    with pytest.raises(RecipeError, match=r"it makes 150528 values, and a view has 432 \(3 x 12 x"):
        make_method("denoising")
    decoder = {"name": "conv_decoder", "size": SIDE, "channels": 1}
    with pytest.raises(RecipeError, match=r"432 .*; set its size and channels, or its out_dim"):
        make_method("denoising", decoder=decoder)


def test_a_mask_leaves_something() -> None:
    with pytest.raises(ValidationError, match="a mask must leave something to see"):
        make_denoising(noise_level=1.0)
    make_denoising(noise="gaussian", noise_level=1.0)
