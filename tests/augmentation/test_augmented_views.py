"""The callback that saves a picture of the first batch."""

from __future__ import annotations

import io
import subprocess
import sys

import numpy as np
import pytest
import torch
from PIL import Image
from pydantic import ValidationError

from sslkit.api import Batch, Progress, RunView
from sslkit.builtin.augmented_views import AugmentedViews, AugmentedViewsConfig, views_figure
from sslkit.randomness import SampleRandom

PROGRESS = Progress(0, 10, 5)


def batch_of(*views: torch.Tensor) -> Batch:
    indices = torch.arange(len(views[0]))
    return Batch(views, indices, SampleRandom(0, "method", 0, indices))


@pytest.mark.parametrize("channels", [1, 2, 3, 6])
def test_saves_one_picture(tmp_path, channels):
    callback = AugmentedViews(AugmentedViewsConfig(num_images=3))
    run = RunView(tmp_path, "test-s0", {}, {})
    callback.on_batch(
        run, batch_of(torch.rand(5, channels, 32, 32), torch.rand(5, channels, 16, 16)), PROGRESS
    )
    path = tmp_path / "figures" / "augmented_views.png"
    first = path.read_bytes()
    with Image.open(path) as image:
        assert image.width < image.height  # two columns, three rows
    callback.on_batch(run, batch_of(torch.zeros(5, channels, 32, 32)), PROGRESS)
    assert path.read_bytes() == first


def test_a_resumed_run_keeps_its_picture(tmp_path):
    path = tmp_path / "figures" / "augmented_views.png"
    path.parent.mkdir()
    path.write_bytes(b"the picture of the first start")
    callback, run = AugmentedViews(AugmentedViewsConfig()), RunView(tmp_path, "test-s0", {}, {})
    callback.on_start(run, torch.nn.Identity())
    callback.on_batch(run, batch_of(torch.rand(2, 3, 8, 8)), PROGRESS)
    assert path.read_bytes() == b"the picture of the first start"


def test_pixels_are_shown_as_they_are():
    red = torch.zeros(1, 6, 8, 8)
    red[:, 0] = 1.0
    grey = torch.full((1, 1, 8, 8), 0.5)  # not stretched to its own range
    figure = views_figure(batch_of(red, grey), num_images=4)
    picture = io.BytesIO()
    figure.savefig(picture)
    pixels = np.asarray(Image.open(picture))[..., :3].reshape(-1, 3)
    colours = {tuple(colour) for colour in pixels.tolist()}
    assert (255, 0, 0) in colours
    assert (127, 127, 127) in colours or (128, 128, 128) in colours


def test_num_images_is_checked():
    with pytest.raises(ValidationError, match="num_images"):
        AugmentedViewsConfig(num_images=0)


@pytest.mark.slow  # 5 seconds
def test_matplotlib_is_loaded_only_when_drawing():
    code = "import sys, sslkit.builtin.augmented_views; sys.exit('matplotlib' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
