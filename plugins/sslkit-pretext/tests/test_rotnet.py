"""RotNet: exact rotations, the formula, and what a flip after the rotation costs."""

from __future__ import annotations

import copy
import math
from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from itertools import repeat

import numpy as np
import pytest
import torch
from pretext_setup import (
    BATCH,
    SIDE,
    WIDTH,
    facts,
    in_parts,
    make_batch,
    make_method,
    objective,
    problems,
    train,
)
from sslkit_pretext import rotnet
from torch import Tensor

from sslkit.api import Batch, SampleSpec, ViewSpec
from sslkit.errors import RecipeError

# --- The rotations --------------------------------------------------------------------------------


def test_rotations_are_those_of_the_reference_and_move_pixels_only() -> None:
    images = torch.rand(3, 2, 5, 5)
    found = rotnet.rotations(images).numpy()
    for image, turned in zip(images.numpy(), found, strict=True):
        by_channel = zip(image, turned.swapaxes(0, 1), strict=True)
        for channel, (plain, by_90, by_180, by_270) in by_channel:
            assert np.array_equal(plain, channel)
            assert np.array_equal(by_90, np.flipud(channel.T))
            assert np.array_equal(by_180, np.fliplr(np.flipud(channel)))
            assert np.array_equal(by_270, np.flipud(channel).T)


def test_four_quarter_turns_are_none() -> None:
    image = torch.rand(1, 3, 6, 6)
    turned = image
    for _ in range(4):
        turned = rotnet.rotations(turned)[:, 1]
    assert torch.equal(turned, image)


def test_the_backbone_sees_all_four_of_every_view() -> None:
    seen = []
    method, batch = make_method("rotnet"), make_batch()
    method.backbone.register_forward_pre_hook(lambda _, given: seen.append(given[0]))
    method.embed(batch)
    (images,) = seen
    assert images.shape == (4 * BATCH, 3, SIDE, SIDE)
    for row, image in enumerate(batch.views[0]):
        for turns in range(4):
            assert torch.equal(images[4 * row + turns], image.rot90(turns, (1, 2)))


# --- The formula ----------------------------------------------------------------------------------


def reference(method: rotnet.RotNet, batch: Batch) -> tuple[Tensor, float]:
    """Loss and accuracy in loops, from the definition, with the networks of the method."""
    losses, right = [], 0
    for image in batch.views[0]:
        for turns in range(4):
            pixels = np.rot90(image.numpy(), turns, axes=(1, 2)).copy()
            logits = method.head(method.backbone(torch.from_numpy(pixels)[None]))[0]
            total = sum(math.e**logit for logit in logits)
            losses.append(-torch.log(math.e ** logits[turns] / total))
            right += int(max(range(4), key=logits.tolist().__getitem__) == turns)
    return sum(losses[1:], losses[0]) / len(losses), right / len(losses)


def test_loss_and_accuracy_are_those_of_the_definition() -> None:
    method, batch = make_method("rotnet"), make_batch()
    output = objective(method, batch)
    loss, top1 = reference(method, batch)
    assert float(output.loss.detach()) == pytest.approx(float(loss.detach()), rel=1e-12)
    assert output.metrics["pretext_top1"] == pytest.approx(top1)


def test_three_steps_are_those_of_the_definition() -> None:
    method = make_method("rotnet")
    other = copy.deepcopy(method)
    list(train(method, map(make_batch, range(3))))
    for step in range(3):
        reference(other, make_batch(step))[0].backward()
        with torch.no_grad():
            for parameter in other.parameters():
                parameter -= 0.3 * parameter.grad
                parameter.grad = None
    for name, value in method.state_dict().items():
        torch.testing.assert_close(value, other.state_dict()[name], rtol=1e-10, atol=1e-12)


def test_equal_logits_cost_ln_4() -> None:
    method, batch = make_method("rotnet"), make_batch()
    for parameter in method.head.parameters():
        torch.nn.init.zeros_(parameter)
    output = objective(method, batch)
    assert output.loss.item() == pytest.approx(math.log(4), rel=1e-15)
    assert output.metrics["pretext_top1"] == 0.25


def test_parts_of_a_batch_give_what_the_batch_gives() -> None:
    method, batch = make_method("rotnet"), make_batch()
    whole, parts = method.embed(batch), in_parts(method, batch, 3)
    assert whole["features"].shape == (BATCH, WIDTH)
    assert whole["logits"].shape == (BATCH, 4, 4)
    for name, value in whole.items():
        torch.testing.assert_close(parts[name], value, rtol=1e-12, atol=1e-12)
    upright = method.backbone(batch.views[0])
    torch.testing.assert_close(whole["features"], upright, rtol=1e-12, atol=1e-12)


# --- Flips ----------------------------------------------------------------------------------------


def mirrored(images: Tensor) -> Tensor:
    return images.flip(-1)


def flip_first(images: Tensor) -> Tensor:
    """(B, 2, 4, C, S, S): not mirrored and mirrored, then rotated."""
    return torch.stack([rotnet.rotations(images), rotnet.rotations(mirrored(images))], dim=1)


def flip_last(images: Tensor) -> Tensor:
    """The same, rotated and then mirrored."""
    turned = rotnet.rotations(images)
    return torch.stack([turned, mirrored(turned)], dim=1)


@pytest.mark.parametrize(
    ("order", "top1", "loss"), [(flip_first, 1.0, 0.0), (flip_last, 0.75, 0.5 * math.log(2))]
)
def test_the_best_that_anybody_can_do(
    order: Callable[[Tensor], Tensor], top1: float, loss: float
) -> None:
    """The posterior of the rotation, counted on images none of which has a symmetry and whose
    mirror images occur as often."""
    images = torch.arange(5 * 27.0).view(5, 3, 3, 3)
    seen: dict[bytes, Counter[int]] = {}
    for of_image in order(torch.cat([images, mirrored(images)])):
        for of_flip in of_image:
            for turns, pixels in enumerate(of_flip):
                seen.setdefault(pixels.numpy().tobytes(), Counter())[turns] += 1
    total = sum(counts.total() for counts in seen.values())
    right = sum(max(counts.values()) for counts in seen.values())
    surprise = sum(
        count * math.log(counts.total() / count)
        for counts in seen.values()
        for count in counts.values()
    )
    assert right / total == top1
    assert surprise / total == pytest.approx(loss, abs=1e-15)


@pytest.mark.slow  # 3 seconds
@pytest.mark.parametrize(("after", "low", "high"), [(False, 0.0, 0.02), (True, 0.3465, 0.37)])
def test_what_training_reaches(
    monkeypatch: pytest.MonkeyPatch, after: bool, low: float, high: float
) -> None:
    """An image and its mirror image, learned by heart: the loss goes to 0, and no further than
    ln(2) / 2 where half of the rotations are mirrored afterwards."""

    def mirror_half(images: Tensor) -> Tensor:
        turned = exact(images)
        return torch.cat([turned[:2], mirrored(turned[2:])])

    exact = rotnet.rotations
    if after:
        monkeypatch.setattr(rotnet, "rotations", mirror_half)
    generator = torch.Generator().manual_seed(0)
    image = torch.rand(1, 3, SIDE, SIDE, generator=generator, dtype=torch.float64)
    views = torch.cat([image, mirrored(image)]).repeat(2, 1, 1, 1)
    batch = replace(make_batch(size=4), views=(views,))
    *_, last = train(make_method("rotnet"), repeat(batch, 600), lr=3.0)
    assert low <= float(last.loss) <= high


# --- What it refuses ------------------------------------------------------------------------------


def test_it_needs_one_square_view_of_images() -> None:
    assert problems("rotnet", facts()) == []
    ((_, two),) = problems("rotnet", facts(ViewSpec(SIDE), ViewSpec(SIDE)))
    assert two == (
        "rotnet needs 1 view, but the augmentation makes 2: set augmentation.num_views to 1"
    )
    ((_, oblong),) = problems("rotnet", facts(ViewSpec((8, 12))))
    assert oblong == "rotnet needs square views, but the augmentation makes 8 x 12"
    series = replace(facts(ViewSpec((96,))), other_samples=SampleSpec((1, 96), "float32"))
    ((_, other),) = problems("rotnet", series)
    assert other == "rotnet is for images, and these samples are 1 x 96 float32"


def test_its_head_has_four_logits() -> None:
    with pytest.raises(RecipeError, match=r"^method.head: its output has width 5, and there are 4"):
        make_method("rotnet", head={"name": "mlp", "out_dim": 5})
