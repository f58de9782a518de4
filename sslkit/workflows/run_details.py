"""`sslkit runs show`: one run folder, its numbers, and how to go on with it. Imports no torch."""

from __future__ import annotations

import shlex
import socket
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sslkit.files import read_json
from sslkit.runs.endings import SavedScore, read_results
from sslkit.runs.folder import RunFolder, read_owner
from sslkit.runs.summary import RunSummary, summarise

from .run_list import run_to_json

_MOST_BYTES = 2 << 20


@dataclass(frozen=True)
class RunDetails:
    """Everything about one run that fits on a screen."""

    run: RunSummary
    scores: tuple[SavedScore, ...]
    """What the end measured; none before it."""
    next_steps: tuple[tuple[str, str], ...]
    """(what for, command)."""

    def to_json(self) -> dict[str, Any]:
        """Ready for JSON."""
        folder = RunFolder(self.run.path)
        files = (folder.report, folder.encoder, folder.metrics, folder.results, folder.traceback)
        return {
            **run_to_json(self.run),
            "recipe": dict(self.run.recipe),
            "environment": _told(self.run.environment),
            "scores": [_score_to_json(each) for each in self.scores],
            "saved": [path.name for path in self.run.checkpoints],
            "files": [path.name for path in files if path.is_file()],
            "next": [{"for": what, "command": command} for what, command in self.next_steps],
        }


def describe_run_folder(path: Path) -> RunDetails:
    """One run folder. Raises RunFolderError where there is none; what is damaged in it is its
    state."""
    folder = RunFolder.open(path)
    run = summarise(folder.path)
    scores = read_results(folder, _MOST_BYTES).scores if run.state == "finished" else ()
    return RunDetails(run, scores, tuple(find_next_steps(run)))


def find_next_steps(run: RunSummary) -> list[tuple[str, str]]:
    """What a person may do with a run in its state: (what for, command)."""
    home = _home(run)
    path = _typed(run.path, home)
    if run.state == "damaged":
        return []
    if run.state == "running":
        return _for_running(run)
    if run.state == "finished":
        return [*_for_finished(run, path, home), *_to_send(run, path)]
    steps = []
    if RunFolder(run.path).not_finite.is_file():
        steps.append(("see what began it", f"{home}sslkit run --resume {path} --dry-run"))
    if not RunFolder(run.path).recipe.is_file():
        return [("remove it", f"sslkit runs clean {_typed(run.path.parent)}")]
    several = f" --nproc {run.processes}" if run.processes > 1 else ""
    saved = run.checkpoints
    begin = f"go on from {saved[-1].stem}" if saved else "begin again (nothing was saved)"
    return [*steps, (begin, f"{home}sslkit run --resume {path}{several}")]


def _for_running(run: RunSummary) -> list[tuple[str, str]]:
    owner = read_owner(run.path)
    if owner is None or owner.host != socket.gethostname():
        return []
    return [("save and stop", f"kill -INT {owner.pid}")]


def _for_finished(run: RunSummary, path: str, home: str) -> list[tuple[str, str]]:
    if not RunFolder(run.path).recipe.is_file():  # weights that were measured, not trained
        return [("compare it", f"sslkit compare {path} OTHER")]
    return [
        ("read the report", f"less {_typed(RunFolder(run.path).report)}"),
        ("measure it again", f"{home}sslkit eval {path}"),
        ("use its backbone", f"{home}sslkit export {path} --format timm"),
        ("make it once more", f"{home}sslkit reproduce {path}"),
    ]


def _to_send(run: RunSummary, path: str) -> list[tuple[str, str]]:
    """For a run whose tracker was not told of its end."""
    try:
        tracked = read_json(RunFolder(run.path).tracker, _MOST_BYTES, inside=run.path)
        is_tracked = isinstance(tracked["run_id"], str) and tracked["closed"] is not True
    except (OSError, ValueError, KeyError, TypeError):
        return []
    return [("send what its tracker misses", f"sslkit sync {path}")] if is_tracked else []


def _home(run: RunSummary) -> str:
    """What goes to the folder that the run was started in, from which the paths of its recipe
    count; nothing where that is this one."""
    home = run.environment.get("working_directory")
    if not isinstance(home, str) or home == str(Path.cwd()) or not Path(home).is_dir():
        return ""
    return f"cd {shlex.quote(home)} && "


def _typed(path: Path, home: str = "") -> str:
    """A path as it can be typed into a shell, here or once it has gone home."""
    here = Path.cwd()
    is_here = not home and path.is_relative_to(here)
    return shlex.quote(str(path.relative_to(here) if is_here else path))


def _told(environment: Mapping[str, Any]) -> Mapping[str, Any]:
    """What is recorded of where the run ran, without the facts of its data."""
    return {key: value for key, value in environment.items() if key not in ("facts", "sources")}


def _score_to_json(score: SavedScore) -> dict[str, Any]:
    return {
        "evaluator": score.evaluator,
        "metric": score.metric,
        "values": {
            subject: None if found is None else found.to_json()
            for subject, found in score.values.items()
        },
    }
