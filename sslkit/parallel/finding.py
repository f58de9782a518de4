"""The world that this process was started in. Cheap to import: torch.distributed is only where
there are several processes."""

from __future__ import annotations

import sys

from sslkit.errors import RankError, RecipeError

from .launch import read_launch
from .world import OneProcess, World


def find_world() -> World:
    """The world that this process was started in, once the others are met. Raises RecipeError
    where the environment contradicts itself, RankError where others do not come or have met
    already, through `torch.distributed.init_process_group` or a trainer."""
    launch = read_launch()
    if launch is None or launch.size == 1:
        return OneProcess()
    if (met := sys.modules.get("torch.distributed")) is not None and met.is_initialized():
        raise RankError(
            "torch.distributed is initialised already, by a trainer or this program: call "
            "find_world in its place, or give losses group=sslkit.parallel.collectives.all_ranks()"
        )
    from .processes import Processes

    return Processes(launch)


def is_one_of_several() -> bool:
    """Whether other processes were started beside this one."""
    launch = read_launch()
    return launch is not None and launch.size > 1


def require_one_process() -> None:
    """Raises RecipeError where this process is one of several: they would write the same files."""
    launch = read_launch()
    if launch is not None and launch.size > 1:
        raise RecipeError(
            f"{launch.launcher} has started {launch.size} processes, and only `sslkit run` "
            "divides its work among them; start this command once"
        )
