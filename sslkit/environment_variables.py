"""Every environment variable that sslkit reads: its name, what it decides, and how it is read.

Nothing else in the package asks the environment for a variable of its own accord (a test holds
that), so this is the list that the page of the reference shows.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass

from .errors import RecipeError


@dataclass(frozen=True)
class Variable:
    """One environment variable."""

    name: str
    about: str
    """What it decides, in one sentence."""

    def text(self, environ: Mapping[str, str] | None = None) -> str | None:
        """Its value, in the environment of this process or in that given; None where not set."""
        return (os.environ if environ is None else environ).get(self.name)

    def number(self, environ: Mapping[str, str] | None = None) -> int | None:
        """Its value as a whole number, 0 or more; None where it is not set, or is empty.

        Raises RecipeError for anything else."""
        text = self.text(environ)
        if not text:
            return None
        if not (text.isascii() and text.isdecimal() and len(text) <= 18):
            raise RecipeError(f"{self.name}: '{text[:40]}' is no whole number; correct or unset it")
        return int(text)

    def set(self, value: str) -> None:
        """Sets it for this process and those that it starts."""
        os.environ[self.name] = value

    def set_default(self, value: str) -> None:
        """Sets it for this process and those that it starts, where it is not set."""
        os.environ.setdefault(self.name, value)


WORLD_SIZE = Variable("WORLD_SIZE", "How many processes torchrun has started.")
RANK = Variable("RANK", "Which of them this one is, from 0.")
LOCAL_WORLD_SIZE = Variable("LOCAL_WORLD_SIZE", "How many of them are on this machine.")
LOCAL_RANK = Variable("LOCAL_RANK", "Which of those this one is, from 0: the number of its device.")
MASTER_ADDR = Variable(
    "MASTER_ADDR", "The machine of rank 0; under srun it counts before what SLURM says."
)
MASTER_PORT = Variable(
    "MASTER_PORT", "The port there; under srun, where it is not set, it follows from the job."
)
TORCHELASTIC_RUN_ID = Variable("TORCHELASTIC_RUN_ID", "torchrun's name of the job.")
TORCHELASTIC_RESTART_COUNT = Variable(
    "TORCHELASTIC_RESTART_COUNT", "How often torchrun has started the processes anew."
)

SLURM_JOB_ID = Variable("SLURM_JOB_ID", "The number of the job, which a requeue keeps.")
SLURM_NTASKS = Variable("SLURM_NTASKS", "How many tasks a SLURM job has.")
SLURM_JOB_NUM_NODES = Variable("SLURM_JOB_NUM_NODES", "How many machines it has.")
SLURM_RESTART_COUNT = Variable("SLURM_RESTART_COUNT", "How often it was requeued.")
SLURM_STEP_ID = Variable("SLURM_STEP_ID", "Which srun of the job has started this process.")
SLURM_STEP_NUM_TASKS = Variable("SLURM_STEP_NUM_TASKS", "How many tasks that srun has started.")
SLURM_PROCID = Variable("SLURM_PROCID", "Which of them this one is, from 0.")
SLURM_STEP_TASKS_PER_NODE = Variable(
    "SLURM_STEP_TASKS_PER_NODE", "How many of them are on each machine, like `2(x3),1`."
)
SLURM_LOCALID = Variable(
    "SLURM_LOCALID", "Which of those on this machine this one is, from 0: the number of its device."
)
SLURM_NODEID = Variable("SLURM_NODEID", "Which of the machines this one is, from 0.")
SLURM_STEP_NODELIST = Variable(
    "SLURM_STEP_NODELIST", "The machines, like `node[01-03,7],x1`; rank 0 is on the first."
)
SLURM_DISTRIBUTION = Variable(
    "SLURM_DISTRIBUTION", "In which order tasks lie on machines; `arbitrary` needs MASTER_ADDR."
)

OMPI_COMM_WORLD_SIZE = Variable(
    "OMPI_COMM_WORLD_SIZE", "How many processes Open MPI's mpirun has started; refused above 1."
)
PMI_SIZE = Variable("PMI_SIZE", "How many another mpirun has started; refused above 1.")

SSLKIT_RANK_TIMEOUT = Variable(
    "SSLKIT_RANK_TIMEOUT",
    "Seconds that the processes of a run wait for each other in a step; default: 45.",
)
SSLKIT_PARENT_LINE = Variable(
    "SSLKIT_PARENT_LINE",
    "Set by `sslkit run --nproc` for its processes: how it tells them that one of them is gone.",
)
TORCH_CPP_LOG_LEVEL = Variable(
    "TORCH_CPP_LOG_LEVEL",
    "What torch's C++ code prints; `sslkit run` on several processes sets it to ERROR where it is "
    "not set: a process that is gone is said in one line.",
)

SSLKIT_COMPLETE = Variable(
    "_SSLKIT_COMPLETE", "Set by the shell at a TAB: which shell asks for completions."
)
COMP_WORDS = Variable("COMP_WORDS", "Set by bash at a TAB: the words of the line.")
COMP_CWORD = Variable("COMP_CWORD", "Set by bash at a TAB: the number of the word to complete.")
TYPER_COMPLETE_ARGS = Variable(
    "_TYPER_COMPLETE_ARGS", "Set by zsh and fish at a TAB: the line up to the cursor."
)
TYPER_COMPLETE_FISH_ACTION = Variable(
    "_TYPER_COMPLETE_FISH_ACTION",
    "Set by fish at a TAB: whether it wants words, or to know of any.",
)
XDG_CACHE_HOME = Variable(
    "XDG_CACHE_HOME", "Where the schema for completions is kept; default: ~/.cache."
)

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
    LOCAL_WORLD_SIZE,
    LOCAL_RANK,
    MASTER_ADDR,
    MASTER_PORT,
    TORCHELASTIC_RUN_ID,
    TORCHELASTIC_RESTART_COUNT,
    SLURM_JOB_ID,
    SLURM_NTASKS,
    SLURM_JOB_NUM_NODES,
    SLURM_RESTART_COUNT,
    SLURM_STEP_ID,
    SLURM_STEP_NUM_TASKS,
    SLURM_PROCID,
    SLURM_STEP_TASKS_PER_NODE,
    SLURM_LOCALID,
    SLURM_NODEID,
    SLURM_STEP_NODELIST,
    SLURM_DISTRIBUTION,
    OMPI_COMM_WORLD_SIZE,
    PMI_SIZE,
    SSLKIT_RANK_TIMEOUT,
    SSLKIT_PARENT_LINE,
    TORCH_CPP_LOG_LEVEL,
    SSLKIT_COMPLETE,
    COMP_WORDS,
    COMP_CWORD,
    TYPER_COMPLETE_ARGS,
    TYPER_COMPLETE_FISH_ACTION,
    XDG_CACHE_HOME,
    MLFLOW_TRACKING_URI,
    *RECORDED,
)


def rank_timeout_s() -> int:
    """See SSLKIT_RANK_TIMEOUT."""
    return SSLKIT_RANK_TIMEOUT.number() or 45
