"""What does not hold on several processes, as the page of guarantees says it: networks that compute
across images by other means than BatchNorm, and layers that draw random numbers."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor

from sslkit.api import Batch
from sslkit.parallel.world import World
from sslkit.runs.folder import held_by_first
from tests.ranks.curves import LAYER_NORM, LN_HEAD, METHODS, begin, curve, make
from tests.ranks.forked import on_ranks
from tests.ranks.sketches import SKETCHES, Prototypes


class AcrossImages(Prototypes):
    """Its networks take the mean of the images that pass together."""

    def embed(self, batch: Batch) -> dict[str, Tensor]:
        found = super().embed(batch)
        return found | {"z": found["z"] - found["z"].mean(0)}


def losses(folder: Path, size: int, method: str, overrides: list[str]) -> Tensor:
    """Those of two steps."""
    place = folder / str(size)
    place.mkdir()

    def work(world: World) -> Tensor:
        with held_by_first(world, lambda: begin(place)) as run:
            found: Tensor = curve(make(run, method, overrides, world), 2)["losses"]
            return found

    first, *others = on_ranks(work, size)
    if isinstance(first, BaseException):
        raise first
    assert all(torch.equal(first, other) for other in others)
    return torch.as_tensor(first)


@pytest.mark.slow  # 3 seconds
def test_what_networks_compute_across_images_is_over_those_of_a_process(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """All processes still agree, on another loss than one process has."""
    monkeypatch.setitem(SKETCHES, "across", AcrossImages)
    one, two = (losses(tmp_path, size, "across", list(LAYER_NORM)) for size in (1, 2))
    assert ((two - one) / one).abs()[0] > 1e-4


@pytest.mark.slow  # 4 seconds
def test_drop_path_follows_the_process(tmp_path: Path) -> None:
    """The same loss without it, another one with it."""
    simclr = f"method={METHODS['simclr'].format(head=LN_HEAD)}"
    for rate, differs in (("0.0", False), ("0.3", True)):
        folder = tmp_path / rate
        folder.mkdir()
        overrides = [*LAYER_NORM, f"backbone.drop_path_rate={rate}", simclr]
        one, two = (losses(folder, size, "simclr", overrides) for size in (1, 2))
        difference = ((two - one) / one).abs()[0]
        assert difference > 1e-4 if differs else difference < 1e-12
