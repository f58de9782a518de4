"""The tokenizer against closed forms and independent steps in float64."""

from __future__ import annotations

import copy
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from mim_setup import BATCH, FACTS, SIDE, make_batch
from sslkit_mim.code_use import code_shares, perplexity
from tokenizer_setup import CODES, autoencoder
from torch import Tensor
from torch.nn import functional as F

from sslkit.api import Batch, Progress, resolve_component
from sslkit.engine.display import Silent
from sslkit.errors import RecipeError, TrainingError
from sslkit.host.plugins import load_plugins
from sslkit.workflows.train import start

RECIPE = Path(__file__).with_name("one_view_vit.yaml")
FIRST, SQUARES = Progress(0, 1, 1), 16


def tokenizer(**fields: Any) -> Any:
    slot = resolve_component(load_plugins().registry, "method", {"name": "vq_tokenizer", **fields})
    method: Any = slot.build(autoencoder(), FACTS)
    return method.double()


def step(method: Any, batch: Batch) -> Tensor:
    """Embeds and takes the codebook's step alone. Gives the loss."""
    out = method.objective(method.embed(batch), batch, FIRST)
    method.after_step(Progress(1, 1, 1), out.carry)
    loss: Tensor = out.loss
    return loss


# --- Closed forms --------------------------------------------------------------------------------


def test_the_perplexity_is_the_number_of_codes_in_use() -> None:
    alike = code_shares(torch.arange(12).view(3, 4) % 6, 16)
    assert perplexity(alike).item() == pytest.approx(6.0, abs=1e-6)
    assert perplexity(code_shares(torch.zeros(3, 4, dtype=torch.int64), 16)).item() == 1.0
    assert torch.equal(alike.sum(1), torch.ones(3))


def test_the_gradient_passes_the_codes_as_if_they_were_the_latents() -> None:
    """What the decoder asks of its input is what the encoder is asked for, and the commitment adds
    2 beta (z - e) over as many values."""
    method, batch = tokenizer(commitment=0.5), make_batch()
    network, kept = method.backbone, {}
    plain = network.latents
    network.latents = lambda hidden: kept.setdefault("z", plain(hidden).detach().requires_grad_())
    method.embed(batch)["loss"].mean().backward()
    z = kept["z"].detach()
    codes = network.codebook[network.nearest(z)].requires_grad_()
    target = (batch.views[0] - 0.5) / 0.25
    F.mse_loss(network.reconstruct(codes), target).backward()
    wanted = codes.grad + 0.5 * 2.0 * (z - codes.detach()) / z.numel()
    torch.testing.assert_close(kept["z"].grad, wanted, rtol=1e-10, atol=1e-14)


def test_a_step_without_memory_puts_codes_into_the_middle_of_their_latents() -> None:
    """momentum 0: one iteration of Lloyd's algorithm."""
    method, batch = tokenizer(momentum=0.0, revive_below=0.0), make_batch()
    before = method.backbone.codebook.clone()
    latents = method.embed(batch)["latents"].flatten(0, 1)
    chosen = torch.cdist(latents, before).argmin(1)
    step(method, batch)
    for number, code in enumerate(method.backbone.codebook):
        own = latents[chosen == number]
        wanted = own.mean(0) if len(own) else before[number]
        torch.testing.assert_close(code, wanted, rtol=1e-10, atol=1e-12)


def test_unused_codes_start_anew_from_different_latents_whatever_the_order_of_the_batch() -> None:
    batch = make_batch()
    turned = batch.select(torch.tensor([3, 0, 5, 1, 4, 2]))
    found = []
    for each in (batch, turned):
        method = tokenizer()
        method.backbone.codebook.fill_(50.0)[0] = 0.0  # all latents choose the first code
        latents = method.embed(each)["latents"].flatten(0, 1)
        step(method, each)
        fresh = method.backbone.codebook[1:]
        assert (torch.cdist(fresh, latents).min(1).values < 1e-6).all()
        assert len(fresh.unique(dim=0)) == CODES - 1
        least = method.counts[1:]
        wanted = 0.03 * 0.01 * BATCH * SQUARES / CODES
        torch.testing.assert_close(least, torch.full_like(least, wanted))
        found.append(fresh)
    torch.testing.assert_close(found[0], found[1])
    never = tokenizer(revive_below=0.0)
    never.backbone.codebook.fill_(50.0)[0] = 0.0
    step(never, batch)
    assert (never.backbone.codebook[1:] == 50.0).all()


# --- Steps against independent ones --------------------------------------------------------------


def convolved(x: Tensor, w: dict[str, Tensor], name: str, stride: int, pad: int) -> Tensor:
    """(C, H, W), with loops over the places of the filter."""
    weight, bias = w[f"{name}.weight"], w[f"{name}.bias"]
    side = weight.shape[-1]
    x = F.pad(x, (pad,) * 4)
    rows, columns = ((n - side) // stride + 1 for n in x.shape[1:])
    out = bias[:, None, None].expand(-1, rows, columns)
    for i in range(side):
        for j in range(side):
            part = x[:, i : i + stride * rows : stride, j : j + stride * columns : stride]
            out = out + torch.einsum("oc,chw->ohw", weight[:, :, i, j], part)
    return out


def spread_out(x: Tensor, w: dict[str, Tensor], name: str) -> Tensor:
    """A transposed convolution of 4 x 4 and stride 2 with one pixel cut off: every pixel adds its
    square."""
    weight, bias = w[f"{name}.weight"], w[f"{name}.bias"]
    rows, columns = x.shape[1:]
    out = x.new_zeros(weight.shape[1], 2 * rows + 2, 2 * columns + 2)
    for i in range(rows):
        for j in range(columns):
            square = torch.einsum("c,coij->oij", x[:, i, j], weight)
            at = (2 * i, 2 * columns + 2 - 2 * j - 4, 2 * rows + 2 - 2 * i - 4)
            out = out + F.pad(square, (2 * j, at[1], at[0], at[2]))
    return out[:, 1:-1, 1:-1] + bias[:, None, None]


def residual(x: Tensor, w: dict[str, Tensor], name: str) -> Tensor:
    inner = convolved(x.relu(), w, f"{name}.wide", 1, 1).relu()
    return x + convolved(inner, w, f"{name}.narrow", 1, 0)


def slow_loss(w: dict[str, Tensor], codebook: Tensor, batch: Batch) -> tuple[Tensor, list[Any]]:
    """The loss, and (latent, number of its code) of every square, an image at a time."""
    total, seen = torch.zeros((), dtype=torch.float64), []
    for image in batch.views[0]:
        x = (image - 0.5) / 0.25
        hidden = convolved(x, w, "encode.0", 2, 1).relu()
        hidden = convolved(hidden, w, "encode.2", 2, 1).relu()
        hidden = residual(convolved(hidden, w, "encode.4", 1, 1), w, "encode.5").relu()
        z = convolved(hidden, w, "to_latent", 1, 0)
        chosen, committed = torch.zeros_like(z), 0.0
        for i in range(4):
            for j in range(4):
                apart = [(z[:, i, j] - code).square().sum().item() for code in codebook]
                number = apart.index(min(apart))
                chosen[:, i, j] = codebook[number]
                committed = committed + (z[:, i, j] - codebook[number]).square().sum()
                seen.append((z[:, i, j].detach(), number))
        made = convolved(z + (chosen - z).detach(), w, "decode.0", 1, 1)
        made = residual(made, w, "decode.1").relu()
        made = spread_out(spread_out(made, w, "decode.3").relu(), w, "decode.5")
        total = total + (made - x).square().mean() + 0.25 * committed / z.numel()
    return total / len(batch.views[0]), seen


@pytest.mark.slow  # 2 seconds
def test_steps_are_those_of_a_slow_reference() -> None:
    """Loss, gradients, weights, codebook and its averages over three steps."""
    method = tokenizer(momentum=0.8, revive_below=0.2)
    network = method.backbone
    trained = dict(network.named_parameters())
    mine = {name: p.detach().clone() for name, p in trained.items()}
    codebook = network.codebook.clone()
    counts, sums = [0.0] * CODES, [torch.zeros(3).double() for _ in range(CODES)]
    revived = 0
    for number in range(3):
        batch = make_batch(number)
        for value in mine.values():
            value.requires_grad_()
        wanted, seen = slow_loss(mine, codebook, batch)
        out = method.objective(method.embed(batch), batch, FIRST)
        assert out.loss.item() == pytest.approx(wanted.item(), rel=1e-11)
        gradients = torch.autograd.grad(wanted, list(mine.values()))
        theirs = torch.autograd.grad(out.loss, list(trained.values()))
        for (name, one), other in zip(zip(mine, gradients, strict=True), theirs, strict=True):
            torch.testing.assert_close(other, one, rtol=1e-7, atol=1e-12, msg=name)
            mine[name] = mine[name].detach() - 0.1 * one
            with torch.no_grad():
                trained[name].sub_(0.1 * other)
        method.after_step(Progress(number + 1, 3, 3), out.carry)
        words = batch.random.bits("revive", SQUARES).flatten().tolist()
        order = sorted(range(len(words)), key=words.__getitem__)
        for k in range(CODES):
            own = [z for z, code in seen if code == k]
            counts[k] = 0.8 * counts[k] + 0.2 * len(own)
            sums[k] = 0.8 * sums[k] + 0.2 * sum(own, torch.zeros(3).double())
        least = 0.2 * sum(counts) / CODES
        dead = [k for k in range(CODES) if counts[k] < least]
        for k, place in zip(dead, order, strict=False):
            counts[k], sums[k] = least, least * seen[place][0]
        revived += len(dead)
        codebook = torch.stack([sums[k] / counts[k] for k in range(CODES)])
        torch.testing.assert_close(method.counts, torch.tensor(counts).double())
        torch.testing.assert_close(network.codebook, codebook, rtol=1e-9, atol=1e-11)
    assert revived > 3


def test_micro_batches_are_the_whole_batch() -> None:
    method, batch = tokenizer(), make_batch()
    parts = [method.embed(batch.select(slice(i, i + 2))) for i in (0, 2, 4)]
    for name, value in method.embed(batch).items():
        torch.testing.assert_close(torch.cat([part[name] for part in parts]), value)


def test_other_backbones_and_views_are_refused_in_a_line() -> None:
    slot = resolve_component(load_plugins().registry, "method", {"name": "vq_tokenizer"})
    block = {"name": "timm", "model": "test_resnet"}
    other = resolve_component(load_plugins().registry, "backbone", block)
    with pytest.raises(RecipeError, match=r"backbone: .*set backbone: \{name: vq_autoencoder\}"):
        slot.build(other.build(channels=3, image_size=SIDE), FACTS)
    view = replace(FACTS.views[0], size=18)
    with pytest.raises(RecipeError, match=r"squares of 4 px do not fill a view of 18 px"):
        slot.build(autoencoder(), replace(FACTS, views=(view,)))


def test_pictures_are_made_of_codes_alone() -> None:
    method, batch = tokenizer(), make_batch()
    shown = method.pictures(batch)
    assert [*shown] == ["image", "reconstruction"]
    codes = method.backbone.codes_of(batch.views[0])
    assert codes.shape == (BATCH, 4, 4)
    torch.testing.assert_close(shown["reconstruction"], method.backbone.images_of(codes))
    other = copy.deepcopy(method).train()
    assert torch.equal(other.backbone.codes_of(batch.views[0]), codes)


def test_a_codebook_that_never_moves_is_warned_of() -> None:
    registry = load_plugins().registry
    for momentum, said in ((0.99, []), (1.0, ["momentum"])):
        block = {"name": "vq_tokenizer", "momentum": momentum}
        slot = resolve_component(registry, "method", block)
        assert [path for path, _ in slot.cls.warnings(slot.config, FACTS)] == said


# --- Collapse ------------------------------------------------------------------------------------


@pytest.mark.slow  # two trainings of 110 steps
@pytest.mark.parametrize("safe", [True, False])
def test_a_codebook_that_is_not_revived_collapses_and_the_run_stops(
    safe: bool, tmp_path: Path
) -> None:
    overrides = [
        "data={name: digits, size: 16}",
        "backbone={name: vq_autoencoder, stride: 4, codes: 64, code_dim: 16, width: 16, blocks: 1}",
        f"method={{name: vq_tokenizer, momentum: 0.9, revive_below: {0.03 if safe else 0.0}}}",
        "optimizer.lr=2e-3",
        "train.batch_size=64",
        "train.epochs=5",
        "evaluate=[{name: collapse, every_epochs: 2, policy: stop}]",
        f"runs_dir={tmp_path}",
    ]
    if safe:
        result = start(RECIPE, overrides, display=Silent())
        assert result.metrics["collapse/prototypes"] > 0.3
    else:
        with pytest.raises(TrainingError, match=r"few of 64 prototypes are in use \('usage'\)"):
            start(RECIPE, overrides, display=Silent())
