"""`python -m tests.benchmarks.methods_pictures RUN...`: what runs make of two photographs.

Each run's method must make pictures, as MAE and BEiT do. It was trained on other images: squares
are cut from scikit-learn's sample photographs (danielbuechele, CC BY 2.0), which may be shown, and
resized to the side that the run trained on.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

import torch
from sslkit_mim.reconstructions import MakesPictures, pictures_figure
from torch import Tensor
from torch.nn import functional as F

from sslkit.api import Batch
from sslkit.experiment.restore import load_measured_method
from sslkit.randomness import SampleRandom

FIGURES = Path(__file__).parents[2] / "docs" / "benchmarks" / "figures"
_SQUARES = (
    (0, 0, 0, 427), (0, 100, 250, 300), (0, 60, 90, 220), (1, 0, 100, 427), (1, 110, 200, 200),
)  # fmt: skip
"""Photograph, top, left and side of what is cut out, pixels."""


def photographs(side: int) -> Tensor:
    """(B, 3, side, side) in [0, 1]."""
    from sklearn.datasets import load_sample_images

    images = load_sample_images().images
    squares = []
    for number, top, left, length in _SQUARES:
        cut = torch.from_numpy(images[number].copy())[top : top + length, left : left + length]
        squares.append(cut.permute(2, 0, 1).float() / 255)
    return torch.cat(
        [
            F.interpolate(each[None], (side, side), mode="bilinear", antialias=True)
            for each in squares
        ]
    )


@torch.no_grad()
def draw(run: Path, folder: Path) -> Path:
    """Writes `reconstructions-METHOD.png`."""
    recipe, facts, method = load_measured_method(run, whole=True)
    if not isinstance(method, MakesPictures):
        raise SystemExit(f"{run}: {recipe.method.name} makes no pictures")
    view = photographs(facts.views[0].size)
    indices = torch.arange(len(view))
    batch = Batch((view,), indices, SampleRandom(recipe.seed, "method", 0, indices))
    path = folder / f"reconstructions-{recipe.method.name}.png"
    folder.mkdir(parents=True, exist_ok=True)
    pictures_figure(method.eval().pictures(batch)).savefig(path)
    return path


def main(arguments: Sequence[str] | None = None) -> int:
    """The command. Returns the exit code."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("run", nargs="+", type=Path, help="the folder of a finished run")
    parser.add_argument("--folder", type=Path, default=FIGURES, help="for the pictures")
    given = parser.parse_args(arguments)
    for run in given.run:
        print(draw(run, given.folder))
    return 0


if __name__ == "__main__":
    sys.exit(main())
