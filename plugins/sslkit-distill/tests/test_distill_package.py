"""What the package ships: recipes that run and say all, imports that any plugin may have."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import pytest
import sslkit_distill
import torch
from torch import nn

from sslkit.api import ParamGroup, Progress
from sslkit.api.optimizers import optimizer_groups, set_group_rules
from sslkit.recipe import find_recipe, load_recipe
from sslkit.testing import SMALL_IMAGES, PackageCheck, package_checks


def small(recipe: Mapping[str, Any]) -> list[str]:
    more, method = [], recipe["method"]
    heads = [part for part in ("head", "patch_head") if method.get(part)]
    for head in heads:
        more += [f"method.{head}.out_dim=24", f"method.{head}.hidden_dim=32"]
    if heads:
        more.append("method.teacher_momentum=0.9")
    if "min_block" in method:
        more.append("method.min_block=1")
    if recipe["backbone"]["model"].startswith("vit"):
        vit = "model: test_vit, patch_size: 8, pool: token, model_args: {dynamic_img_size: true}"
        more.append(f"backbone={{name: timm, {vit}}}")
    if "blur_kernel" in recipe["augmentation"]:
        more.append("augmentation.blur_kernel=9")
    for number, view in enumerate(recipe["augmentation"].get("views", ())):
        if view.get("role") == "local":
            more.append(f"augmentation.views.{number}.size=8")
    return [*SMALL_IMAGES, *more]


CHECKS = package_checks(
    sslkit_distill,
    small,
    siblings={
        f"cpu/{method}_cifar10_short": "cpu/simclr_cifar10_short" for method in ("simsiam", "dino")
    },
)


@pytest.mark.parametrize("check", CHECKS, ids=str)
def test_the_package(check: PackageCheck) -> None:
    check()


def test_the_imagenet_recipe_of_dino_decays_and_scales_as_the_reference_code() -> None:
    """Learning rate and weight decay of its groups at three steps; positions and tokens decay,
    biases and norms do not."""
    recipe = load_recipe(find_recipe("dino_vit_s"))
    config = recipe.optimizer.config
    assert config.peak_lr(512) == pytest.approx(1e-3)
    weights, bias = nn.Parameter(torch.zeros(1, 5, 4)), nn.Parameter(torch.zeros(4))
    group = ParamGroup([("pos_embed", weights), ("bias", bias)], max_grad_norm=3.0)
    groups = optimizer_groups(config, [group], 1e-3)
    optimizer = recipe.optimizer.build().create(groups)
    steps, per_epoch = 100_000, 1_000
    for step in (0, 30_000, 99_999):
        progress = Progress(step, steps, per_epoch)
        lr = 1e-3 * recipe.schedule.build().factor(progress)
        set_group_rules(optimizer, config, lr, 1e-3, progress)
        decay = 0.4 + 0.5 * (0.04 - 0.4) * (1 + math.cos(math.pi * step / steps))
        found = [each["weight_decay"] for each in optimizer.param_groups]
        assert found == pytest.approx([decay, 0.0], abs=1e-12)
        if step > 10_000:
            wave = 1 + math.cos(math.pi * (step - 10_000) / (steps - 10_000))
            assert lr == pytest.approx(1e-6 + 0.5 * (1e-3 - 1e-6) * wave, rel=1e-9)
