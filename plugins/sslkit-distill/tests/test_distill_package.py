"""What the package ships: recipes that load and run, and imports that any plugin may have."""

from __future__ import annotations

import ast
import math
from pathlib import Path

import pytest
import sslkit_distill
import torch
import yaml
from torch import nn

from sslkit.api import ParamGroup, Progress
from sslkit.api.optimizers import optimizer_groups, set_group_rules
from sslkit.engine.display import Silent
from sslkit.recipe import find_recipe, load_recipe, shipped_recipes
from sslkit.workflows.train import start

PACKAGE = Path(sslkit_distill.__file__).parent
RECIPES = sorted((PACKAGE / "recipes").rglob("*.yaml"))
SMALL = [
    "data={name: synthetic, num_train: 32, num_test: 16, size: 16}",
    "augmentation.size=16",
    "train.precision=fp32",  # maps of 16 px end at 1x1, where torch's bf16 on CPUs has a fault
    "backbone={name: timm, model: test_resnet}",
    "train.batch_size=16",
    "train.max_steps=2",
    "train.epochs=1",
    "train.compile=false",
    "train.device=cpu",
    "schedule.warmup_epochs=0",
    "evaluate=[]",
    "expect={}",
    "tracking={name: none}",
]
"""What a recipe needs to take two steps in a second."""


def name(path: Path) -> str:
    return path.relative_to(PACKAGE / "recipes").with_suffix("").as_posix()


def test_every_recipe_is_found_by_its_name() -> None:
    shipped = shipped_recipes()
    assert len(RECIPES) >= 7
    for path in RECIPES:
        assert shipped[name(path)].samefile(path)
        assert "# Expected: " in path.read_text()


@pytest.mark.parametrize("path", RECIPES, ids=name)
def test_every_recipe_takes_steps(path: Path, tmp_path: Path) -> None:
    text, more = path.read_text(), []
    if "name: dino" in text:
        more += [
            "method.head.out_dim=24",
            "method.head.hidden_dim=32",
            "method.teacher_momentum=0.9",
        ]
    if "model: vit" in text:
        network = (
            "model: test_vit, patch_size: 8, pool: token, model_args: {dynamic_img_size: true}"
        )
        more.append(f"backbone={{name: timm, {network}}}")
    if "role: local" in text:
        more.append("augmentation.views.2.size=8")
    result = start(path, [*SMALL, *more, f"runs_dir={tmp_path}"], display=Silent())
    assert result.status == "finished"
    most = 1.0 if "name: simsiam" in text else 1.5 * math.log(24)
    assert -1.0 <= result.metrics["train/loss"] <= most


@pytest.mark.parametrize("path", RECIPES, ids=name)
def test_a_recipe_states_every_field_of_its_method(path: Path) -> None:
    method = load_recipe(path).method
    stated = yaml.safe_load(path.read_text())["method"]
    assert set(method.dump()) == set(stated)


@pytest.mark.parametrize("recipe", ["cpu/simsiam_cifar10_short", "cpu/dino_cifar10_short"])
def test_a_cpu_recipe_differs_from_its_sibling_in_the_method_alone(recipe: str) -> None:
    own, other = (
        yaml.safe_load(find_recipe(found).read_text())
        for found in (recipe, "cpu/simclr_cifar10_short")
    )
    for each in (own, other):
        del each["name"], each["method"]
        each.pop("expect", None)
    assert own == other


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


def test_imports_are_those_that_a_plugin_may_have() -> None:
    allowed = {"sslkit", "sslkit.api", "sslkit.errors", "sslkit.randomness"}
    for path in PACKAGE.rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("sslkit."):
                module = node.module or ""
                assert module in allowed or module.startswith("sslkit.nn."), f"{path}: {module}"
