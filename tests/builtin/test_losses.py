"""The loss components: what they pass on, more than two views, and their metrics."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from pydantic import ValidationError
from torch import Tensor

from sslkit.api import LossInput
from sslkit.builtin import losses
from sslkit.builtin.losses import InfoNCE, NTXent
from sslkit.nn.functional import info_nce, nt_xent


def views(count: int, batch: int = 5) -> tuple[Tensor, ...]:
    generator = torch.Generator().manual_seed(0)
    return tuple(torch.randn(batch, 4, generator=generator) for _ in range(count))


def test_two_views() -> None:
    a, b = views(2)
    loss = NTXent(NTXent.Config(temperature=0.2))(LossInput((a, b)))
    torch.testing.assert_close(loss, nt_xent(a, b, 0.2))
    loss = InfoNCE(InfoNCE.Config(temperature=0.2))(LossInput((a, b)))
    torch.testing.assert_close(loss, info_nce(a, b, None, 0.2, symmetric=True))
    loss = InfoNCE(InfoNCE.Config(temperature=0.2, symmetric=False))(LossInput((a, b)))
    torch.testing.assert_close(loss, info_nce(a, b, None, 0.2))


def test_more_views_are_averaged_over_pairs() -> None:
    a, b, c = views(3)
    loss = NTXent(NTXent.Config())(LossInput((a, b, c)))
    pairs = [nt_xent(a, b, 0.5), nt_xent(a, c, 0.5), nt_xent(b, c, 0.5)]
    torch.testing.assert_close(loss, torch.stack(pairs).mean())


def test_a_queue_takes_the_place_of_the_batch() -> None:
    query, key = views(2)
    queue = torch.randn(9, 4)
    component = InfoNCE(InfoNCE.Config(temperature=0.3))
    inputs = LossInput((query, key), negatives=queue)
    torch.testing.assert_close(component(inputs), info_nce(query, key, queue, 0.3))
    assert InfoNCE.requires == frozenset()


@pytest.mark.parametrize("component", [NTXent, InfoNCE])
def test_metrics(component: type[NTXent] | type[InfoNCE]) -> None:
    built = component(component.Config(temperature=0.05))
    z = torch.eye(8, requires_grad=True)
    metrics = built.metrics(LossInput((z, z)))
    assert set(metrics) == {"contrastive_top1", "contrastive_top5", "contrastive_entropy"}
    assert metrics["contrastive_top1"].item() == 1.0
    assert not any(value.requires_grad for value in metrics.values())


@pytest.mark.parametrize("component", [NTXent, InfoNCE])
@pytest.mark.parametrize("queue", [None, torch.ones(3, 4)])
def test_chunks_are_passed_on(
    component: type[NTXent] | type[InfoNCE],
    queue: Tensor | None,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    seen: list[int] = []
    for name in ("nt_xent", "info_nce", "contrastive_accuracy_and_entropy"):
        original = getattr(losses, name)

        def record(*args: Tensor, original: Any = original, **kwargs: Any) -> Any:
            seen.append(kwargs["chunk_elements"])
            return original(*args, **kwargs)

        monkeypatch.setattr(losses, name, record)
    built = component(component.Config(chunk_elements=12))
    inputs = LossInput(views(2), negatives=queue)
    built(inputs)
    built.metrics(inputs)
    assert seen == [12, 12]
    assert component.Config().model_dump()["chunk_elements"] == 2**22  # resolved and saved


def test_mistakes_are_refused() -> None:
    with pytest.raises(ValidationError, match="chunk_elements"):
        NTXent.Config(chunk_elements=0)
    with pytest.raises(ValidationError, match="greater than 0"):
        NTXent.Config(temperature=0)
    with pytest.raises(ValidationError, match="temperatur"):
        InfoNCE.Config(temperatur=0.1)  # type: ignore[call-arg]
    with pytest.raises(ValueError, match="at least 2 views, not 1"):
        NTXent(NTXent.Config())(LossInput(views(1)))
