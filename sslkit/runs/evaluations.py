"""What `sslkit eval` keeps: a file in the folder of the run that it measured, or a folder of its
own for weights that were trained elsewhere."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from .endings import write_results
from .folder import RunFolder, new_run_id


def write_evaluation(folder: RunFolder, document: Mapping[str, Any]) -> Path:
    """Keeps what was measured of a run in its folder, beside earlier evaluations."""
    return folder.write_json(folder.evaluations / f"{new_run_id()}.json", document)


def write_weights_evaluation(
    folder: RunFolder, recipe: str, environment: Mapping[str, Any], results: Mapping[str, Any]
) -> list[Path]:
    """Fills the folder of weights that were measured and not trained here: the resolved recipe
    that they were measured by, the environment and the results. Returns the files."""
    return [
        folder.write_text(folder.evaluation, recipe),
        folder.write_json(folder.environment, environment),
        write_results(folder, results),
    ]


def is_of_weights(folder: RunFolder) -> bool:
    """Whether this is the folder of weights that were measured and not trained here."""
    return folder.evaluation.exists() and not folder.recipe.exists()


def recipe_file(folder: RunFolder) -> Path:
    """The recipe of a run, or the one that weights were measured by."""
    return folder.evaluation if is_of_weights(folder) else folder.recipe
