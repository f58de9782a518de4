"""The contracts under their first address, with their first names: a plugin written for them works
and is told, by a DeprecationWarning, where each lives now. New code imports from `sslkit.api`."""

from __future__ import annotations

from typing import TYPE_CHECKING

from sslkit.deprecation import moved_names

if TYPE_CHECKING:
    from sslkit.api import *  # noqa: F403

RENAMED = {
    "Dataset": "DataSource",
    "DatasetConfig": "DataSourceConfig",
    "Augmentation": "ImageAugmentation",
    "Evaluator": "FeatureEvaluator",
    "Facts": "RunFacts",
    "Images": "EvaluationImages",
    "Subject": "FeatureInput",
}
"""First name -> name in `sslkit.api`."""

REMOVED: dict[str, str] = {}
"""First name -> what to write in its place."""

__getattr__ = moved_names("sslkit.interfaces", "sslkit.api", RENAMED, REMOVED)
