"""Each fault of an augmentation breaks the one law that is meant for it, and no other."""

from __future__ import annotations

import pytest
from broken_augmentations import BROKEN, OtherWhereCompiled, SaysColoursAlone, Sound
from torch import Tensor

from sslkit.api import ImageAugmentation, Params
from sslkit.randomness import SampleRandom
from sslkit.testing import check_plugin


@pytest.mark.slow  # 7 seconds
@pytest.mark.parametrize(
    "component", [Sound, SaysColoursAlone, *BROKEN], ids=lambda found: found.__name__
)
def test_a_fault_breaks_its_law_alone(component: type[ImageAugmentation]) -> None:
    rows = check_plugin(component, fast=True).rows
    found = {row["law"]: row["text"] for row in rows if row["status"] == "failed"}
    law = BROKEN.get(component)
    assert list(found) == ([law] if law else []), found


@pytest.mark.slow  # compiles
def test_other_views_where_compiled_break_their_law_alone() -> None:
    rows = check_plugin(OtherWhereCompiled).rows
    found = {row["law"]: row["status"] for row in rows if row["status"] != "passed"}
    if found.get("compiled-equals-eager") == "untried":
        pytest.skip("torch.compile has no compiler here")
    assert [law for law, status in found.items() if status == "failed"] == ["compiled-equals-eager"]


@pytest.mark.slow  # 4 seconds
def test_images_of_other_channels_are_tried_where_nothing_is_said_against_them() -> None:
    law = "views-are-as-announced"
    texts = {
        cls: {row["law"]: row["text"] for row in check_plugin(cls, fast=True).rows}[law]
        for cls in (Sound, SaysColoursAlone)
    }
    assert texts[Sound] == "images of 6 shapes, of 1, 4 channels, too"
    assert texts[SaysColoursAlone] == "images of 6 shapes"


class SeededBySample(Sound):
    """Draws by the sample's position alone: the same in every epoch and for every view."""

    def draw(self, random: SampleRandom, sizes: Tensor) -> list[Params]:
        fixed = SampleRandom(0, "mine", 0, random.indices)
        return [super().draw(fixed, sizes)[0]] * len(self.views)


@pytest.mark.slow  # 3 seconds
def test_views_that_never_change_are_noted() -> None:
    report = check_plugin(SeededBySample, fast=True)
    assert report.passed
    assert [note.partition(";")[0] for note in report.notes] == [
        "an image has the same views in every epoch",
        "views 0 and 1 of an image are the same",
    ]
    assert check_plugin(Sound, fast=True).notes == []
