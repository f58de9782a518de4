"""DINOv2's loss against the papers written out in loops, its parts and its rules of learning."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import pytest
import torch
from distill_setup import BATCH, FACTS, make_batch, method_slot, problems
from sslkit_distill.feature_losses import koleo
from token_net import (
    HEAD,
    SIDES,
    TOKEN_FACTS,
    WARM,
    Reference,
    balanced,
    centred,
    make,
    steps_of,
)

from sslkit.api import Progress, resolve_component
from sslkit.host.plugins import load_plugins
from sslkit.recipe import load_recipe

LENGTHS = {**HEAD, "unit_prototypes": False}
OWN_HEAD = {**LENGTHS, "hidden_dim": 9}
START = Progress(0, 6, 2)


@pytest.mark.parametrize("centering", ["sinkhorn", "mean"])
def test_several_steps_equal_the_paper_written_out(centering: str) -> None:
    """All three losses, weights and teacher: balanced targets of views and of patches, heads of
    their own whose prototypes have lengths to train, KoLeo of each view, two temperatures that warm
    up, last layers frozen at first."""
    dinov2 = make(
        "dinov2",
        head=LENGTHS,
        patch_head=OWN_HEAD,
        centering=centering,
        mask_probability=0.7,
        koleo_weight=0.2,
        layer_decay=1.0,
        patch_embed_lr_scale=1.0,
        **WARM,
    )
    how, momenta = {"sinkhorn": (balanced, (1.0, 1.0)), "mean": (centred, (0.9, 0.9))}[centering]
    reference = Reference(dinov2.state_dict(), (1.0, 1.0, 0.2), momenta, how)
    for found, (classes, patches, spread) in steps_of(dinov2, reference, 4):
        assert found.metrics["class_loss"].item() == pytest.approx(classes, abs=1e-9)
        assert found.metrics["patch_loss"].item() == pytest.approx(patches, abs=1e-9)
        assert found.metrics["koleo"].item() == pytest.approx(spread / 2, abs=1e-9)
        total = classes + patches + 0.2 * spread
        assert found.loss.item() == pytest.approx(total, abs=1e-9)
    torch.testing.assert_close(dinov2.center, reference.centers[0], rtol=1e-7, atol=1e-10)
    torch.testing.assert_close(dinov2.patch_center, reference.centers[1], rtol=1e-7, atol=1e-10)
    reference.check(dinov2)


def test_targets_use_all_prototypes_alike() -> None:
    """Where the teacher gives all images one prototype, targets are spread over all; without
    balance they are that prototype, which is what the monitor sees."""
    torch.manual_seed(0)
    scores = 0.1 * torch.rand(6, 2, 7, dtype=torch.float64)
    scores[..., 3] += 0.5
    for centering, entropy in (("sinkhorn", math.log(7)), ("mean", 0.0)):
        dinov2 = make("dinov2", patch_head=None, centering=centering, sinkhorn_iterations=50)
        found = {"teacher": scores, "target": (scores / 0.04).softmax(-1)}
        target = dinov2._class_target(found, START)
        torch.testing.assert_close(target.sum(-1), torch.ones(6, 2, dtype=torch.float64))
        used = target.mean((0, 1))
        assert torch.special.entr(used).sum().item() == pytest.approx(entropy, abs=0.01)


def test_koleo_is_that_of_each_global_view_over_the_batch() -> None:
    dinov2, batch = make("dinov2", patch_head=None), make_batch(sides=SIDES)
    found = dinov2.embed(batch)
    with_it = dinov2.objective(found, batch, START)
    dinov2.config = dinov2.config.model_copy(update={"koleo_weight": 0.0})
    without = dinov2.objective(found, batch, START)
    expected = sum(koleo(view) for view in found["student_features"].unbind(1))
    torch.testing.assert_close(with_it.loss - without.loss, 0.1 * expected)
    assert "koleo" not in without.metrics


def test_learning_rates_are_those_of_the_reference_code() -> None:
    """A ViT of 12 blocks: 0.9 to the power of 13 for the embeddings and the mask token, 12 to 1
    for the blocks, 1 for the heads; a fifth of it for the patch embedding."""
    block = {"name": "timm", "model": "vit_tiny_patch16_224", "pool": "token"}
    block["model_args"] = {"dynamic_img_size": True, "embed_dim": 12, "num_heads": 2}
    registry = load_plugins().registry
    backbone = resolve_component(registry, "backbone", block).build(channels=3, image_size=32)
    views = tuple(replace(view, size=4 * view.size) for view in TOKEN_FACTS.views)
    slot = method_slot("dinov2", head=HEAD, patch_head=HEAD, min_block=1)
    dinov2: Any = slot.build(backbone, replace(FACTS, views=views))
    groups = dinov2.param_groups()
    scales = {name: group.lr_scale for group in groups for name, _ in group.params}
    assert set(scales) == {name for name, p in dinov2.named_parameters() if p.requires_grad}
    model = "backbone.model."
    assert scales[f"{model}pos_embed"] == pytest.approx(0.9**13)
    assert scales["mask_token"] == scales[f"{model}cls_token"] == pytest.approx(0.9**13)
    assert scales[f"{model}patch_embed.proj.weight"] == pytest.approx(0.2 * 0.9**13)
    assert scales[f"{model}blocks.0.attn.qkv.weight"] == pytest.approx(0.9**12)
    assert scales[f"{model}blocks.11.mlp.fc1.bias"] == pytest.approx(0.9)
    assert scales["head.layers.0.0.weight"] == scales["patch_head.layers.3.weight"] == 1.0
    assert sum(len(group.params) for group in groups) == len(scales)


def test_the_recipe_blurs_as_the_reference_code_does() -> None:
    """Which gives torchvision 1 - p where it means p, of a kernel of 9 pixels."""
    recipe = load_recipe("dinov2_vit_l")
    blocks: Any = recipe.augmentation.config.blocks()  # type: ignore[attr-defined]
    found = [(block.blur_rate, block.blur_kernel_size, block.blur_sigma) for block in blocks]
    assert found == [(pytest.approx(1.0 - p), 9, (0.1, 2.0)) for p in (1.0, 0.1, 0.5)]
    assert [block.solarize_probability for block in blocks] == [0.0, 0.2, 0.0]


def test_problems_and_warnings() -> None:
    assert problems("dinov2", TOKEN_FACTS) == []
    ((path, text),) = problems("dinov2", replace(TOKEN_FACTS, batch_size=1))
    assert (path, "train.batch_size >= 2" in text) == ("koleo_weight", True)
    long = replace(TOKEN_FACTS, total_steps=100_000)
    for centering, paths in (("sinkhorn", []), ("mean", ["center_momentum"])):
        slot = method_slot("dinov2", center_momentum=1.0, centering=centering)
        assert [path for path, _ in slot.cls.warnings(slot.config, long)] == paths
    assert len(make_batch()) == BATCH
