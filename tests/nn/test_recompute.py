"""Recomputed blocks give what plain ones give, to the bit, and keep less."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from sslkit.api import RunFacts, ViewSpec
from sslkit.builtin.timm_backbone import TimmBackbone
from sslkit.errors import RecipeError
from sslkit.experiment.networks import compile_backbones
from sslkit.nn.compute import Compute
from sslkit.nn.recompute import Recomputed, is_recomputed, recompute

SIDE = 32


def backbone(model: str = "resnet10t", *, again: bool, **fields: Any) -> TimmBackbone:
    torch.manual_seed(0)
    config = TimmBackbone.Config(model=model, recompute=again, **fields)
    return TimmBackbone(config, channels=3, image_size=SIDE).train()


def step(network: nn.Module, dtype: torch.dtype = torch.float32) -> dict[str, Tensor]:
    """The loss, all gradients and all buffers after a pass, with random numbers of its own."""
    torch.manual_seed(1)
    images = torch.rand(6, 3, SIDE, SIDE).to(dtype)
    network.to(dtype)
    loss = network(images).square().mean()
    torch.rand(3)  # others draw, too, before the backward pass
    loss.backward()
    found = {f"grad.{name}": p.grad for name, p in network.named_parameters() if p.grad is not None}
    return {"loss": loss.detach(), **found, **dict(network.named_buffers())}


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize(
    ("model", "fields"),
    [
        ("resnet10t", {}),
        ("resnet10t", {"drop_path_rate": 0.5}),
        ("vit_tiny_patch16_224", {"patch_size": 8, "drop_path_rate": 0.3}),
        ("convnext_atto", {}),
    ],
)
def test_the_step_is_that_of_plain_blocks(
    model: str, fields: dict[str, Any], dtype: torch.dtype
) -> None:
    """Gradients, and running statistics, which are updated once."""
    plain = step(backbone(model, again=False, **fields), dtype)
    found = step(backbone(model, again=True, **fields), dtype)
    assert found.keys() == plain.keys()
    for name, value in plain.items():
        assert torch.equal(found[name], value), name


@pytest.mark.slow  # 2 seconds
def test_the_step_is_the_same_under_autocast() -> None:
    results = []
    for again in (False, True):
        network = backbone(again=again)
        with torch.autocast("cpu", torch.bfloat16):
            loss = network(
                torch.full((4, 3, SIDE, SIDE), 0.5) * torch.arange(1, 5).view(-1, 1, 1, 1)
            )
        loss.float().square().mean().backward()
        results.append([p.grad for p in network.parameters()])
    assert all(torch.equal(a, b) for a, b in zip(*results, strict=True))


class Counting(nn.Module):
    """A block whose output depends on a buffer and on a setting, both of which change."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(4, 4)
        self.sign = 1.0
        self.passes: Tensor
        self.register_buffer("passes", torch.zeros(()))

    def forward(self, rows: Tensor) -> Tensor:
        self.passes = self.passes + 1.0
        return torch.tanh(self.linear(rows)) * self.passes * self.sign


def test_a_block_is_as_it_was_the_first_time() -> None:
    """As MoCo's BatchNorm layers are: in groups in `embed`, and whole again in the backward."""
    torch.manual_seed(0)
    plain = Counting()
    again = copy.deepcopy(plain)
    recompute(again)
    rows = torch.rand(3, 4)
    for block in (plain, again):
        block.sign = -1.0
        loss = block(rows).pow(3).sum() + block(rows).pow(2).sum()
        block.sign = 1.0
        loss.backward()
        assert block.sign == 1.0
        assert block.passes == 2.0
    assert torch.equal(plain.linear.weight.grad, again.linear.weight.grad)


def test_a_copy_computes_with_weights_of_its_own() -> None:
    """As a teacher must."""
    network = backbone(again=True)
    other = copy.deepcopy(network)
    for parameter in other.parameters():
        parameter.data.zero_()
    images = torch.rand(4, 3, SIDE, SIDE)
    assert network(images).abs().sum() > 0.0
    assert other(images).abs().sum() == 0.0


def test_activations_inside_blocks_are_not_kept() -> None:
    """Counted as autograd saves them; a checkpoint keeps its input beside that count."""
    kept = []
    for again in (False, True):
        network, saved = backbone("resnet18", again=again, stem="small"), {}
        weights = {p.untyped_storage().data_ptr() for p in network.parameters()}

        def pack(
            value: Tensor, saved: dict[int, int] = saved, weights: set[int] = weights
        ) -> Tensor:
            storage = value.untyped_storage()
            if storage.data_ptr() not in weights:
                saved[storage.data_ptr()] = storage.nbytes()
            return value

        with torch.autograd.graph.saved_tensors_hooks(pack, lambda value: value):
            loss = network(torch.rand(4, 3, SIDE, SIDE)).sum()
        kept.append(sum(saved.values()))
        del loss
    assert kept[1] < 0.4 * kept[0]


def test_evaluation_and_frozen_passes_are_plain(monkeypatch: pytest.MonkeyPatch) -> None:
    network = backbone(again=True)
    monkeypatch.setattr("sslkit.nn.recompute.checkpoint", None)
    images = torch.rand(2, 3, SIDE, SIDE)
    with torch.no_grad():
        network(images)
    network.eval()(images)


def test_which_blocks() -> None:
    network = backbone("resnet18", again=True, stem="small")
    names = [name for name, part in network.model.named_modules() if isinstance(part, Recomputed)]
    assert names == [f"layer{layer}.{block}" for layer in (1, 2, 3, 4) for block in (0, 1)][:-1]
    assert set(network.state_dict()) == set(backbone("resnet18", again=False).state_dict())
    assert is_recomputed(network)
    assert not is_recomputed(backbone(again=False))


def test_what_recipes_may_not_ask() -> None:
    views = (ViewSpec(SIDE),)
    known = RunFacts(64, 3, (SIDE, SIDE), None, 16, 4, 4, views)
    config = TimmBackbone.Config(model="mobilenetv3_small_050", recompute=True)
    paths = [path for path, _ in TimmBackbone.problems(config, known)]
    assert paths in ([], ["recompute"]), "its blocks are known to timm, or it is refused"
    method: Any = nn.Sequential(backbone(again=True))
    with pytest.raises(RecipeError, match=r"train\.compile: blocks that the backbone recomputes"):
        compile_backbones(method, Compute(torch.device("cpu"), "fp32", channels_last=False))
