"""The conformance kit: the laws of every kind of component, tried on one that you wrote.

In the tests of a package:

    import pytest
    from sslkit.testing import Check, checks

    @pytest.mark.parametrize("check", checks("loss:mine"), ids=str)
    def test_laws(check: Check) -> None:
        check()

From a terminal: `sslkit plugins check mine`.

Not here: what every run tries before its first step, and in it (`experiment/trials.py`,
`engine/contract.py`).
"""

from __future__ import annotations

from .kit import KINDS_OF_LAWS, Report, check_plugin, checks
from .laws import Check, Law, LawBrokenError, Laws, Outcome, law, refuse
from .packages import SMALL_IMAGES, PackageCheck, package_checks

__all__ = [
    "KINDS_OF_LAWS",
    "SMALL_IMAGES",
    "Check",
    "Law",
    "LawBrokenError",
    "Laws",
    "Outcome",
    "PackageCheck",
    "Report",
    "check_plugin",
    "checks",
    "law",
    "package_checks",
    "refuse",
]
