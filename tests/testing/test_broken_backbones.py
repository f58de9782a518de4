"""Each fault of a backbone breaks the one law that is meant for it, and no other."""

from __future__ import annotations

from pathlib import Path

import pytest
from broken_backbones import BROKEN, BROKEN_WHERE_INSTALLED, Sound
from broken_tokens import BROKEN_TOKENS, SoundTokens

from sslkit import installed_components
from sslkit.api import Backbone
from sslkit.testing import check_plugin
from tests.host.plugin_distributions import write_distribution

BROKEN = BROKEN | BROKEN_TOKENS
SOUND = (Sound, SoundTokens)


@pytest.mark.parametrize("component", [*SOUND, *BROKEN], ids=lambda found: found.__name__)
def test_a_fault_breaks_its_law_alone(component: type[Backbone]) -> None:
    rows = check_plugin(component, fast=True).rows
    found = {row["law"]: row["text"] for row in rows if row["status"] == "failed"}
    law = BROKEN.get(component)
    assert list(found) == ([law] if law else []), found


@pytest.mark.slow  # exports by torch
@pytest.mark.parametrize(
    "component", [Sound, *BROKEN_WHERE_INSTALLED], ids=lambda found: found.__name__
)
def test_a_fault_of_an_installed_one_breaks_its_law_alone(
    component: type[Backbone], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    hooks = f"""
        from sslkit import hookimpl

        @hookimpl
        def register_backbones():
            return {{"tried": "{component.__module__}:{component.__name__}"}}
        """
    module = f"tried_{component.__name__.lower()}"  # a module is imported once
    write_distribution(tmp_path, "tried", {f"{module}.py": hooks}, f"tried = {module}")
    monkeypatch.syspath_prepend(str(tmp_path))
    installed_components.cache_clear()  # which a process reads once
    try:
        rows = check_plugin("backbone:tried").rows
    finally:
        installed_components.cache_clear()
    found = {row["law"]: row["text"] for row in rows if row["status"] == "failed"}
    law = BROKEN_WHERE_INSTALLED.get(component)
    assert list(found) == ([law] if law else []), found
