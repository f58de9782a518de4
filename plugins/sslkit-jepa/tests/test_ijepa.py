"""I-JEPA against the paper's formulas, one image and token at a time, and its start and teacher."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from ijepa_setup import (
    BATCH,
    FACTS,
    GRID,
    NETWORK,
    PATCH,
    SIDE,
    loss_of,
    make,
    make_batch,
    position,
)
from sslkit_jepa.multiblock import Regions

from sslkit.api import (
    Batch,
    Progress,
    RunFacts,
    Tokens,
    ViewSpec,
    optimizer_groups,
    resolve_component,
)
from sslkit.errors import RecipeError
from sslkit.host.plugins import load_plugins
from sslkit.workflows.validate import validate

FIRST = Progress(0, 20, 10)


def as_lists(regions: Regions) -> list[tuple[list[int], list[list[int]]]]:
    """For each image the patches that are shown, and those of each target block."""
    return [
        (
            regions.context[i, : regions.context_lengths[i]].tolist(),
            [block[: regions.target_lengths[i]].tolist() for block in regions.targets[i]],
        )
        for i in range(len(regions.context))
    ]


def loss(method: Any, batch: Batch) -> torch.Tensor:
    found: torch.Tensor = method.objective(
        method.embed(batch), replace(batch, views=()), FIRST
    ).loss
    return found


def test_value_gradients_and_teacher_are_those_of_the_formulas_for_two_steps() -> None:
    method = make(targets=2, teacher_momentum={"name": "linear", "start": 0.5, "end": 1.0})
    expected = {n: p.detach().clone() for n, p in method.named_parameters()}
    for step in range(2):
        batch = make_batch(step)
        own = loss(method, batch)
        own.backward()
        regions = as_lists(method.regions.draw(batch.random))
        leaves = {n: p.requires_grad_() for n, p in expected.items()}
        reference = loss_of(leaves, batch.views[0], regions)
        reference.backward()
        torch.testing.assert_close(own, reference, rtol=1e-7, atol=0)  # positions are in float32
        with torch.no_grad():
            for name, parameter in method.named_parameters():
                gradient = leaves[name].grad
                if parameter.grad is None:
                    assert name.startswith("teacher.") or "pos_embed" in name
                    continue
                torch.testing.assert_close(parameter.grad, gradient, rtol=1e-5, atol=1e-9)
                parameter -= 0.5 * parameter.grad
                parameter.grad = None
                expected[name] = leaves[name] - 0.5 * gradient
            momentum = 0.5 + 0.5 * step / FACTS.total_steps
            for name in [n for n in expected if n.startswith("teacher.")]:
                online = expected[name.replace("teacher.module", "backbone")]
                expected[name] = momentum * leaves[name] + (1 - momentum) * online
        method.after_step(Progress(step + 1, FACTS.total_steps, 10), None)
        expected = {n: p.detach() for n, p in expected.items()}
        for name, parameter in method.named_parameters():
            torch.testing.assert_close(parameter.detach(), expected[name], rtol=1e-6, atol=1e-9)


def test_predicting_nothing_costs_what_normal_targets_cost(monkeypatch: pytest.MonkeyPatch) -> None:
    """E[smooth L1 of N(0, 1)], inside and outside of one deviation."""
    inside = math.erf(1 / math.sqrt(2)) / 2 - math.exp(-0.5) / math.sqrt(2 * math.pi)
    outside = 2 * math.exp(-0.5) / math.sqrt(2 * math.pi) - math.erfc(1 / math.sqrt(2)) / 2
    assert inside + outside == pytest.approx(0.42466, abs=1e-5)
    method, batch = make(), make_batch()
    normal = torch.randn(BATCH, GRID * GRID, 2**12, generator=torch.Generator().manual_seed(0))
    tokens = method.encoder.tokens(batch.views[0])
    monkeypatch.setattr(
        method.encoder, "tokens", lambda images: tokens._replace(patches=normal.double())
    )
    monkeypatch.setattr(method.encoder, "pool_tokens", lambda found: found.patches.mean(1))
    monkeypatch.setattr(
        method.predictor,
        "forward",
        lambda shown, regions: torch.zeros(*regions.targets.shape, 2**12, dtype=torch.float64),
    )
    assert loss(method, batch).item() == pytest.approx(0.42466, abs=2e-3)


def test_the_teacher_sees_no_gradient_and_follows_after_the_step() -> None:
    method = make(teacher_momentum={"name": "linear", "start": 0.5, "end": 1.0})
    before = [p.clone() for p in method.teacher.parameters()]
    method.after_step(Progress(11, 20, 10), None)  # the eleventh step: half of the way is done
    momentum = 0.5 + 0.5 * 10 / 20
    for old, now, online in zip(
        before, method.teacher.parameters(), method.backbone.parameters(), strict=True
    ):
        torch.testing.assert_close(now, momentum * old + (1 - momentum) * online)
        assert not now.requires_grad
    trained = [name for group in method.param_groups() for name, _ in group.params]
    assert not any(name.startswith("teacher") for name in trained)


def test_the_encoder_is_the_teacher_and_its_features_are_what_a_probe_sees() -> None:
    method, batch = make(), make_batch()
    assert method.encoder is method.teacher.module
    torch.testing.assert_close(
        method.embed(batch)["features"], method.encoder(batch.views[0]), rtol=1e-12, atol=1e-12
    )


def test_an_image_costs_the_same_whoever_stands_beside_it() -> None:
    method, batch = make(), make_batch()
    whole = method.embed(batch)
    for rows in (slice(0, 1), slice(1, 2)):
        part = method.embed(batch.select(rows))
        for name, value in part.items():
            torch.testing.assert_close(value, whole[name][rows], rtol=1e-10, atol=1e-12)


def test_patches_that_do_not_count_change_nothing() -> None:
    method, batch = make(most_context=1.0), make_batch()
    regions = method.regions.draw(batch.random)
    own = loss(method, batch)
    places = torch.arange(regions.context.shape[1])
    other = torch.where(
        places < regions.context_lengths[:, None], regions.context, regions.context.flip(1)
    )
    behind = torch.arange(regions.targets.shape[2]) >= regions.target_lengths[:, None]
    targets = torch.where(behind[:, None], 5, regions.targets)
    changed = regions._replace(context=other, targets=targets)
    object.__setattr__(method, "regions", type("Fixed", (), {"draw": lambda self, _: changed})())
    torch.testing.assert_close(loss(method, batch), own, rtol=1e-12, atol=0)


def test_tokens_of_the_predictor_stay_float32_in_mixed_precision() -> None:
    """As in the code, where mask tokens in float32 lift them; what blocks add is bfloat16."""
    method = make().float()
    data = make_batch()
    images = data.views[0].float()
    regions = method.regions.draw(data.random)
    seen: list[torch.Tensor] = []
    method.predictor.norm.register_forward_pre_hook(lambda _, given: seen.append(given[0]))
    shown = method.backbone.tokens(images, keep=regions.context, lengths=regions.context_lengths)
    method.predictor(shown.patches, regions)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        method.predictor(shown.patches, regions)
    exact, mixed = seen
    assert mixed.dtype == torch.float32
    assert 1e-4 < (mixed - exact).norm() / exact.norm() < 0.02


def test_weight_decay_is_for_the_parameters_that_the_code_decays() -> None:
    """All but biases and norms: the mask token, which has three axes there, too."""
    method = make()
    block = {"name": "adamw", "lr": 1e-3, "weight_decay": 0.04}
    config: Any = resolve_component(load_plugins().registry, "optimizer", block).config
    decayed = {
        id(parameter)
        for group in optimizer_groups(config, method.param_groups(), 1.0)
        for parameter in group["params"]
        if group["weight_decay"] > 0.0
    }
    for name, parameter in method.named_parameters():
        if parameter.requires_grad:
            exempt = "bias" in name or "norm" in name
            assert (id(parameter) in decayed) is not exempt, name


def built(patch_size: int, side: int, **fields: Any) -> Any:
    registry = load_plugins().registry
    block = {**NETWORK, "patch_size": patch_size}
    network = resolve_component(registry, "backbone", block).build(channels=3, image_size=side)
    facts = replace(FACTS, views=(ViewSpec(side),))
    slot = resolve_component(registry, "method", {"name": "ijepa", **fields})
    return slot.build(network, facts)


def test_it_starts_as_the_code_does() -> None:
    """As the code's models are when training begins: it first divides what block l adds by the root
    of 2 l, and then draws all linear layers again, undivided."""
    method = built(PATCH, SIDE, predictor={"width": 64, "depth": 3, "heads": 2})
    model = method.backbone.model
    for number in (0, 9, 63):
        torch.testing.assert_close(
            model.pos_embed[0, number].double(), position(number, model.embed_dim)
        )
    assert not model.pos_embed.requires_grad
    weights = [method.predictor.embed.weight, method.predictor.predict.weight]
    for block in model.blocks:
        weights += [block.attn.qkv.weight, block.attn.proj.weight, block.mlp.fc2.weight]
    for block in method.predictor.blocks:
        weights += [block.self_attn.in_proj_weight, block.self_attn.out_proj.weight]
        weights += [block.linear1.weight, block.linear2.weight]
        assert not block.self_attn.in_proj_bias.any()
    for weight in weights:
        assert weight.std().item() == pytest.approx(0.02, rel=0.06)
    for mine, theirs in zip(method.backbone.parameters(), method.teacher.parameters(), strict=True):
        assert torch.equal(mine, theirs)


@pytest.mark.parametrize(("patch_size", "deviation"), [(14, 0.02), (4, 1 / math.sqrt(48))])
def test_small_patches_are_no_fainter_than_the_papers(patch_size: int, deviation: float) -> None:
    weight = built(patch_size, 8 * patch_size).backbone.model.patch_embed.proj.weight
    assert weight.std().item() == pytest.approx(deviation, rel=0.03)


@pytest.mark.parametrize(("patch_size", "least", "most"), [(14, 0.3, 0.6), (4, 0.5, 0.8)])
def test_at_the_start_targets_depend_on_the_image(
    patch_size: int, least: float, most: float
) -> None:
    """About a half of them with the paper's patches, more with small ones."""
    torch.manual_seed(0)
    side = 8 * patch_size
    method = built(patch_size, side)
    _, whole = method.targets(torch.randn(16, 3, side, side))
    assert least < whole.var(0).mean() < most


def test_pictures_are_of_the_patches_that_are_shown_and_asked_for() -> None:
    method, batch = make(), make_batch()
    pictures = method.pictures(batch)
    assert list(pictures) == ["image", "context", *(f"target {n}" for n in (1, 2, 3, 4))]
    assert torch.equal(pictures["image"], batch.views[0])
    for image, (shown, blocks) in enumerate(as_lists(method.regions.draw(batch.random))):
        for title, numbers in zip(list(pictures)[1:], [shown, *blocks], strict=True):
            expected = torch.full((3, SIDE, SIDE), 0.5, dtype=torch.float64)
            for number in numbers:
                down, across = (slice(PATCH * n, PATCH * n + PATCH) for n in divmod(number, GRID))
                expected[:, down, across] = batch.views[0][image, :, down, across]
            assert torch.equal(pictures[title][image], expected)


def problems(facts: RunFacts = FACTS, **fields: Any) -> list[tuple[str, str]]:
    slot = resolve_component(load_plugins().registry, "method", {"name": "ijepa", **fields})
    return list(slot.cls.problems(slot.config, facts))


def test_problems() -> None:
    assert problems() == []
    ((_, text),) = problems(replace(FACTS, views=(ViewSpec(SIDE),) * 2))
    assert text == "ijepa needs 1 view, but the augmentation makes 2"


def test_fields_that_do_not_go_together_are_named() -> None:
    with pytest.raises(ValueError, match="target_scale"):
        problems(target_scale=[0.3, 0.2])
    with pytest.raises(RecipeError, match=r"least_context: 40 patches, but most_context allows 38"):
        make(least_context=40)
    with pytest.raises(RecipeError, match=r"10 patches, but the block that is shown can have 4;"):
        make(context_scale=[0.07, 1.0])


def test_a_backbone_without_patches_is_found_before_anything_is_trained() -> None:
    recipe = Path(__file__).with_name("one_view_vit.yaml")
    other = "backbone={name: timm, model: test_resnet}"
    (found,) = validate(recipe, [other]).problems
    assert found.startswith(f"-o {other}: ijepa leaves patches out")
    assert validate(recipe, []).problems == ()


@pytest.mark.parametrize("model", ["resnet10t", "beit_base_patch16_224"])
def test_backbones_that_cannot_leave_patches_out_are_refused(model: str) -> None:
    registry = load_plugins().registry
    args = {"depth": 1} if "beit" in model else {}
    block = {"name": "timm", "model": model, "model_args": args}
    side = 224 if "beit" in model else SIDE
    network = resolve_component(registry, "backbone", block).build(channels=3, image_size=side)
    slot = resolve_component(registry, "method", {"name": "ijepa"})
    with pytest.raises(RecipeError, match="backbone: ijepa leaves patches out"):
        slot.build(network, replace(FACTS, views=(ViewSpec(side),)))


def test_no_loss_reaches_a_class_token() -> None:
    """`trains_class_token` says so, which makes a run warn where the features are that token."""
    method, batch = make(network={"pool": "token", "model_args": {"depth": 2}}), make_batch()
    take, prefixes = method.backbone.tokens, []

    def tokens(*args: Any, **options: Any) -> Tokens:
        found: Tokens = take(*args, **options)
        found.prefix.retain_grad()
        prefixes.append(found.prefix)
        return found

    vars(method.backbone)["tokens"] = tokens
    method.objective(method.embed(batch), batch, Progress(0, 1, 1)).loss.backward()
    assert [prefix.shape[1] for prefix in prefixes] == [1]
    assert prefixes[0].grad is None
    assert not method.trains_class_token
    assert method.encoder.token_layout.pools_class_token
