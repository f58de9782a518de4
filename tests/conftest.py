"""What several areas of the tests share: a tiny real experiment, and where the repository is."""

from __future__ import annotations

import os
import signal
import sysconfig
import venv
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests import warm_python as warm

REPOSITORY = Path(__file__).parents[1]
SHARED_DATA = REPOSITORY.parent / "shared" / "data"

TINY = """\
name: tiny
data: {name: synthetic, num_train: 96, num_test: 48, size: 16}
augmentation: {name: simclr, size: 16, jitter_strength: 0.5, blur: false}
backbone: {name: timm, model: test_resnet, drop_path_rate: 0.2}
method:
  name: simclr
  head: {name: mlp, hidden_dim: 16, out_dim: 8}
optimizer: {name: adamw, lr: 1e-3, weight_decay: 0.01}
schedule: {name: cosine, warmup_epochs: 0.5}
train: {epochs: 3, batch_size: 16, device: cpu, loader_threads: 2, log_every_steps: 2}
evaluate:
  - {name: knn, k: 5, every_epochs: 1}
tracking: {name: none}
"""
"""Trains in seconds; 6 steps an epoch; drop path, so that library randomness matters."""


@pytest.fixture(autouse=True, scope="session")
def _own_cache(tmp_path_factory: pytest.TempPathFactory) -> None:
    """What commands keep of the schema stays out of the home of whoever runs the tests."""
    os.environ["XDG_CACHE_HOME"] = str(tmp_path_factory.mktemp("cache"))


@pytest.fixture(autouse=True, scope="session")
def _ctrl_c_works() -> None:
    """A shell starts background jobs with SIGINT ignored, which child processes inherit."""
    signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.fixture
def tiny(tmp_path: Path) -> Path:
    """The tiny recipe as a file; its runs go to `tmp_path / "runs"`."""
    path = tmp_path / "tiny.yaml"
    path.write_text(TINY + f"runs_dir: {tmp_path / 'runs'}\n")
    return path


@pytest.fixture
def only_run(tmp_path: Path) -> Callable[[], Path]:
    """The one run folder under `tmp_path / "runs"`."""

    def find() -> Path:
        (path,) = (tmp_path / "runs").iterdir()
        return path

    return find


@pytest.fixture(scope="session")
def warm_python() -> Iterator[str]:
    """Where an interpreter that has imported torch gives forks of itself."""
    with warm.serving() as server:
        yield server


@pytest.fixture
def environment(tmp_path: Path, warm_python: str) -> dict[str, str]:
    """Variables of a virtual environment that sees everything installed here, and into which a
    page, or a test, can install a package without touching anything else. Its `sslkit` and `pytest`
    have torch imported when they begin."""
    pytest.importorskip("hatchling")
    pytest.importorskip("editables")
    folder = tmp_path / "venv"
    venv.create(folder, with_pip=False, symlinks=True)
    own = sysconfig.get_path("purelib", vars={"base": str(folder)})
    parent = sysconfig.get_path("purelib")
    (Path(own) / "parent.pth").write_text(f"import site; site.addsitedir({parent!r})\n")
    cold = '#!/bin/sh\nexec "{}/bin/python" -m {} "$@"\n'
    tools = {tool: cold.format(folder, tool) for tool in ("pip", "mypy")}
    tools["sslkit"] = warm.script(warm_python, folder, "sslkit.cli")
    tools["pytest"] = warm.script(warm_python, folder, "pytest")
    for tool, text in tools.items():
        (folder / "bin" / tool).write_text(text)
        (folder / "bin" / tool).chmod(0o755)
    ruff = Path(sysconfig.get_path("scripts")) / "ruff"
    if ruff.exists():  # a script like the others would find itself
        (folder / "bin" / "ruff").symlink_to(ruff)
    variables = {key: value for key, value in os.environ.items() if not key.startswith("MLFLOW_")}
    return {
        **variables,
        "PATH": f"{folder}/bin{os.pathsep}{os.environ['PATH']}",
        "VIRTUAL_ENV": str(folder),
        "PIP_NO_DEPS": "1",
        "PIP_NO_INDEX": "1",
        "PIP_NO_BUILD_ISOLATION": "0",  # pip reads this as "without isolation"
        "PIP_DISABLE_PIP_VERSION_CHECK": "1",
    }
