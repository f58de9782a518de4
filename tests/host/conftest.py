"""Fixtures that install small distributions for one test."""

from __future__ import annotations

import sys
from collections.abc import Iterator, Mapping
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent))  # the helper modules beside this file

from plugin_distributions import Install, write_distribution


@pytest.fixture
def site(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """An empty folder on `sys.path`; what is imported from it is forgotten afterwards."""
    folder = tmp_path / "site"
    folder.mkdir()
    monkeypatch.syspath_prepend(str(folder))
    yield folder
    for module in list(sys.modules.values()):
        origin = getattr(module, "__file__", None) or ""
        if origin.startswith(str(folder)):
            sys.modules.pop(module.__name__, None)


@pytest.fixture
def install(site: Path) -> Install:
    """install(name, files, entry_points, version="1.0") -> the site folder."""

    def _install(
        name: str, files: Mapping[str, str], entry_points: str, version: str = "1.0"
    ) -> Path:
        write_distribution(site, name, files, entry_points, version)
        return site

    return _install
