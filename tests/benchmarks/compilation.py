"""What torch.compile did behind an arm: graphs, graph breaks, and recompilations while timing."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch._dynamo.utils

from .arms import Run


class CountedRun:
    """A run whose `facts` say what was compiled in its first block and in all later ones."""

    def __init__(self, setup: Callable[[], Run]) -> None:
        self._run = setup()
        self._blocks = 0
        self.facts: dict[str, Any] = {"graphs": 0, "graph_breaks": 0, "recompilations": 0}

    def block(self) -> float:
        graphs, breaks = _counts()
        seconds = self._run.block()
        graphs_after, breaks_after = _counts()
        first = self._blocks == 0
        self.facts["graphs" if first else "recompilations"] += graphs_after - graphs
        self.facts["graph_breaks"] += breaks_after - breaks
        self._blocks += 1
        return seconds

    def close(self) -> None:
        self._run.close()


def counted(setup: Callable[[], Run]) -> Callable[[], Run]:
    """The same setup, with `CountedRun` around what it makes."""
    return lambda: CountedRun(setup)


def _counts() -> tuple[int, int]:
    """(graphs compiled, graph breaks) of this process so far."""
    counters = torch._dynamo.utils.counters
    return counters["stats"]["unique_graphs"], sum(counters["graph_break"].values())
