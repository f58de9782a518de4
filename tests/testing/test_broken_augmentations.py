"""Each fault of an augmentation breaks the one law that is meant for it, and no other."""

from __future__ import annotations

import pytest
from broken_augmentations import BROKEN, OtherWhereCompiled, Sound

from sslkit.api import ImageAugmentation
from sslkit.testing import check_plugin


@pytest.mark.parametrize("component", [Sound, *BROKEN], ids=lambda found: found.__name__)
def test_a_fault_breaks_its_law_alone(component: type[ImageAugmentation]) -> None:
    rows = check_plugin(component, fast=True).rows
    found = {row["law"]: row["text"] for row in rows if row["status"] == "failed"}
    law = BROKEN.get(component)
    assert list(found) == ([law] if law else []), found


@pytest.mark.slow  # compiles
def test_other_views_where_compiled_break_their_law_alone() -> None:
    rows = check_plugin(OtherWhereCompiled).rows
    found = {row["law"]: row["status"] for row in rows if row["status"] != "passed"}
    if found.get("compiled-equals-eager") == "skipped":
        pytest.skip("torch.compile has no compiler here")
    assert [law for law, status in found.items() if status == "failed"] == ["compiled-equals-eager"]
