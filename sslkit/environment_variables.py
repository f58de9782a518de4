"""Every environment variable that sslkit reads: its name, what it decides, and how it is read.

Nothing else in the package asks the environment for a variable of its own accord (a test holds
that), so this is the list that the page of the reference shows.
"""

from __future__ import annotations

import os
from dataclasses import dataclass

from .errors import RecipeError


@dataclass(frozen=True)
class Variable:
    """One environment variable."""

    name: str
    about: str
    """What it decides, in one sentence."""

    def text(self) -> str | None:
        """Its value; None where it is not set."""
        return os.environ.get(self.name)

    def number(self) -> int | None:
        """Its value as a whole number, 0 or more; None where it is not set, or is empty.

        Raises RecipeError for anything else."""
        text = self.text()
        if not text:
            return None
        if not (text.isascii() and text.isdecimal()):
            raise RecipeError(f"{self.name}: '{text[:40]}' is no whole number; correct or unset it")
        return int(text)

    def set_default(self, value: str) -> None:
        """Sets it for this process and those that it starts, where it is not set."""
        os.environ.setdefault(self.name, value)


WORLD_SIZE = Variable("WORLD_SIZE", "How many processes torchrun has started.")
RANK = Variable("RANK", "Which of them this one is, from 0.")
SLURM_NTASKS = Variable("SLURM_NTASKS", "How many tasks a SLURM job or step has.")
SLURM_STEP_NUM_TASKS = Variable(
    "SLURM_STEP_NUM_TASKS", "How many tasks srun has started; counts before SLURM_NTASKS."
)
SLURM_PROCID = Variable("SLURM_PROCID", "Which of them this one is, from 0.")

MLFLOW_TRACKING_URI = Variable(
    "MLFLOW_TRACKING_URI",
    "The MLflow store of runs whose recipe names none; default: mlflow.db in the working folder.",
)

CUBLAS_WORKSPACE_CONFIG = Variable(
    "CUBLAS_WORKSPACE_CONFIG",
    "Workspace of cuBLAS; `train.deterministic: true` sets it to :4096:8 where it is not set.",
)
CUDA_VISIBLE_DEVICES = Variable(
    "CUDA_VISIBLE_DEVICES",
    "The GPUs that there are; `compare --devices` counts among them and sets it for each run.",
)
MKL_NUM_THREADS = Variable("MKL_NUM_THREADS", "Threads of MKL; recorded alone.")
NVIDIA_TF32_OVERRIDE = Variable("NVIDIA_TF32_OVERRIDE", "Forbids TF32; recorded alone.")
OMP_NUM_THREADS = Variable(
    "OMP_NUM_THREADS",
    "Threads of torch on a CPU; `compare` divides the cores among its runs where it is not set.",
)
PYTORCH_ALLOC_CONF = Variable("PYTORCH_ALLOC_CONF", "torch's allocator; recorded alone.")
PYTORCH_CUDA_ALLOC_CONF = Variable(
    "PYTORCH_CUDA_ALLOC_CONF", "torch's allocator, by its older name; recorded alone."
)

RECORDED = (
    CUBLAS_WORKSPACE_CONFIG,
    CUDA_VISIBLE_DEVICES,
    MKL_NUM_THREADS,
    NVIDIA_TF32_OVERRIDE,
    OMP_NUM_THREADS,
    PYTORCH_ALLOC_CONF,
    PYTORCH_CUDA_ALLOC_CONF,
)
"""What may change results or speed: its values are kept in `environment.json`."""

ALL = (
    WORLD_SIZE,
    RANK,
    SLURM_NTASKS,
    SLURM_STEP_NUM_TASKS,
    SLURM_PROCID,
    MLFLOW_TRACKING_URI,
    *RECORDED,
)
