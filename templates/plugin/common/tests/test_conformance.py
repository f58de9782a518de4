"""The laws of its kind; a table of them: sslkit plugins check newname"""

from __future__ import annotations

import pytest
from sslkit.testing import Check, checks


@pytest.mark.parametrize("check", checks("newkind:newname"), ids=str)
def test_laws(check: Check) -> None:
    check()
