from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from sslkit.evaluation import features
from sslkit.evaluation.features import (
    BankSpec,
    centre_,
    count_not_finite,
    extract,
    pixel_features,
    state_digest,
)
from sslkit.nn.compute import Compute
from tests.evaluation.features import unlabelled

FP32 = Compute(torch.device("cpu"), "fp32", channels_last=False)


def small_net(dropout: float = 0.0) -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(3, 6, 3, padding=1),
        nn.BatchNorm2d(6),
        nn.ReLU(),
        nn.Dropout(dropout),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.BatchNorm1d(6),
    )


def images(num: int, seed: int = 1) -> Tensor:
    return torch.rand(num, 3, 8, 8, generator=torch.Generator().manual_seed(seed))


def in_batches(data: Tensor, size: int) -> list[Tensor]:
    return list(torch.split(data, size))


def test_extraction_leaves_the_encoder_as_it_was_to_the_bit() -> None:
    encoder = small_net().train()
    encoder[1].eval()  # a partly frozen network: flags differ between modules
    encoder[1].running_mean.normal_()
    before, flags = state_digest(encoder), [m.training for m in encoder.modules()]
    features = extract(encoder, in_batches(images(20), 8), FP32)
    assert state_digest(encoder) == before
    assert [m.training for m in encoder.modules()] == flags
    assert not features.requires_grad
    assert all(p.grad is None for p in encoder.parameters())
    # The proof can fail: the same forward pass in training mode changes the digest.
    encoder(images(8))
    assert state_digest(encoder) != before


def test_the_digest_sees_every_kind_of_state() -> None:
    encoder = small_net()
    encoder.register_buffer("hidden", torch.zeros(1), persistent=False)
    digests = {state_digest(encoder)}
    for tensor in (encoder[0].weight, encoder[1].running_var, encoder.hidden):
        tensor.data.view(-1)[0] += 1e-3
        digests.add(state_digest(encoder))
    encoder.hidden = -torch.zeros(1)  # equal value, other bits
    assert len(digests | {state_digest(encoder)}) == 5


def test_modes_come_back_after_an_exception() -> None:
    encoder = small_net().train()
    encoder[4].eval()

    class FailsInside(nn.Module):
        def forward(self, _: Tensor) -> Tensor:
            assert not any(m.training for m in encoder.modules())
            assert not torch.is_grad_enabled()
            raise KeyError

    encoder.append(FailsInside())
    flags = [m.training for m in encoder.modules()]
    with pytest.raises(KeyError):
        extract(encoder, [images(2)], FP32)
    assert [m.training for m in encoder.modules()] == flags
    assert torch.is_grad_enabled()


def test_features_do_not_depend_on_batches_or_dropout() -> None:
    encoder = small_net(dropout=0.9).train()
    data = images(21)
    one = extract(encoder, in_batches(data, 21), FP32)
    parts = extract(encoder, in_batches(data, 4), FP32)  # the last batch holds one image
    assert one.shape == (21, 6)
    torch.testing.assert_close(one, parts)
    assert torch.equal(one, extract(encoder, in_batches(data, 21), FP32))


def test_bf16_features_are_float32_and_near() -> None:
    encoder = small_net()
    data = images(8)
    exact = extract(encoder, [data], FP32)
    rounded = extract(encoder, [data], Compute(torch.device("cpu"), "bf16", channels_last=True))
    assert rounded.dtype == torch.float32
    torch.testing.assert_close(rounded, exact, atol=0.05, rtol=0.05)
    assert not torch.equal(rounded, exact)


def test_no_batches_is_an_error() -> None:
    with pytest.raises(ValueError, match="no images"):
        extract(small_net(), [], FP32)
    with pytest.raises(ValueError, match="no images"):
        pixel_features([])


def test_pixels_are_flat_small_and_centred_on_the_training_split() -> None:
    data = images(5)
    assert torch.equal(pixel_features(in_batches(data, 2)), data.flatten(1))
    large = torch.rand(2, 3, 64, 96)
    expected = large.unfold(2, 2, 2).unfold(3, 3, 3).mean(dim=(-1, -2)).flatten(1)
    torch.testing.assert_close(pixel_features([large]), expected)
    train, test = torch.rand(10, 4), torch.rand(6, 4) + 3.0
    bank = unlabelled(train.clone(), test.clone())
    centre_(bank)
    torch.testing.assert_close(bank.train.mean(dim=0), torch.zeros(4), atol=1e-6, rtol=0)
    torch.testing.assert_close(bank.test, test - train.mean(dim=0))


def test_room_keeps_large_banks_in_cpu_memory_and_forgives_a_wrong_count(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    data = images(10)
    expected = pixel_features([data])
    for rows in (3, 10, 12):  # too few, exact, too many
        assert torch.equal(pixel_features(in_batches(data, 4), room=BankSpec(rows, rows)), expected)
    part = torch.empty(1, 192, device="meta")
    assert BankSpec(10, 20).device(part).type == "meta"
    monkeypatch.setattr(features, "DEVICE_BYTES", 19 * 192 * 4)
    assert BankSpec(10, 20).device(part).type == "cpu"


def test_rows_that_are_not_finite_are_counted(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(features, "_CHECKED_ROWS", 3)
    rows = torch.zeros(8, 2)
    rows[1, 0], rows[1, 1], rows[7, 1] = torch.nan, torch.inf, -torch.inf
    assert count_not_finite(rows) == 2
