"""What a block of a page may need before it: `<!-- run, given: NAME -->` puts it into the folder
where the page is executed, anew for each block.

Commands stay as the page shows them. What is small are the files that they meet: the recipe at
`recipes/quickstart.yaml` has the steps of the shipped one and a smaller network, and CIFAR-10 a few
drawn images."""

from __future__ import annotations

import io
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pyarrow as pa
import pytest
import yaml
from pages import REPOSITORY
from PIL import Image
from pyarrow import parquet

from sslkit.builtin.sources.synthetic import Synthetic
from sslkit.recipe import find_recipe

RUN = Path("runs/quickstart-20261122-181243-3556")
"""The run folder of the pages."""
ONE_THREAD = {"OMP_NUM_THREADS": "1"}
"""Small tensors are faster on one, and the machine may be shared."""
LAST_BUT_ONE = "checkpoints/step-00000319.pt"
"""Of the two checkpoints that the quickstart keeps, of 330 steps."""


def small_quickstart() -> str:
    """The quickstart with images, backbone and head so small that all its steps take seconds,
    without its slowest evaluator and without MLflow."""
    recipe = yaml.safe_load(find_recipe("quickstart").read_text(encoding="utf-8"))
    recipe["data"]["size"] = recipe["augmentation"]["size"] = 16
    recipe["backbone"]["model"] = "test_resnet"
    recipe["method"]["head"]["hidden_dim"] = 16
    recipe["train"]["precision"] = "fp32"
    recipe["evaluate"] = [each for each in recipe["evaluate"] if each["name"] != "linear"]
    recipe["tracking"] = {"name": "none"}
    return yaml.safe_dump(recipe, sort_keys=False)


class States:
    """Makes each state when it is first asked for, and copies it wherever it is needed."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._makers: dict[str, Callable[[Path], None]] = {
            "short recipe": _write_recipe,
            "finished run": _finish_run,
            "stopped run": _stop_run,
            "CIFAR-10": _write_cifar,
            "SLURM": _write_slurm,
        }

    def give(self, name: str, folder: Path) -> None:
        """Puts a state into a folder, in place of what is there under the same names."""
        assert name in self._makers, f"given: {name}; valid is {', '.join(self._makers)}"
        made = self._folder / name.replace(" ", "_")
        if not made.exists():
            begun = made.with_suffix(".begun")
            begun.mkdir()  # refused where it could not be made before
            self._makers[name](begun)
            begun.rename(made)
        shutil.rmtree(folder / RUN, ignore_errors=True)
        shutil.copytree(made, folder, dirs_exist_ok=True)


@pytest.fixture(scope="session")
def states(tmp_path_factory: pytest.TempPathFactory) -> States:
    """For all pages that a process executes."""
    return States(tmp_path_factory.mktemp("states"))


def _write_recipe(folder: Path) -> None:
    (folder / "recipes").mkdir()
    (folder / "recipes" / "quickstart.yaml").write_text(small_quickstart(), encoding="utf-8")


def _start_run(folder: Path) -> subprocess.Popen[bytes]:
    _write_recipe(folder)
    command = [sys.executable, "-m", "sslkit", "run", "recipes/quickstart.yaml"]
    environment = {key: value for key, value in os.environ.items() if "MLFLOW" not in key}
    environment |= ONE_THREAD
    return subprocess.Popen(
        command,
        cwd=folder,
        env=environment,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )


def _finish_run(folder: Path) -> None:
    assert _start_run(folder).wait() == 0
    _take_name_of_pages(folder)


def _stop_run(folder: Path) -> None:
    """By `kill -9`, between a checkpoint and the end of its evaluation."""
    process = _start_run(folder)
    while not list(folder.glob(f"runs/*/{LAST_BUT_ONE}")):
        assert process.poll() is None
        time.sleep(0.02)
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert not list(folder.glob("runs/*/results.json"))
    _take_name_of_pages(folder)


def _take_name_of_pages(folder: Path) -> None:
    (run,) = (folder / "runs").iterdir()
    run.rename(folder / RUN)


def _write_cifar(folder: Path) -> None:
    """Drawn scenes in the layout of CIFAR-10's files, in the place that the recipes name."""
    (folder / "data" / "cifar10").mkdir(parents=True)
    source = Synthetic(Synthetic.Config(num_train=200, num_test=64, size=32))
    for split in ("train", "test"):
        reader = source.open(split)
        images = [{"bytes": _png(reader.read(i)), "path": f"{i}.png"} for i in range(len(reader))]
        table = pa.table({"img": images, "label": pa.array(reader.labels.tolist())})
        parquet.write_table(table, folder / "data" / "cifar10" / f"{split}.parquet")


def _png(pixels: object) -> bytes:
    data = io.BytesIO()
    Image.fromarray(pixels).save(data, "PNG")  # type: ignore[arg-type]
    return data.getvalue()


def _write_slurm(folder: Path) -> None:
    """The recipes of the repository, and a program that takes a batch file as SLURM's sbatch does,
    and reads it without running it."""
    shutil.copytree(REPOSITORY / "recipes", folder / "recipes")
    (folder / "bin").mkdir()
    program = folder / "bin" / "sbatch"
    program.write_text(
        '#!/bin/sh\nset -e\ncat "$@" > batch\ngrep -q "^srun" batch\nbash -n batch\n'
    )
    program.chmod(0o755)
