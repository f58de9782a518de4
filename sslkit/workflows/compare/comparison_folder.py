"""The folder of a comparison: the plan, the runs that it makes, and the report.

    comparisons/<name>-<8 hex digits>/
      manifest.json  runs/  comparison.json  comparison.md  comparison.html  figures/

The run folders say what is done; the manifest says what was planned, so that another comparison
is not mixed in.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any

from filelock import FileLock

from sslkit.errors import RecipeError, RunFolderError
from sslkit.files import read_json, reason, remove_leftovers, write_atomic
from sslkit.recipe import load_recipe
from sslkit.report.comparison.page import comparison_pictures, html_page
from sslkit.report.comparison.side_by_side import Comparison
from sslkit.report.comparison.svg import Picture
from sslkit.report.comparison.tables import markdown
from sslkit.runs.endings import is_finished
from sslkit.runs.environment_file import read_environment
from sslkit.runs.folder import find_runs, lock_folder, new_run_id, sanitise_name, unlock_folder

from .arms import Identity, PlannedArm, identity

_MANIFEST = "manifest.json"
PAGE = "comparison.html"
"""The report of a comparison, for people."""
_XML_HEAD = '<?xml version="1.0" encoding="utf-8"?>\n'


class ComparisonFolder:
    """A comparison on disk, locked while this object is open."""

    def __init__(self, path: Path) -> None:
        self.path = path.absolute()
        self._lock: FileLock | None = None
        self.manifest: dict[str, Any] = {}

    @property
    def runs(self) -> Path:
        """Where the runs of this comparison are made."""
        return self.path / "runs"

    def log(self, arm: Identity, seed: int) -> Path:
        """Where the output of a run goes when several go on at once."""
        name, digits = arm
        return self.path / "logs" / f"{sanitise_name(name)}-{digits[:6]}-s{seed}.log"

    def __enter__(self) -> ComparisonFolder:
        try:
            self.path.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise RunFolderError(f"--out {self.path}: {error.strerror}") from error
        self._lock = lock_folder(self.path)
        remove_leftovers(self.path)
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if self._lock is not None:
            unlock_folder(self.path, self._lock)

    def adopt(self, arms: Sequence[Mapping[str, Any]]) -> None:
        """Takes up the plan, or checks that it is the one that the folder was made for.

        Raises RecipeError."""
        path = self.path / _MANIFEST
        if not path.exists():
            self._refuse_others()
            self.manifest = {"id": new_run_id(), "arms": list(arms), "groups": {}}
            return self.save()
        try:
            self.manifest = read_json(path, inside=self.path)
            theirs = {(arm["label"], arm["hash"]) for arm in self.manifest["arms"]}
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise RunFolderError(
                f"{path}: cannot be read ({reason(error)}); choose another --out"
            ) from error
        mine = {(arm["label"], arm["hash"]) for arm in arms}
        if theirs != mine:
            changed = ", ".join(sorted(f"{label} ({hash_})" for label, hash_ in theirs ^ mine))
            raise RecipeError(
                f"--out {self.path}: holds another comparison, which differs in {changed}; "
                "choose another folder"
            )
        return None

    def _refuse_others(self) -> None:
        """Raises RecipeError where files of something else lie here, such as those of a run."""
        if found := sorted(each.name for each in self.path.iterdir() if each.name[0] != "."):
            raise RecipeError(
                f"--out {self.path}: holds {found[0]} and no comparison; choose a new or an empty "
                "folder"
            )

    def save(self) -> None:
        """Makes the manifest last."""
        write_atomic(self.path / _MANIFEST, json.dumps(self.manifest, indent=2) + "\n")

    def finished(self) -> dict[tuple[Identity, int], Path]:
        """(identity, seed) -> folder of each run here that came to its end."""
        found = {}
        for run in find_runs(self.runs):
            if is_finished(run.path):
                recipe = load_recipe(run.recipe)
                files = read_environment(run.path).files
                found[identity(recipe, files), recipe.seed] = run.path
        return found


def write_comparison(
    comparison: Comparison, folder: Path, pictures: Sequence[Picture] = ()
) -> list[Path]:
    """Writes JSON, Markdown, the HTML page and figures; returns their paths. pictures: further
    figures, which need more than the numbers."""
    every = [*comparison_pictures(comparison), *pictures]
    document = comparison.to_json(folder)
    files = {
        **{f"figures/{picture.name}.svg": _XML_HEAD + picture.svg for picture in every},
        "comparison.json": json.dumps(document, indent=2, allow_nan=False) + "\n",
        "comparison.md": markdown(comparison, every),
        PAGE: html_page(comparison, every),
    }
    for name, text in files.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        write_atomic(path, text)
    return [folder / name for name in files]


def default_path(arms: Sequence[PlannedArm], runs: Iterable[Path]) -> Path:
    """Where a comparison goes that was given no folder: the same inputs give the same folder, so
    that the same command goes on with it. Seeds may be added later."""
    given = sorted(str(path.absolute()) for path in runs)
    text = json.dumps([sorted(arm.identity for arm in arms), given])
    digest = hashlib.sha256(text.encode()).hexdigest()[:8]
    first = arms[0].recipe.name if arms else "runs"
    return Path("comparisons") / f"{sanitise_name(first)}-{digest}"
