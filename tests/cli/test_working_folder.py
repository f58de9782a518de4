"""A folder of a stranger runs nothing: modules that lie where a command is called are not imported,
by the command or by the processes that it starts."""

from __future__ import annotations

import ast
import os
import subprocess
import sys
from pathlib import Path

import pytest

import sslkit

PACKAGE = Path(sslkit.__file__).parent
TRAP = "from pathlib import Path\nPath(__file__).with_suffix('.ran').touch()\n"
RECIPE = """\
name: elsewhere
data: {name: synthetic, num_train: 32, num_test: 8, size: 8}
augmentation: {name: simclr, size: 8, blur: false}
backbone: {name: timm, model: test_resnet}
method: {name: simclr, head: {name: mlp, hidden_dim: 8, out_dim: 4}}
optimizer: {name: sgd, lr: 0.1}
train: {epochs: 1, batch_size: 16, device: cpu}
tracking: {name: none}
"""


@pytest.mark.slow  # 3 seconds
def test_every_process_is_started_without_the_working_folder() -> None:
    """Python puts it before all other places where `-m` stands without `-P`."""
    started = 0
    for path in PACKAGE.rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            words = [ast.unparse(each) for each in node.elts] if isinstance(node, ast.List) else []
            if "sys.executable" in words and "'-m'" in words:
                started += 1
                assert words[:3] == ["sys.executable", "'-P'", "'-m'"], f"{path}:{node.lineno}"
    assert started > 6


@pytest.mark.slow  # starts three interpreters
def test_ranks_import_nothing_from_the_working_folder(tmp_path: Path) -> None:
    names = ("torch", "sslkit", "json", "timm", "pydantic")
    for name in names:
        (tmp_path / f"{name}.py").write_text(TRAP)
    (tmp_path / "recipe.yaml").write_text(RECIPE)
    sslkit_command = Path(sys.executable).with_name("sslkit")
    done = subprocess.run(
        [sslkit_command, "run", "recipe.yaml", "--nproc", "2"],
        cwd=tmp_path, capture_output=True, text=True, timeout=300, check=False,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert [name for name in names if (tmp_path / f"{name}.ran").exists()] == []
