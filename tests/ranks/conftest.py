"""Machines for tests of several processes: two nodes, and SLURM. Skipped with the reason where this
machine cannot have them."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.ranks import slurm as slurm_daemons
from tests.ranks import two_nodes


@pytest.fixture
def nodes(tmp_path: Path) -> Iterator[tuple[two_nodes.Node, two_nodes.Node]]:
    """Two nodes with a cable between them."""
    folder = tmp_path / "nodes"
    folder.mkdir()
    try:
        with two_nodes.two_nodes(folder) as both:
            yield both
    except two_nodes.Unavailable as reason:
        pytest.skip(str(reason))


@pytest.fixture(scope="module")
def slurm(tmp_path_factory: pytest.TempPathFactory) -> Iterator[slurm_daemons.Slurm]:
    """SLURM with two nodes of two processors."""
    try:
        with slurm_daemons.slurm(tmp_path_factory.mktemp("slurm"), nodes=2, cpus=2) as daemons:
            yield daemons
    except slurm_daemons.Unavailable as reason:
        pytest.skip(str(reason))
