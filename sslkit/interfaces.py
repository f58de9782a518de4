"""The contracts under their first address, with their first names: a plugin written for them works
and is told, by a DeprecationWarning, where each lives now. New code imports from `sslkit.api`."""

from __future__ import annotations

import warnings
from typing import TYPE_CHECKING, Any

from sslkit import api

if TYPE_CHECKING:
    from sslkit.api import *  # noqa: F403

RENAMED = {
    "Dataset": "DataSource",
    "DatasetConfig": "DataSourceConfig",
    "Facts": "RunFacts",
    "ImageReader": "SplitReader",
    "Images": "EvaluationImages",
}
"""First name -> name in `sslkit.api`."""


def __getattr__(name: str) -> Any:
    new = RENAMED.get(name, name)
    if new not in api.__all__:
        raise AttributeError(f"module 'sslkit.interfaces' has no attribute '{name}'")
    warnings.warn(
        f"sslkit.interfaces.{name} is sslkit.api.{new} now; the old address goes with sslkit 0.3",
        DeprecationWarning,
        stacklevel=2,
    )
    return getattr(api, new)
