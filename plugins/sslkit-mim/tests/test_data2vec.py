"""data2vec against closed forms, the paper's rules and independent steps in float64."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from mim_setup import BATCH, FACTS, PATCHES, SIDE, WIDTH, encoded, make, make_batch, vit
from sklearn.datasets import load_digits
from test_mae import normalised
from torch import Tensor, nn

from sslkit.api import Batch, Progress, resolve_component
from sslkit.errors import RecipeError
from sslkit.host.plugins import load_plugins
from sslkit.nn.masking import Blocks, block_masked
from sslkit.randomness import SampleRandom
from sslkit.recipe import load_recipe

FIRST = Progress(0, 1, 1)


def data2vec(backbone: dict[str, Any] | None = None, **fields: Any) -> Any:
    given = {"min_block": 3, "layers": 3, "teacher_momentum": 0.9, **fields}
    return make("data2vec", backbone, **given)


def loss_of(method: Any, batch: Batch) -> Tensor:
    loss: Tensor = method.objective(method.embed(batch), batch, FIRST).loss
    return loss


def masked_of(batch: Batch) -> Tensor:
    return block_masked(batch.random, (4, 4), 10, Blocks(least=3))


# --- Closed forms --------------------------------------------------------------------------------


def test_guessing_nothing_of_a_normal_target() -> None:
    """E of smooth L1 with beta 2 of N(0, 1)."""
    method, batch = data2vec(), make_batch()
    with torch.no_grad():
        method.predict.weight.zero_()
        method.predict.bias.zero_()
    count = BATCH * PATCHES * WIDTH
    places = (torch.arange(count, dtype=torch.float64) + 0.5) / count
    order = torch.randperm(count, generator=torch.Generator().manual_seed(0))
    normal = torch.special.ndtri(places)[order].view(BATCH, PATCHES, WIDTH)
    method.targets = lambda images: normal
    assert loss_of(method, batch).item() == pytest.approx(0.24712, abs=0.01)
    method.targets = lambda images: normal.new_full((BATCH, PATCHES, WIDTH), 1.0)
    assert loss_of(method, batch).item() == pytest.approx(0.25, abs=1e-12)  # 1 / (2 beta)
    method.targets = lambda images: normal.new_full((BATCH, PATCHES, WIDTH), 5.0)
    assert loss_of(method, batch).item() == pytest.approx(4.0, abs=1e-12)  # 5 - beta / 2


def test_the_loss_is_of_masked_patches_alone() -> None:
    method, batch = data2vec(), make_batch()
    masked, target = masked_of(batch), method.targets(batch.views[0])
    assert (masked.sum(1) == 10).all()  # 0.612 * 16
    before = loss_of(method, batch)
    for where, changes in ((~masked, False), (masked, True)):
        method.targets = lambda images, where=where: target + 3.0 * where[..., None]
        assert (abs(loss_of(method, batch).item() - before.item()) > 0.1) == changes


def test_targets_have_mean_0_and_deviation_1() -> None:
    target = data2vec().targets(make_batch().views[0])
    assert target.mean(-1).abs().max() < 1e-12
    torch.testing.assert_close(
        target.var(-1, correction=0), torch.ones(BATCH, PATCHES).double(), rtol=0, atol=1e-3
    )


# --- Steps against independent ones --------------------------------------------------------------


def normed(x: Tensor) -> Tensor:
    apart = x - x.mean(-1, keepdim=True)
    return apart / torch.sqrt((apart**2).mean(-1, keepdim=True) + 1e-5)


def slow_loss(student: dict[str, Tensor], teacher: dict[str, Tensor], batch: Batch) -> Tensor:
    """An image at a time, from the paper's description."""
    every, total, count = list(range(PATCHES)), torch.zeros((), dtype=torch.float64), 0
    for image, hidden in zip(normalised(batch.views[0]), masked_of(batch), strict=True):
        outputs: list[Tensor] = []
        encoded(teacher, image, every, outputs=outputs)
        target = normed(sum(normed(x[1:]) for x in outputs[-3:]) / 3.0).detach()
        numbers = [n for n in every if hidden[n]]
        tokens = dict.fromkeys(numbers, student["mask_token"][0, 0])
        x = encoded(student, image, every, tokens)[1:]
        made = x @ student["predict.weight"].T + student["predict.bias"]
        for number in numbers:
            apart = (made[number] - target[number]).abs()
            total = total + torch.where(apart < 2.0, apart**2 / 4.0, apart - 1.0).mean()
            count += 1
    assert count == BATCH * 10
    return total / count


def test_steps_are_those_of_a_slow_reference() -> None:
    """Loss, gradients, weights and the teacher over three steps."""
    method = data2vec()
    student = {name: p for name, p in method.named_parameters() if not name.startswith("teacher")}
    trained = [name for name, p in student.items() if p.requires_grad]
    mine = {name: p.detach().clone() for name, p in student.items()}
    own = method.teacher.module.named_parameters()  # not those of the student: see `make`
    teacher = {f"backbone.{name}": p.clone() for name, p in own}
    for step in range(3):
        batch = make_batch(step)
        for name in trained:
            mine[name].requires_grad_()
        wanted, found = slow_loss(mine, teacher, batch), loss_of(method, batch)
        assert found.item() == pytest.approx(wanted.item(), rel=1e-11)
        gradients = torch.autograd.grad(wanted, [mine[name] for name in trained])
        theirs = torch.autograd.grad(found, [student[name] for name in trained])
        for name, one, other in zip(trained, gradients, theirs, strict=True):
            torch.testing.assert_close(other, one, rtol=1e-7, atol=1e-11, msg=name)
            mine[name] = mine[name].detach() - 0.5 * one
            with torch.no_grad():
                student[name].sub_(0.5 * other)
        method.after_step(Progress(step + 1, 3, 3), None)
        for name in teacher:
            teacher[name] = 0.9 * teacher[name] + 0.1 * mine[name]
    for name, value in method.teacher.module.named_parameters():
        torch.testing.assert_close(value, teacher[f"backbone.{name}"], rtol=1e-9, atol=1e-11)


def test_the_teacher_drops_nothing_and_has_no_gradient() -> None:
    method, batch = data2vec({"drop_path_rate": 0.5}).train(), make_batch()
    first = method.targets(batch.views[0])
    assert torch.equal(method.targets(batch.views[0]), first)
    assert not first.requires_grad
    quiet = copy.deepcopy(method).eval()
    assert torch.equal(quiet.targets(batch.views[0]), first)


@pytest.mark.slow  # 2 seconds
def test_micro_batches_are_the_whole_batch() -> None:
    method, batch = data2vec(), make_batch()
    parts = [method.embed(batch.select(slice(i, i + 2))) for i in (0, 2, 4)]
    for name, value in method.embed(batch).items():
        torch.testing.assert_close(torch.cat([part[name] for part in parts]), value)


@pytest.mark.parametrize(
    ("fields", "said"),
    [
        ({"mask_ratio": 0.01}, r"mask_ratio: 0\.01 masks 0 of 16 patches"),
        ({"min_block": 11}, "min_block: 11 patches are more than the 10 that are masked"),
        ({"layers": 7}, "layers: the backbone has 6 blocks, not 7"),
    ],
)
def test_what_cannot_be_trained_is_refused_in_a_line(fields: dict[str, Any], said: str) -> None:
    with pytest.raises(RecipeError, match=said) as raised:
        data2vec(**fields)
    assert "\n" not in str(raised.value)


# --- Collapse ------------------------------------------------------------------------------------


def spread(method: Any, batch: Batch) -> float:
    """Of the target over images, as the collapse monitor has it."""
    target = method.embed(batch)["target"].detach()
    unit = target / target.norm(dim=1, keepdim=True)
    return float(unit.std(0).mean()) * WIDTH**0.5


@pytest.mark.slow  # two trainings of 60 steps
@pytest.mark.parametrize("safe", [True, False])
def test_targets_stay_apart_while_they_are_normalised(
    safe: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With a slow teacher and normalised targets their spread stays above the monitor's 0.3 of the
    start; without both it falls far below."""
    if not safe:
        monkeypatch.setattr("sslkit_mim.data2vec._normed", lambda tokens: tokens)
    fields = {"min_block": 4, "layers": 3, "teacher_momentum": 0.99 if safe else 0.0}
    slot = resolve_component(load_plugins().registry, "method", {"name": "data2vec", **fields})
    torch.manual_seed(0)
    method: Any = slot.build(vit(normalize="none"), FACTS)
    pixels = torch.tensor(load_digits().images[:256] / 16).float()[:, None].repeat(1, 3, 1, 1)
    images = nn.functional.interpolate(pixels, size=SIDE, mode="bilinear")

    def drawn(rows: Tensor, step: int) -> Batch:
        return Batch((images[rows],), rows, SampleRandom(0, "method", step, rows))

    start = spread(method, drawn(torch.arange(256), 0))
    optimizer = torch.optim.AdamW(
        [p for p in method.parameters() if p.requires_grad], lr=1e-3, betas=(0.9, 0.98)
    )
    for step in range(60):
        optimizer.zero_grad()
        loss_of(method, drawn(torch.randperm(256)[:64], step)).backward()
        optimizer.step()
        method.after_step(Progress(step + 1, 60, 60), None)
    left = spread(method, drawn(torch.arange(256), 0)) / start
    assert left > 0.4 if safe else left < 0.2


def test_the_recipe_is_the_authors_command() -> None:
    """beit/README.md, run_cyclical.py and datasets.py of facebookresearch/data2vec_vision."""
    recipe = load_recipe("data2vec_vit_b", ["backbone.model_args.depth=1"])
    peak = recipe.optimizer.config.peak_lr(2048)
    assert peak == pytest.approx(2e-3)
    assert recipe.schedule.config.final_factor * peak == pytest.approx(1e-5)  # type: ignore[attr-defined]
    (view,) = recipe.augmentation.config.blocks()  # type: ignore[attr-defined]
    assert view.crop_scale == (0.08, 1.0)
    assert (view.jitter_probability, view.blur_rate, view.grayscale_probability) == (1.0, 0.0, 0.0)
    assert view.strengths == {"brightness": 0.4, "contrast": 0.4, "saturation": 0.4}
    network: Any = recipe.backbone.build(channels=3, image_size=224)
    assert network.model.rel_pos_bias is not None
    assert network.model.pos_embed is None
