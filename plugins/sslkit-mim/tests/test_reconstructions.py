"""Pictures of what a method fills in: what they show, and where they are saved."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from matplotlib.image import imread
from mim_setup import BATCH, FACTS, SIDE, SMALL, make, make_batch, vit
from sslkit_mim.reconstructions import Reconstructions, pictures_figure
from torch import Tensor, nn

from sslkit.api import Batch, Progress, RunView, resolve_component
from sslkit.engine.display import Silent
from sslkit.errors import RecipeError
from sslkit.host.plugins import load_plugins
from sslkit.testing import Check, checks
from sslkit.workflows.train import start

RECIPE = Path(__file__).with_name("one_view_vit.yaml")


@pytest.mark.parametrize(
    ("name", "fields"), [("mae", {"decoder": SMALL}), ("simmim", {"cell": 8})], ids=str
)
def test_only_hidden_patches_are_made_up(name: str, fields: dict[str, Any]) -> None:
    method, batch = make(name, **fields), make_batch()
    shown = method.pictures(batch)
    assert [*shown] == ["image", "seen", "reconstruction"]
    assert torch.equal(shown["image"], batch.views[0])
    same = (shown["reconstruction"] - shown["image"]).abs().amax(1) < 1e-6
    patches = same.view(BATCH, 4, 4, 4, 4).float().mean((2, 4)).flatten(1)
    hidden = {"mae": 12, "simmim": 12}[name]
    assert ((patches == 1.0).sum(1) == 16 - hidden).all()
    gone = (shown["seen"] == 0.5).all(1).view(BATCH, 4, 4, 4, 4)
    assert torch.equal(gone.all(4).all(2).flatten(1), patches < 1.0)
    assert all(images.min() >= 0.0 and images.max() <= 1.0 for images in shown.values())


def test_a_perfect_prediction_is_the_image() -> None:
    """Normalised pixels are put back on the scale of their patch."""
    method, batch = make("mae", decoder=SMALL), make_batch()
    pixels = method.pixels.of(batch.views[0])
    deviation = pixels.std(-1, keepdim=True).square().add(1e-6).sqrt()
    perfect = (pixels - pixels.mean(-1, keepdim=True)) / deviation
    method.decoder.forward = lambda *_: perfect
    found = method.pictures(batch)["reconstruction"]
    torch.testing.assert_close(found, batch.views[0], rtol=0, atol=1e-6)


class Doubles(nn.Module):
    """A method of no package."""

    def pictures(self, batch: Batch) -> Mapping[str, Tensor]:
        assert not self.training  # dropout and drop path are off
        return {"one": batch.views[0], "grey": batch.views[0][:, :1]}


def test_any_method_that_makes_pictures_is_shown(tmp_path: Path) -> None:
    callback = Reconstructions(Reconstructions.Config(num_images=3))
    run, progress = RunView(tmp_path, "x", {}, {}), Progress(0, 1, 1)
    method: Any = Doubles()
    callback.on_start(run, method)
    callback.on_evaluation(run, {}, progress)
    assert not (tmp_path / "figures").exists()  # nothing was seen yet
    batch = make_batch()
    callback.on_batch(run, batch, progress)
    batch.views[0].zero_()  # what is shown was cloned
    callback.on_evaluation(run, {}, progress)
    first = imread(tmp_path / "figures" / "reconstructions.png")
    callback.on_batch(run, make_batch(1), progress)
    callback.on_evaluation(run, {}, progress)
    assert np.array_equal(imread(tmp_path / "figures" / "reconstructions.png"), first)
    assert len(np.unique(first)) > 50
    assert method.training


def test_a_figure_has_a_row_for_each_image() -> None:
    figure = pictures_figure({"a": torch.rand(2, 3, 4, 4), "b": torch.rand(2, 1, 4, 4)})
    assert [axis.get_title() for axis in figure.axes] == ["a", "b", "", ""]
    shapes = [axis.images[0].get_array().shape for axis in figure.axes]
    assert shapes == [(4, 4, 3), (4, 4), (4, 4, 3), (4, 4)]


def test_other_methods_are_refused() -> None:
    fields = {"name": "simclr", "head": {"name": "mlp", "hidden_dim": 8, "out_dim": 4}}
    slot = resolve_component(load_plugins().registry, "method", fields)
    run = RunView(Path(), "x", {}, {})
    with pytest.raises(RecipeError, match="SimCLR makes none; leave the callback out"):
        Reconstructions(Reconstructions.Config()).on_start(run, slot.build(vit(), FACTS))
    assert vit().token_layout is not None
    assert FACTS.views[0].size == SIDE


@pytest.mark.slow  # 2 seconds
def test_a_run_saves_the_figure(tmp_path: Path) -> None:
    overrides = [
        "callbacks=[{name: reconstructions, num_images: 2}]",
        "evaluate=[{name: knn, k: 3}]",
        "train.max_steps=2",
        f"runs_dir={tmp_path}",
    ]
    found = start(RECIPE, overrides, display=Silent())
    picture = imread(found.run_dir / "figures" / "reconstructions.png")
    assert picture.shape[0] > 300  # two rows of 150 pixels


CHECKS = [
    pytest.param(check, id=str(check))
    for check in checks("callback:reconstructions", recipe=RECIPE, num_images=2)
]


@pytest.mark.slow  # 10 seconds
@pytest.mark.parametrize("check", CHECKS)
def test_laws(check: Check) -> None:
    check()
