"""iBOT against closed forms, the paper written out in loops, and other code."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import pytest
import torch
from distill_setup import BATCH, FACTS, SIDE, in_parts, make_batch, method_slot, problems
from pydantic import ValidationError
from sslkit_distill.view_masks import MaskedPatches
from token_net import HEAD, MASKS, SIDES, TOKEN_FACTS, WARM, Reference, TokenNet, make, steps_of
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from sslkit.api import Progress, ViewSpec
from sslkit.errors import RecipeError, TrainingError
from sslkit.nn.masking import block_masked

START = Progress(0, 6, 2)


def batch_of(step: int = 0) -> Any:
    return make_batch(step, sides=SIDES)


# --- The paper written out: loops, float64, no shared code ----------------------------------------


@pytest.mark.parametrize(("shared", "steps"), [(True, 3), (False, 4)])
def test_several_steps_equal_the_paper_written_out(shared: bool, steps: int) -> None:
    """Both losses, weights, teacher and both centres: two temperatures that warm up, weights of
    the losses, last layers frozen for an epoch of two steps, momentum on a cosine."""
    ibot = make(
        "ibot",
        patch_head=None if shared else HEAD,
        **WARM,
        patch_center_momentum=0.8,
        mask_probability=0.7,
        class_weight=0.7,
        patch_weight=1.3,
        max_grad_norm=None,
    )
    reference = Reference(ibot.state_dict(), weights=(0.7, 1.3, 0.0), momenta=(0.9, 0.8))
    for found, expected in steps_of(ibot, reference, steps):
        classes, patches, _ = expected
        assert found.metrics["class_loss"].item() == pytest.approx(classes, abs=1e-10)
        assert found.metrics["patch_loss"].item() == pytest.approx(patches, abs=1e-10)
        assert found.loss.item() == pytest.approx(0.7 * classes + 1.3 * patches, abs=1e-10)
    assert reference.unmasked > 0  # some views have no masked patch
    torch.testing.assert_close(ibot.center, reference.centers[0], rtol=1e-9, atol=1e-12)
    torch.testing.assert_close(ibot.patch_center, reference.centers[1], rtol=1e-9, atol=1e-12)
    reference.check(ibot)


# --- Closed forms ---------------------------------------------------------------------------------


def given(count: Tensor, scores: int = 8192, most: int = 8) -> dict[str, Tensor]:
    """Embeddings with uniform scores of the student, and `count` (B, G) masked patches."""
    slots = torch.arange(most) < count[..., None]
    shape = count.shape
    return {
        "student": torch.zeros(len(count), 4, scores),
        "teacher": torch.rand(*shape, scores),
        "target": torch.rand(*shape, scores).softmax(-1),
        "student_patches": torch.zeros(*shape, most, scores),
        "teacher_patches": torch.rand(*shape, most, scores),
        "patch_weights": slots / count.clamp(min=1)[..., None],
    }


def test_uniform_scores_lose_ln_k() -> None:
    """9.0109 for 8,192 prototypes, whatever the numbers of masked patches."""
    ibot = make("ibot", head={**HEAD, "out_dim": 8192}).float()
    found = ibot.objective(given(torch.tensor([[1, 8], [3, 2]])), batch_of(), START)
    assert found.metrics["class_loss"].item() == pytest.approx(math.log(8192), rel=1e-5)
    assert found.metrics["patch_loss"].item() == pytest.approx(9.0109, abs=5e-5)
    assert found.loss.item() == pytest.approx(2 * math.log(8192), rel=1e-5)


def test_shares_of_patches_are_exact_whatever_the_precision_of_the_scores() -> None:
    """49 patches of a view count 1 together; rounded to bf16 they would count 0.9989."""
    masked = torch.zeros(1, 2, 64, dtype=torch.bool)
    masked[0, 0, 5:54] = True
    hidden = MaskedPatches.of(masked, 50)
    for given, dtype in ((torch.bfloat16, torch.float32), (torch.float64, torch.float64)):
        weights = hidden.weights(given)
        assert (weights.dtype, weights.shape) == (dtype, (1, 2, 50))
        assert weights.double().sum((0, 2)).tolist() == pytest.approx([1.0, 0.0], abs=1e-6)


def test_a_view_without_masked_patches_adds_zero() -> None:
    """And a batch without any loses 0, with a finite gradient, and leaves the centre."""
    ibot = make("ibot").float()
    half = ibot.objective(given(torch.tensor([[4, 0], [0, 2]]), 7), batch_of(), START)
    assert half.metrics["patch_loss"].item() == pytest.approx(math.log(7) / 2, rel=1e-5)
    assert float(half.metrics["masked_views"]) == pytest.approx(0.5)
    none = given(torch.tensor([[0, 0], [0, 0]]), 7)
    none["student_patches"].requires_grad_()
    none["student"].requires_grad_()
    ibot.patch_center.fill_(0.25)
    found = ibot.objective(none, batch_of(), START)
    found.loss.backward()
    assert found.metrics["patch_loss"].item() == 0.0
    gradient = none["student_patches"].grad
    assert gradient is None or not gradient.any()
    ibot.after_step(START.next(), found.carry)
    assert torch.equal(ibot.patch_center, torch.full((7,), 0.25))


# --- Other code -----------------------------------------------------------------------------------


def test_the_patch_loss_and_its_centre_are_lightlys() -> None:
    """Over three batches. lightly moves its centre in the loss."""
    theirs = pytest.importorskip("lightly.loss").IBOTPatchLoss(output_dim=7).double()
    ibot = make("ibot", patch_teacher_temperature=0.05, class_weight=0.0)
    torch.manual_seed(2)
    for step in range(3):
        masked = torch.rand(6, 16) < 0.3
        masked[1] = False
        count = masked.sum(1)
        student = torch.randn(int(count.sum()), 7, dtype=torch.float64, requires_grad=True)
        teacher = torch.randn(int(count.sum()), 7, dtype=torch.float64)
        slots = torch.arange(16) < count[:, None]
        placed = [torch.zeros(6, 16, 7, dtype=torch.float64) for _ in range(2)]
        for each, rows in zip(placed, (student, teacher), strict=True):
            each[slots] = rows
        embeddings = {
            name: value.double() for name, value in given(count.view(3, 2), 7, 16).items()
        }
        embeddings["student_patches"] = placed[0].view(3, 2, 16, 7)
        embeddings["teacher_patches"] = placed[1].view(3, 2, 16, 7)
        found = ibot.objective(embeddings, batch_of(), START)
        (mine,) = torch.autograd.grad(found.loss, student)
        loss = theirs(teacher, student, masked.view(6, 4, 4), teacher_temp=0.05)
        (gradient,) = torch.autograd.grad(loss, student)
        torch.testing.assert_close(found.loss, loss, rtol=1e-6, atol=0.0)  # their 0.05 is float32
        torch.testing.assert_close(mine, gradient, rtol=1e-4, atol=1e-9)
        ibot.after_step(Progress(step + 1, 5, 5), found.carry)
        torch.testing.assert_close(
            ibot.patch_center, theirs.center.value.flatten(), rtol=1e-12, atol=1e-14
        )


# --- Masks ----------------------------------------------------------------------------------------


def masks_of(ibot: Any, batch: Any) -> Tensor:
    ibot.backbone.seen.clear()
    ibot.embed(batch)
    masked: Tensor = ibot.backbone.seen[0]
    return masked.view(2, len(batch), -1).transpose(0, 1)


def test_masks_are_blocks_of_each_view_and_sample() -> None:
    """The same in parts and for a sample alone, others in the other view and the next epoch."""
    ibot, batch = make("ibot", mask_probability=1.0), batch_of()
    masked = masks_of(ibot, batch)
    count = masked.sum(2)
    assert (int(count.min()), int(count.max())) == (1, 8)
    assert not torch.equal(masked[:, 0], masked[:, 1])
    alone = masks_of(ibot, batch.select(slice(5, 6)))
    assert torch.equal(alone[0], masked[5])
    later = replace(batch, random=replace(batch.random, epoch=1))
    assert not torch.equal(masks_of(ibot, later), masked)
    random = batch.random.substream("view", 1)
    number = 1 + random.integers("count", 1, 8)[:, 0]
    assert torch.equal(number, count[:, 1])
    drawn = block_masked(random, (4, 4), number, blocks=ibot.masks.blocks)
    assert torch.equal(drawn, masked[:, 1])


def test_so_many_views_are_masked_and_so_much_of_them() -> None:
    """A part as the schedule says, numbers of patches uniform between both ends."""
    views = (ViewSpec(SIDE), ViewSpec(SIDE))
    ibot = make("ibot", replace(FACTS, views=views), mask_probability={
        "name": "linear", "start": 0.0, "end": 0.5, "epochs": 1.0,
    })  # fmt: skip
    many = torch.arange(4000)
    batch = make_batch()
    images = torch.zeros(4000, 3, SIDE, SIDE, dtype=torch.float64)
    batch = replace(batch, views=(images, images), indices=many)
    batch = replace(batch, random=replace(batch.random, indices=many))
    assert not masks_of(ibot, batch).any()
    ibot.before_step(Progress(5, 10, 5))
    count = masks_of(ibot, batch).sum(2)
    assert (count > 0).double().mean().item() == pytest.approx(0.5, abs=0.02)
    shares = torch.bincount(count[count > 0], minlength=9)[1:] / (count > 0).sum()
    assert shares.tolist() == pytest.approx([1 / 8] * 8, abs=0.02)


# --- The networks ---------------------------------------------------------------------------------


def test_what_is_embedded() -> None:
    ibot, batch = make("ibot"), batch_of()
    found = ibot.embed(batch)
    shapes = {name: tuple(value.shape) for name, value in found.items()}
    assert shapes == {
        "features": (BATCH, 2, 6),
        "student_features": (BATCH, 2, 6),
        "student": (BATCH, 4, 7),
        "teacher": (BATCH, 2, 7),
        "target": (BATCH, 2, 7),
        "student_patches": (BATCH, 2, 8, 7),
        "teacher_patches": (BATCH, 2, 8, 7),
        "patch_weights": (BATCH, 2, 8),
        "patch_target": (BATCH, 2, 7),
    }
    torch.testing.assert_close(found["features"][:, 1], ibot.encoder(batch.views[1]))
    torch.testing.assert_close(found["student"][:, 3], ibot.head(ibot.backbone(batch.views[3])))
    middle = ibot.encoder.tokens(batch.views[0]).patches[:, 10]  # row 2, column 2 of 4
    expected = (ibot.teacher.module[1](middle) / ibot.patch_temperature).softmax(-1)
    torch.testing.assert_close(found["patch_target"][:, 0], expected)
    assert ibot.encoder is ibot.teacher.module[0]


@pytest.mark.parametrize("part", [1, 5])
def test_parts_and_the_whole_agree(part: int) -> None:
    ibot, batch = make("ibot", patch_head=HEAD), batch_of()
    whole, parts = ibot.embed(batch), in_parts(ibot, batch, part)
    for name, value in whole.items():
        torch.testing.assert_close(parts[name], value, rtol=1e-12, atol=1e-14)


def test_global_views_may_stand_anywhere() -> None:
    """Local views first: the same loss, as the views are the same."""
    ibot, batch = make("ibot"), batch_of()
    facts = replace(TOKEN_FACTS, views=TOKEN_FACTS.views[::-1])
    turned = make("ibot", facts)
    other = replace(batch, views=(batch.views[2], batch.views[3], *batch.views[:2]))
    one, two = (m.objective(m.embed(b), b, START) for m, b in ((ibot, batch), (turned, other)))
    torch.testing.assert_close(one.loss, two.loss, rtol=1e-12, atol=0.0)


class Waits(TorchDispatchMode):
    """The operations that read from the device, and what was done before each, as far as names
    tell: `nonzero`, and an index of booleans, which calls it."""

    def __init__(self) -> None:
        super().__init__()
        self.before: list[int] = []
        """Matrix products before each of them."""
        self.products = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = func.overloadpacket.__name__
        self.products += name in ("mm", "addmm", "convolution", "bmm")
        booleans = name in ("index", "index_put_", "index_put") and any(
            index is not None and index.dtype == torch.bool for index in args[1]
        )
        if booleans or name in ("nonzero", "_local_scalar_dense", "masked_select"):
            self.before.append(self.products)
        return func(*args, **(kwargs or {}))


def test_the_device_is_waited_for_before_the_networks_and_before_the_loss() -> None:
    """Nowhere between, where it would wait for the student and then stand still."""
    ibot, batch = make("ibot"), batch_of()
    with Waits() as embed:
        found = ibot.embed(batch)
    assert embed.products > 0
    # On a processor drawing blocks looks whether all are done, as it need not on a GPU.
    assert embed.before == [0] * len(embed.before)
    with Waits() as loss:
        ibot.objective(found, replace(batch, views=()), START)
    assert loss.before == [0]


def test_no_gradient_reaches_the_teacher() -> None:
    ibot, batch = make("ibot", patch_head=HEAD), batch_of()
    found = ibot.embed(batch)
    ibot.objective(found, batch, START).loss.backward()
    assert all(p.grad is None for p in ibot.teacher.parameters())
    student = [ibot.backbone, ibot.head, ibot.patch_head]
    assert all(p.grad is not None for part in student for p in part.parameters())
    assert ibot.mask_token.grad.abs().sum() > 0.0


# --- What is refused ------------------------------------------------------------------------------


def test_problems() -> None:
    assert problems("ibot", TOKEN_FACTS, **MASKS) == []
    ((_, text),) = problems("ibot", replace(FACTS, views=(ViewSpec(8), ViewSpec(6))))
    assert text == "ibot needs global views of one size, not of 2"
    ((_, text),) = problems("ibot", replace(FACTS, views=(ViewSpec(8),)))
    assert text.startswith("ibot needs 2 views or more")


@pytest.mark.parametrize(
    ("fields", "path", "words"),
    [
        ({"patch_center_momentum": 1.0}, "patch_center_momentum", "all patches one prototype"),
        ({"patch_teacher_temperature": 0.1}, "patch_teacher_temperature", "does not sharpen"),
        ({"mask_probability": 0.0}, "mask_probability", "no patch has a loss"),
        ({"class_weight": 0.0, "patch_weight": 0.0}, "class_weight", "nothing is learnt"),
    ],
)
def test_warnings(fields: dict[str, Any], path: str, words: str) -> None:
    long = replace(TOKEN_FACTS, total_steps=100_000)
    slot = method_slot("ibot", **fields)
    ((found, text),) = slot.cls.warnings(slot.config, long)
    assert found == path
    assert words in text
    slot = method_slot("ibot")
    assert list(slot.cls.warnings(slot.config, long)) == []


def test_batch_statistics_of_one_masked_patch_are_one_line() -> None:
    """Of none they are no fault: a view without a mask adds nothing."""
    head = {**HEAD, "batch_norm": True}
    ibot = make("ibot", patch_head=head, mask_ratio=[0.05, 0.07], min_block=1)
    ibot.mask_probability.fill_(1.0)
    alone = make_batch(sides=SIDES[:1] + SIDES[2:]).select(slice(0, 1))
    ibot.globals = [0]
    with pytest.raises(
        TrainingError, match=r"^method.patch_head: .*; a micro-batch has one"
    ) as one:
        ibot.embed(alone)
    assert "\n" not in str(one.value)
    ibot.mask_probability.fill_(0.0)
    both = make_batch(sides=SIDES).select(slice(0, 1))
    ibot.globals = [0, 1]
    assert ibot.embed(both)["patch_weights"].sum() == 0.0


def test_blocks_that_never_fit_are_refused() -> None:
    """All patches would be single ones."""
    with pytest.raises(RecipeError, match=r"method.min_block: 9 .* the 8 of 16 .* such as 1$"):
        make("ibot", min_block=9)


def test_a_ratio_that_falls_is_refused() -> None:
    with pytest.raises(ValidationError, match=r"mask_ratio: 0.5 is above 0.1"):
        method_slot("ibot", mask_ratio=[0.5, 0.1])


def test_backbones_without_tokens_and_views_without_patches_are_refused() -> None:
    from distill_setup import SmallNet

    with pytest.raises(RecipeError, match="ibot needs the tokens of patches"):
        method_slot("ibot").build(SmallNet(False), TOKEN_FACTS)
    odd = replace(TOKEN_FACTS, views=(ViewSpec(7), ViewSpec(7)))
    with pytest.raises(RecipeError, match="patches of 2 x 2 px do not fill a view of 7 x 7 px"):
        method_slot("ibot").build(TokenNet(), odd)
