"""Trees of sslkit: where its packages are, which commit it is, and how its command is called."""

from __future__ import annotations

import hashlib
import os
import subprocess
import sys
import tempfile
import tomllib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

THREADS = 1
"""Of torch and the libraries under it: sums depend on how many there are."""
_LEFT_OUT = (
    "PYTHON", "SSLKIT_", "MLFLOW_", "OMP_", "MKL_", "OPENBLAS_", "TORCH", "PYTORCH_",
    "CUDA_", "GIT_",
)  # fmt: skip
_WHERE = """
import importlib, importlib.util, sys
print(importlib.import_module("sslkit").__file__)
for name in sys.argv[1:]:
    spec = importlib.util.find_spec(name)
    print(spec.origin if spec else None)
"""


class BitsError(Exception):
    """What the user can mend, in one line."""


@dataclass(frozen=True)
class Tree:
    """A checkout of the repository, whose own packages are run: not those installed beside it."""

    root: Path

    @property
    def sources(self) -> list[Path]:
        """Folders that packages are imported from."""
        return [self.root, *sorted(self.root.glob("plugins/*/src"))]

    def environment(self, scratch: Path) -> dict[str, str]:
        """The variables of a process that imports this tree first.

        scratch: an empty folder, which receives the metadata of the tree's packages, so that its
        plugins are found by its own entry points and not by those that are installed."""
        for pyproject in (
            self.root / "pyproject.toml",
            *self.root.glob("plugins/*/pyproject.toml"),
        ):
            _write_metadata(pyproject, scratch)
        kept = {k: v for k, v in os.environ.items() if not k.startswith(_LEFT_OUT)}
        return kept | {
            "PYTHONPATH": os.pathsep.join(map(str, [scratch, *self.sources])),
            "OMP_NUM_THREADS": str(THREADS),
            "MKL_NUM_THREADS": str(THREADS),
            "CUDA_VISIBLE_DEVICES": "",
        }

    def check_imports(self, environment: dict[str, str], cwd: Path) -> Path:
        """Where `sslkit` is imported from. Raises BitsError where that, or a plugin of the tree,
        is not in the tree."""
        plugins = [
            path.parent.name
            for source in self.sources[1:]
            for path in sorted(source.glob("*/__init__.py"))
        ]
        done = subprocess.run(
            [sys.executable, "-c", _WHERE, *plugins],
            env=environment, cwd=cwd, capture_output=True, text=True, check=False,
        )  # fmt: skip
        if done.returncode:
            raise BitsError(f"{self.root}: cannot be imported: {last_line(done.stderr)}")
        for place in done.stdout.splitlines():
            if not Path(place).resolve().is_relative_to(self.root.resolve()):
                raise BitsError(f"{self.root}: {place} is imported instead of what is there")
        return Path(done.stdout.splitlines()[0])

    def digest(self) -> str:
        """SHA-256 of what can change the bits of a run."""
        digest = hashlib.sha256()
        for place in (self.root / "recipes", self.root / "sslkit", *self.sources[1:]):
            for path in sorted(place.rglob("*")):
                if path.suffix in (".py", ".yaml") and path.is_file():
                    digest.update(f"{path.relative_to(self.root)}\0".encode())
                    digest.update(path.read_bytes())
        return digest.hexdigest()

    def commit(self) -> str:
        """The full hash of HEAD, with "+changes" where the files differ from it."""
        head = git(self.root, "rev-parse", "HEAD")
        changed = git(self.root, "status", "--porcelain", "--", "sslkit", "plugins", "recipes")
        return f"{head}+changes" if changed else head


@contextmanager
def checked_out(repository: Path, revision: str) -> Iterator[Tree]:
    """A worktree of a commit in a temporary folder, which is removed at the end."""
    commit = git(repository, "rev-parse", "--verify", "--quiet", f"{revision}^{{commit}}")
    with tempfile.TemporaryDirectory(prefix="sslkit-bits-") as folder:
        place = Path(folder).resolve() / "tree"
        git(repository, "worktree", "add", "--quiet", "--detach", str(place), commit)
        try:
            yield Tree(place)
        finally:
            git(repository, "worktree", "remove", "--force", str(place))


def git(repository: Path, *arguments: str) -> str:
    """What git prints. Raises BitsError where it fails."""
    environment = {k: v for k, v in os.environ.items() if not k.startswith("GIT_")}
    done = subprocess.run(
        ["git", "-C", str(repository), *arguments],
        env=environment, capture_output=True, text=True, check=False,
    )  # fmt: skip
    if done.returncode:
        reason = last_line(done.stderr) or "no such commit"
        raise BitsError(f"git {' '.join(arguments)}: {reason}")
    return done.stdout.strip()


def last_line(text: str) -> str:
    """The last line that holds something; empty where none does."""
    return next((line for line in reversed(text.splitlines()) if line.strip()), "")


def _write_metadata(pyproject: Path, folder: Path) -> None:
    """What an installed distribution of this project would say of itself."""
    project = tomllib.loads(pyproject.read_text(encoding="utf-8"))["project"]
    name, version = project["name"], project.get("version", "0")
    place = folder / f"{name.replace('-', '_')}-{version}.dist-info"
    place.mkdir()
    (place / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n")
    lines = []
    for group, points in project.get("entry-points", {}).items():
        lines += [f"[{group}]", *(f"{key} = {value}" for key, value in points.items())]
    (place / "entry_points.txt").write_text("\n".join(lines) + "\n")
