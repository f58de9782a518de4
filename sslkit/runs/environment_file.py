"""environment.json: what the recipe does not say about a run. Written as the run starts, and gone
on with at each resume."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sslkit.errors import CheckpointError
from sslkit.files import read_json, reason

from .folder import RunFolder

if TYPE_CHECKING:  # tables of runs read this file a thousand times, and need neither
    from pydantic import TypeAdapter

    from sslkit.api import RunFacts

_MOST_THREADS = 1 << 10
MAX_SIDE = 1 << 14
"""Pixels of a side, and channels, of images that a network may be built for."""
WATCHED = (
    "code.", "device", "files.", "hardware.cpu", "hardware.gpus", "packages.", "plugins.",
    "processes", "python", "torch.",
)  # fmt: skip
"""What of an environment may change the bits of a run."""
_NOT_WATCHED = ("hardware.cpu_", "packages.mlflow", "packages.pluggy", "packages.pydantic")


@dataclass(frozen=True)
class SavedEnvironment:
    """environment.json as it was read. The file may be a stranger's, or of another version: what
    is asked for is checked then."""

    path: Path
    """The run folder."""
    values: dict[str, Any]

    @property
    def facts(self) -> RunFacts:
        """The facts of the run. Raises CheckpointError."""
        return _facts(self.path, self.values)

    @property
    def data(self) -> dict[str, str]:
        """Split -> fingerprint; none where they are not recorded."""
        data = self.values.get("data")
        return dict(data) if isinstance(data, Mapping) else {}

    @property
    def files(self) -> dict[str, str]:
        """Field of the recipe -> digest of the file that it named; none where not recorded."""
        files = self.values.get("files")
        return dict(files) if isinstance(files, Mapping) else {}

    @property
    def forked_from(self) -> str | None:
        """Whose state the run started from; None for a run from the first step on."""
        found = self.values.get("forked_from")
        return None if found is None else str(found)

    @property
    def forked_at(self) -> int | None:
        """The step of that state; None where that is not recorded."""
        found = self.values.get("forked_at")
        return found if type(found) is int and found >= 0 else None

    @property
    def processes(self) -> int:
        """How many processes the run began with."""
        found = self.values.get("processes")
        return found if type(found) is int and found > 0 else 1

    @property
    def threads(self) -> int | None:
        """How many threads of torch each of them had; None where that is not recorded."""
        torch = self.values.get("torch")
        found = torch.get("num_threads") if isinstance(torch, Mapping) else None
        return found if type(found) is int and 0 < found <= _MOST_THREADS else None

    @property
    def launch(self) -> str | None:
        """Which launch of torchrun or SLURM began the run; None where it has no name."""
        found = self.values.get("launch")
        return None if found is None else str(found)

    @property
    def working_directory(self) -> str | None:
        """The folder that the paths of the recipe count from."""
        found = self.values.get("working_directory")
        return None if found is None else str(found)


def write_environment(
    folder: RunFolder,
    described: Mapping[str, Any],
    forked_from: str | None = None,
    forked_at: int | None = None,
) -> Path:
    """Writes environment.json of a run that starts. described: `environment.describe` and what a
    run adds to it. forked_from: whose state it starts from, and at which step that is."""
    origin = {"forked_from": forked_from, "forked_at": forked_at}
    return folder.write_json(folder.environment, {**described, **origin})


def read_environment(path: Path) -> SavedEnvironment:
    """environment.json of a run folder. Raises CheckpointError."""
    file = RunFolder(path).environment
    try:
        values = read_json(file, inside=path)
    except (OSError, ValueError) as error:
        raise CheckpointError(f"{path}: {file.name} cannot be read ({reason(error)})") from error
    if not isinstance(values, dict):
        raise CheckpointError(f"{path}: {file.name} holds no block of fields")
    return SavedEnvironment(path, values)


def add_resume(folder: RunFolder, step: int, now: Mapping[str, Any]) -> dict[str, list[Any]]:
    """Adds a resume at `step` to the history in environment.json. now: what `environment.describe`
    says here. Returns what may change the bits of the run: dotted name -> [before, now]."""
    saved = read_environment(folder.path).values
    changed = environment_changes(saved, now)
    entry = {"step": step, "time": f"{datetime.now(UTC):%Y-%m-%dT%H:%M:%SZ}", "changed": changed}
    history = saved.get("history")
    saved["history"] = [*(history if isinstance(history, list) else ()), entry]
    folder.write_json(folder.environment, saved)
    return changed


def environment_changes(saved: Mapping[str, Any], now: Mapping[str, Any]) -> dict[str, list[Any]]:
    """Dotted name -> [before, now] of what may change the bits of a run and differs since it was
    last gone on with. saved: an environment.json with its `history`; what it does not hold is
    compared with nothing."""
    before, after = {"processes": 1, **_flat(saved)}, _flat(now)  # 1: before it was recorded
    history = saved.get("history")
    for entry in history if isinstance(history, list) else ():
        changed = entry.get("changed") if isinstance(entry, Mapping) else None
        for name, pair in changed.items() if isinstance(changed, Mapping) else ():
            if isinstance(pair, list) and len(pair) == 2:
                before[str(name)] = pair[1]
    watched = (
        name for name in sorted(before.keys() & after.keys())
        if name.startswith(WATCHED) and not name.startswith(_NOT_WATCHED)
    )  # fmt: skip
    return {name: [before[name], after[name]] for name in watched if before[name] != after[name]}


def _flat(tree: Mapping[str, Any]) -> dict[str, Any]:
    """One level of blocks is enough here; lists stay whole."""
    found: dict[str, Any] = {}
    for key, value in tree.items():
        if isinstance(value, Mapping):
            found |= {f"{key}.{name}": item for name, item in value.items()}
        else:
            found[key] = value
    return found


def is_fork(path: Path) -> bool:
    """Whether a run started from another one's state: it is no repetition of its recipe."""
    try:
        return read_environment(path).forked_from is not None
    except CheckpointError:  # killed before it was written, and so before the first step
        return False


def _facts(path: Path, values: Mapping[str, Any]) -> RunFacts:
    from pydantic import ValidationError

    name = RunFolder(path).environment.name
    try:
        facts = _facts_adapter().validate_python(values["facts"])
    except KeyError as error:
        raise CheckpointError(
            f"{path}: {name} has no {error}; it is not of this version"
        ) from error
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        where = ".".join(map(str, first["loc"]))
        raise CheckpointError(
            f"{path}: the facts in {name} are not those of this version ({where}: {first['msg']})"
        ) from error
    sizes = [side for view in facts.views for side in view.shape(facts.channels)]
    if not sizes or not all(0 < number <= MAX_SIDE for number in sizes):
        raise CheckpointError(
            f"{path}: the facts in {name} are not those of this version (channels and sizes "
            f"{sizes})"
        )
    return facts


@cache
def _facts_adapter() -> TypeAdapter[RunFacts]:
    from pydantic import TypeAdapter

    from sslkit.api import RunFacts

    return TypeAdapter(RunFacts)
