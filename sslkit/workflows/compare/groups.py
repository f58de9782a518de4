"""A comparison in the tracker: one group (in MLflow a parent run) for each store that the recipes
name. A tracker that is away never stops a comparison."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from sslkit.api import Slot, Tracker
from sslkit.engine.display import Display
from sslkit.errors import failure_of

from .comparison_folder import ComparisonFolder


class Groups:
    """Opens groups as they are needed; the manifest remembers them."""

    def __init__(self, folder: ComparisonFolder, display: Display) -> None:
        self._folder = folder
        self._display = display
        self._key: str = folder.manifest["id"]
        self._known: dict[str, Mapping[str, Any]] = folder.manifest["groups"]

    def overrides(self, tracking: Slot[Tracker]) -> list[str]:
        """What puts a run with this tracker into the group of its comparison."""
        name = _name(tracking)
        if name not in self._known:
            try:
                fields = tracking.build().open_group(self._key, self._folder.path.name)
            except Exception as error:  # whatever a service raises: the comparison goes on
                self._warn(tracking, error)
                return []
            self._known[name] = fields
            self._folder.save()
        return [f"tracking.{key}={json.dumps(value)}" for key, value in self._known[name].items()]

    def close(self, trackings: Iterable[Slot[Tracker]], artifacts: Sequence[Path]) -> None:
        """Uploads the report to the groups of these trackers."""
        for name, tracking in {_name(each): each for each in trackings}.items():
            if not self._known.get(name):
                continue
            try:
                tracking.build().close_group(self._key, artifacts)
            except Exception as error:
                self._warn(tracking, error)

    def _warn(self, tracking: Slot[Tracker], error: Exception) -> None:
        self._display.message(
            f"warning: tracking: {tracking.name} did not take the comparison "
            f"({failure_of(error)}); its folder is complete all the same"
        )


def _name(tracking: Slot[Tracker]) -> str:
    """What tells trackers with different fields apart."""
    return json.dumps(tracking.dump(), sort_keys=True)
