"""What the methods share: passes, what they refuse, what they say."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from decorrelation_setup import (
    BATCH,
    FACTS,
    FIRST,
    draw,
    make_batch,
    make_loss,
    make_method,
    method_slot,
    of_views,
)
from sslkit_decorrelation.view_pairs import off_diagonal
from torch import nn

from sslkit.api import RunFacts, ViewSpec
from sslkit.builtin.simclr import SimCLR

PER_VIEW = ("barlow_twins", "vicreg")
METHODS = (*PER_VIEW, "lejepa", "visreg")
LOSSES = (*PER_VIEW, "sigreg", "visreg", "w_mse")


@pytest.mark.parametrize("name", PER_VIEW)
def test_each_view_has_its_own_batch_statistics(name: str) -> None:
    method, batch = make_method(name), make_batch()
    found = method.embed(batch)
    for view, images in enumerate(batch.views):
        features = method.backbone(images)
        torch.testing.assert_close(found["features"][:, view], features)
        torch.testing.assert_close(found["z"][:, view], method.projector(features))
    assert found["z"].shape == (BATCH, 2, 4)
    layers = nn.Sequential(*method.projection_layers)
    torch.testing.assert_close(layers(features), method.projector(features))


def problems(name: str, facts: RunFacts = FACTS, **fields: object) -> list[tuple[str, str]]:
    slot = method_slot(name, **fields)
    return list(slot.cls.problems(slot.config, facts))


@pytest.mark.parametrize("name", METHODS)
def test_problems(name: str) -> None:
    assert problems(name) == []
    assert {path for path, _ in problems(name, replace(FACTS, views=(ViewSpec(8),)))} == {""}
    ((_, text),) = problems(name, replace(FACTS, views=(ViewSpec(8),)))
    assert text == "compares views of an image, and the augmentation makes 1"
    ((_, text),) = problems(name, replace(FACTS, batch_size=1))
    assert "train.batch_size >= 2" in text


def test_a_loss_that_lets_it_collapse_is_warned_of() -> None:
    pytest.importorskip("sslkit_byol")
    for loss, count in (("normalized_mse", 1), ("vicreg", 0), ("nt_xent", 0)):
        slot = method_slot("barlow_twins", loss={"name": loss})
        said = list(slot.cls.warnings(slot.config, FACTS))
        assert len(said) == count
    no_variance = {"name": "vicreg", "variance_weight": 0.0}
    slot = method_slot("vicreg", loss=no_variance)
    ((path, text),) = slot.cls.warnings(slot.config, FACTS)
    assert path == "loss"
    assert text.startswith("vicreg is lowest when all embeddings are equal")


@pytest.mark.parametrize(("name", "usual"), [("lejepa", "0.05"), ("visreg", "0.9")])
def test_a_method_without_its_regulariser_is_warned_of(name: str, usual: str) -> None:
    slot = method_slot(name, loss_weight=0.0)
    assert list(slot.cls.warnings(slot.config, FACTS)) == [
        (
            "loss_weight",
            f"0 leaves nothing that keeps images apart: training will collapse; set {usual}",
        )
    ]


@pytest.mark.parametrize("name", LOSSES)
def test_the_losses_serve_other_methods(name: str) -> None:
    slot = method_slot("simclr", loss={"name": name})
    assert issubclass(slot.cls, SimCLR)
    assert list(slot.cls.problems(slot.config, FACTS)) == []
    assert list(slot.cls.warnings(slot.config, FACTS)) == []


@pytest.mark.parametrize("name", [*PER_VIEW, "w_mse"])
def test_bad_views_are_named(name: str) -> None:
    loss = make_loss(name)
    for views, said in (
        ([draw(4, 3)], "at least 2 views, not 1"),
        ([draw(4, 3), draw(4, 2)], r"\(4, 2\) and \(4, 3\)"),
        ([draw(1, 3)] * 2, r"at least 2 images, not \(1, 3\)"),
        ([draw(4, 3, 2)] * 2, r"not \(4, 3, 2\)"),
    ):
        with pytest.raises(ValueError, match=said):
            of_views(loss, *views)


def test_off_diagonal() -> None:
    matrix = draw(5, 5)
    found = off_diagonal(matrix)
    assert found.shape == (4, 5)
    expected = matrix[~torch.eye(5, dtype=torch.bool)]
    assert torch.equal(found.flatten(), expected)
    assert found.data_ptr() == matrix[0, 1:].data_ptr()
    assert off_diagonal(draw(1, 1)).numel() == 0


def test_progress_and_random_numbers_reach_the_loss() -> None:
    method, batch = make_method("vicreg"), make_batch()
    output = method.objective({"z": draw(BATCH, 2, 4)}, batch, FIRST)
    ((loss, given),) = output.losses
    assert loss is method.loss
    assert given.progress is FIRST
    assert given.random is batch.random
