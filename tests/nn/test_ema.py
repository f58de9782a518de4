"""The momentum teacher and its schedule."""

from __future__ import annotations

import pytest
import timm
import torch
from timm.layers import Attention, DropPath, PatchDropout
from torch import nn
from torchvision.ops import StochasticDepth

from sslkit.nn.ema import EMATeacher


def test_three_updates_have_the_closed_form() -> None:
    online = nn.Linear(3, 2)
    teacher = EMATeacher(online)
    start = online.weight.detach().clone()
    history = []
    for step in range(3):
        with torch.no_grad():
            online.weight.add_(step + 1.0)
        history.append(online.weight.detach().clone())
        teacher.update(online, 0.9)
    expected = 0.9**3 * start + 0.1 * (0.81 * history[0] + 0.9 * history[1] + history[2])
    torch.testing.assert_close(teacher.module.weight, expected)


@pytest.mark.parametrize("momentum", [0.0, 1.0])
def test_extreme_momenta_are_exact(momentum: float) -> None:
    online = nn.Linear(4, 4)
    teacher = EMATeacher(online)
    before = teacher.module.weight.clone()
    nn.init.normal_(online.weight)
    teacher.update(online, momentum)
    assert torch.equal(teacher.module.weight, before if momentum == 1.0 else online.weight)


def test_half_precision_online_weights_still_move_the_teacher() -> None:
    online = nn.Linear(8, 8).bfloat16()
    teacher = EMATeacher(online)
    before = teacher.module.weight.clone()
    with torch.no_grad():
        online.weight.add_(0.25)
    for _ in range(10):
        teacher.update(online, 0.999)
    assert teacher.module.weight.dtype == torch.float32
    expected = before + (1 - 0.999**10) * (online.weight.float() - before)
    torch.testing.assert_close(teacher.module.weight, expected, rtol=1e-5, atol=1e-6)


def test_buffer_policies() -> None:
    online = nn.BatchNorm1d(3)
    own, copied = EMATeacher(online), EMATeacher(online, buffers="copy")
    online(torch.randn(16, 3) + 5.0)
    own.update(online, 0.5)
    copied.update(online, 0.5)
    assert torch.equal(own.module.running_mean, torch.zeros(3))
    assert torch.equal(copied.module.running_mean, online.running_mean)  # type: ignore[arg-type]
    assert copied.module.num_batches_tracked == 1
    own(torch.randn(16, 3) - 5.0)  # in training mode it gathers its own
    assert (own.module.running_mean < 0).all()


def test_nothing_of_the_teacher_is_trained() -> None:
    online = nn.Sequential(nn.Linear(3, 3), nn.ReLU(), nn.Linear(3, 1))
    teacher = EMATeacher(online)
    inputs = torch.randn(2, 3, requires_grad=True)
    assert not teacher(inputs).requires_grad
    assert not any(parameter.requires_grad for parameter in teacher.parameters())
    assert all(parameter.requires_grad for parameter in online.parameters())


def test_bad_use_is_named() -> None:
    teacher = EMATeacher(nn.Linear(2, 2))
    with pytest.raises(ValueError, match=r"momentum must be in \[0, 1\], not 1.5"):
        teacher.update(nn.Linear(2, 2), 1.5)
    with pytest.raises(ValueError, match="only one of them has bias"):
        teacher.update(nn.Linear(2, 2, bias=False), 0.5)


DROPPING = (
    nn.Dropout(0.9),
    nn.Dropout1d(0.9),
    nn.AlphaDropout(0.9),
    StochasticDepth(0.9, "row"),
    DropPath(0.9),
    PatchDropout(0.9),
    Attention(8, num_heads=2, attn_drop=0.9),
    nn.TransformerEncoderLayer(8, 2, 8, dropout=0.9, batch_first=True),
)


@pytest.mark.parametrize("layer", DROPPING, ids=lambda layer: type(layer).__name__)
def test_a_teacher_without_dropout_drops_nothing(layer: nn.Module) -> None:
    """In training mode, while the online network goes on dropping."""
    teacher = EMATeacher(nn.Sequential(layer), dropout=False).train()
    images = torch.rand(4, 8, 8) + 1.0
    torch.manual_seed(0)
    dropped = layer.train()(images)
    torch.testing.assert_close(teacher(images), layer.eval()(images))
    assert dropped.shape != images.shape or not torch.allclose(dropped, layer(images))


@pytest.mark.parametrize("model", ["test_resnet", "test_efficientnet"])
def test_a_teacher_without_dropout_drops_no_features_of_a_network(model: str) -> None:
    """timm's own dropout before the classifier, which is no layer."""
    network = timm.create_model(model, num_classes=0, drop_rate=0.5).train()
    teacher = EMATeacher(network, dropout=False).train()
    images = torch.rand(4, 3, 32, 32)
    assert torch.equal(teacher(images), teacher(images))
    assert not torch.equal(network(images), network(images))


def test_a_teacher_has_the_dropout_of_its_network_by_default() -> None:
    images = torch.ones(100)
    assert float((EMATeacher(nn.Dropout(0.5)).train()(images) == 0.0).sum()) > 0
