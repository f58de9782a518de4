"""The laws of its kind; a table of them: sslkit plugins check newname"""

from __future__ import annotations

import pytest
from sslkit.testing import Check, checks

from sslkit_newname.dataset import SAMPLE


@pytest.mark.parametrize("check", checks("dataset:newname", path=str(SAMPLE)), ids=str)
def test_laws(check: Check) -> None:
    check()
