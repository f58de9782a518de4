"""What of a recipe depends on the machine or on the length of the run, written out, and the
`Compute` that comes of it."""

from __future__ import annotations

import shutil
import socket

import torch

from sslkit.api import RunFacts
from sslkit.environment_variables import CUBLAS_WORKSPACE_CONFIG
from sslkit.errors import RecipeError
from sslkit.nn.compute import Compute
from sslkit.nn.freed_memory import keep_freed_memory
from sslkit.parallel.world import World
from sslkit.recipe import Recipe, TrainConfig

LOG_STEPS = 50
_LEAST_POINTS = 10
"""Points of a curve, where the run has as many steps."""


def resolve(recipe: Recipe) -> Recipe:
    """The recipe with everything that depends on the machine written out (law 4)."""
    train = recipe.train
    augmentation = train.compile_augmentation
    settled = {
        "device": resolve_device(train.device),
        "compile": resolve_compile(train.compile),
        "compile_augmentation": resolve_compile(
            train.compile if augmentation is None else augmentation, "compile_augmentation"
        ),
    }
    resolved = train.model_copy(update=settled)
    check_cuda_graphs(resolved)
    return recipe.model_copy(update={"train": resolved})


def settle(recipe: Recipe, facts: RunFacts) -> Recipe:
    """The recipe with everything that depends on the length of the run written out (law 4)."""
    if recipe.train.log_every_steps is not None:
        return recipe
    steps = max(1, min(LOG_STEPS, facts.total_steps // _LEAST_POINTS))
    train = recipe.train.model_copy(update={"log_every_steps": steps})
    return recipe.model_copy(update={"train": train})


def resolve_device(name: str, field: str = "train.device") -> str:
    """The device that `auto` stands for here. field: what messages call it. Raises RecipeError for
    one that is not there."""
    available = {
        "cuda": torch.cuda.is_available(),
        "mps": torch.backends.mps.is_available(),
        "cpu": True,
    }
    if name == "auto":
        return next(device for device, there in available.items() if there)
    if not available[name]:
        there = ", ".join(device for device, ok in available.items() if ok)
        raise RecipeError(f"{field}: '{name}' is not available here; available: {there}")
    return name


def evaluation_compute(recipe: Recipe) -> Compute:
    """How a run evaluates; on the CPU where its device is not here. Changes no global setting."""
    try:
        device = resolve_device(recipe.train.device)
    except RecipeError:  # a run of another machine
        device = "cpu"
    return Compute(torch.device(device), recipe.evaluation_precision, recipe.train.channels_last)


def gpu_of_rank(world: World) -> int:
    """The GPU of this process among those that it sees: the one of its number on this machine, or
    the only one, where srun shows each process its own. All ranks call this together. Raises
    RecipeError where two processes would have one."""
    count = torch.cuda.device_count()
    index = world.local_rank if count > 1 else 0
    mine = torch.cuda.get_device_properties(index).uuid if index < count else None
    gpus = world.collect((socket.gethostname(), str(mine)))
    if len(set(gpus)) < len(gpus):
        raise RecipeError(
            f"train.device: {world.local_size} processes on this machine, and this one sees "
            f"{count} GPU{'' if count == 1 else 's'}, which do not suffice; start one for each GPU"
        )
    return index


def resolve_compile(setting: bool | str, field: str = "compile") -> bool:
    """Whether to compile. Raises RecipeError for `true` without a compiler; `if_available` becomes
    its outcome, which the resolved recipe records. field: what of `train` is resolved."""
    if setting is False:
        return False
    missing = _missing_compiler()
    if missing and setting is True:
        raise RecipeError(
            f"train.{field}: true, but {missing}; install one or set train.{field}=if_available"
        )
    return missing is None


def check_cuda_graphs(train: TrainConfig) -> None:
    """Raises RecipeError where graphs are asked for and cannot be. train: with its device and
    whether to compile resolved."""
    if not train.cuda_graphs:
        return
    if train.device != "cuda":
        raise RecipeError(
            f"train.cuda_graphs: true, but the device is {train.device}; set train.device=cuda or "
            "train.cuda_graphs=false"
        )
    if not train.compile:
        raise RecipeError(
            "train.cuda_graphs: true, but the backbone is not compiled; set train.compile=true or "
            "train.cuda_graphs=false"
        )


def _missing_compiler() -> str | None:
    if torch.cuda.is_available():
        from importlib.util import find_spec

        return None if find_spec("triton") else "triton is not installed"
    if any(shutil.which(name) for name in ("c++", "g++", "clang++")):
        return None
    return "no C++ compiler (c++, g++, clang++) is on the PATH"


def make_compute(train: TrainConfig, world: World) -> Compute:
    """The bundle of resolved settings (no `auto`, no `if_available`)."""
    device = torch.device(train.device)
    if device.type == "cuda" and world.size > 1:
        device = torch.device("cuda", gpu_of_rank(world))
        torch.cuda.set_device(device)
    if device.type == "mps" and train.precision != "fp32":
        raise RecipeError(
            f"train.precision: '{train.precision}' does not work on mps; set train.precision=fp32"
        )
    if train.deterministic:
        CUBLAS_WORKSPACE_CONFIG.set_default(":4096:8")  # cuBLAS asks for it
    torch.use_deterministic_algorithms(train.deterministic)
    if device.type == "cuda":
        torch.backends.cudnn.benchmark = not train.deterministic
    if device.type == "cpu":
        keep_freed_memory()
    return Compute(
        device,
        train.precision,
        train.channels_last,
        compiled=bool(train.compile),
        compiled_augmentation=bool(train.compile_augmentation),
        cuda_graphs=train.cuda_graphs,
        world=world,
        sharded=train.parallel == "fsdp" and world.group is not None,
    )
