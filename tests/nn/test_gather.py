"""Losses on two and three real processes give what one process gives, gradients included."""

from __future__ import annotations

import importlib.util
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from sslkit.parallel.collectives import all_ranks

SCRIPT = Path(__file__).with_name("rank.py")
spec = importlib.util.spec_from_file_location("rank_of_test_gather", SCRIPT)
assert spec is not None
assert spec.loader is not None
rank = importlib.util.module_from_spec(spec)
spec.loader.exec_module(rank)

pytestmark = pytest.mark.skipif(
    not torch.distributed.is_available() or not torch.distributed.is_gloo_available(),
    reason="torch is built without gloo",
)


@pytest.fixture(scope="module")
def ranks(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    """What each of three ranks found."""
    folder = tmp_path_factory.mktemp("ranks")
    processes = [
        subprocess.Popen(
            [sys.executable, str(SCRIPT), str(number), "3", str(folder)],
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        for number in range(3)
    ]
    try:
        outputs = [process.communicate(timeout=100)[0] for process in processes]
    finally:
        for process in processes:
            process.kill()
    for process, output in zip(processes, outputs, strict=True):
        assert process.returncode == 0, output
    return [torch.load(folder / f"rank{number}.pt", weights_only=True) for number in range(3)]


@pytest.mark.parametrize("world", [2, 3])
@pytest.mark.parametrize("name", rank.CASES)
def test_gradients_equal_those_of_one_process(
    name: str, world: int, ranks: list[dict[str, Any]]
) -> None:
    expected = rank.evaluate(rank.CASES[name], 0, world, None)
    found = [result[f"{world}:{name}"] for result in ranks[:world]]
    mean = torch.stack([result["loss"] for result in found]).mean()
    torch.testing.assert_close(mean, expected["loss"], rtol=1e-12, atol=1e-12)
    assert expected["gradient"].abs().max() > 0.01
    for result in found:
        torch.testing.assert_close(result["gradient"], expected["gradient"], rtol=1e-10, atol=1e-10)


def test_uneven_shares_are_named_on_every_rank(ranks: list[dict[str, Any]]) -> None:
    for number, result in enumerate(ranks):
        assert "not [2, 3, 4] rows" in result["uneven"]
        assert f"here: ({2 + number}, 3)" in result["uneven"]


def test_one_process_has_no_group() -> None:
    assert all_ranks() is None
