"""What the kit finds in components that are broken on purpose."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from sslkit.api import Component
from sslkit.testing import checks


def broken_laws(
    component: str | type[Component],
    *,
    recipe: Path | str | None = None,
    fast: bool = True,
    **fields: Any,
) -> list[str]:
    """The names of all laws that it breaks, of all that were tried. fast: without those that take
    more than about a second."""
    tried = checks(component, recipe=recipe, fast=fast, **fields)
    statuses = {check.law.name: check.outcome().status for check in tried}
    assert "passed" in statuses.values()
    return [name for name, status in statuses.items() if status == "failed"]
