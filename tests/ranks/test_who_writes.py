"""Rank 0 alone writes: of all files that a run of two processes opens, as the kernel saw it."""

from __future__ import annotations

import re
import subprocess
from pathlib import Path

import pytest

from tests.conftest import TINY
from tests.ranks.traced import Unavailable, Write, traced

ALLOWED = {
    r"/dev/null": "where the output of programs goes that nobody reads",
    r"/dev/shm/(sslkit-\w+|#\d+)": "images that the ranks of a machine share, in memory",
    r".*/[a-z0-9_]{8}": "Python tries a folder for temporary files, and removes the file at once",
    r".*/torchinductor_\w+(/.*)?": "torch's own cache of compiled code, made as it is imported",
    r".*/__pycache__(/.*)?": "Python's own cache of byte code, of modules that are new",
}
"""What other ranks may open for writing, and why."""
RECIPE = TINY.replace(
    "tracking: {name: none}",
    "tracking: {name: mlflow, tracking_uri: 'sqlite:///mlflow.db'}\n"
    "callbacks: [{name: augmented_views}]",
).replace("log_every_steps: 2", "log_every_steps: 2, checkpoint_every_steps: 4, online_probe: {}")


def assert_rank_0_alone_writes(writes: list[Write], folder: Path) -> None:
    odd = [
        each
        for each in writes
        if each.rank != 0
        and not any(
            re.fullmatch(allowed, each.path.removesuffix(" (deleted)")) for allowed in ALLOWED
        )
    ]
    assert odd == []
    in_folder = [each for each in writes if each.path.startswith(str(folder))]
    assert {each.rank for each in in_folder} == {0}


@pytest.mark.slow  # a minute for each: real interpreters, traced
@pytest.mark.timeout(600)
@pytest.mark.parametrize(
    "overrides",
    [
        [],
        [
            "train.parallel=fsdp", "train.checkpoint_in_background=true", "augmentation.size=32",
            "backbone={name: timm, model: test_vit, patch_size: 8}",
        ],
    ],
    ids=["whole", "parts"],
)  # fmt: skip
def test_rank_0_alone_has_files_open_for_writing(tmp_path: Path, overrides: list[str]) -> None:
    """A start, training, checkpoints, a stop by a signal, a resume, evaluation, files of a
    callback, and MLflow; in a repository whose index git would like to write."""
    folder = tmp_path / "work"
    folder.mkdir()
    (folder / "tiny.yaml").write_text(RECIPE)
    make_repository(folder)

    def is_saved() -> bool:
        return any(folder.glob("runs/*/checkpoints/step-00000004.pt"))

    changes = [word for each in overrides for word in ("-o", each)]
    words = "run", "tiny.yaml", "--nproc", "2", "--resume", "auto", *changes
    try:
        code, said, writes = traced(folder, *words, stop=is_saved)
    except Unavailable as reason:
        pytest.skip(str(reason))
    assert code == 1, said
    assert "stopped by SIGTERM" in said
    code, said, more = traced(folder, *words)
    assert code == 0, said

    writes += more
    (run,) = (folder / "runs").iterdir()
    by_first = {each.path for each in writes if each.rank == 0}
    assert {str(run / "metrics.jsonl"), str(folder / "mlflow.db")} <= by_first
    for name in ("step-00000004.pt", "step-00000018.pt", "results.json", "augmented_views.png"):
        assert any(path.endswith(name) for path in by_first), name
    assert any(each.rank == 1 for each in writes)  # what it does is seen
    assert_rank_0_alone_writes(writes, folder)


def make_repository(folder: Path) -> None:
    """Makes a folder one, with a file that is newer than the index says."""
    git = ["git", "-c", "user.name=a", "-c", "user.email=a@b.c"]
    for words in (["init", "-q"], ["add", "."], ["commit", "-q", "-m", "a"]):
        subprocess.run([*git, *words], cwd=folder, check=True)
    (folder / "tiny.yaml").touch()
