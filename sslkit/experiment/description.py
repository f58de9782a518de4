"""What the recipe does not say about a run that is built."""

from __future__ import annotations

from dataclasses import asdict
from typing import Any

from sslkit.recipe import components
from sslkit.runs.environment import code_digests, describe

from .build import Experiment


def describe_run(experiment: Experiment) -> dict[str, Any]:
    """What the recipe does not say about a run, here and now."""
    stores = {"train": experiment.stores.train, "test": experiment.stores.test}
    used = [slot for _, slot in components(experiment.recipe)]
    found = describe(
        device=str(experiment.compute.device),
        plugins={slot.distribution: slot.version for slot in used},
        data=experiment.stores.fingerprints,
    )
    modules = {"sslkit": "sslkit", **{slot.distribution: slot.cls.__module__ for slot in used}}
    return found | {
        "code": code_digests(modules),
        "facts": asdict(experiment.facts),
        "sources": {split: store.details for split, store in stores.items() if store is not None},
    }
