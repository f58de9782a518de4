"""What must be equal for a comparison to mean anything: data, evaluators, and the budget."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from sslkit.report.comparison.side_by_side import Match, RunRecord

from .records import protocol_settings


@dataclass(frozen=True)
class ArmConditions:
    """The conditions of one run, or of one that is planned."""

    source: str
    """What messages call it."""
    data: Mapping[str, str]
    """Split -> fingerprint."""
    protocols: Mapping[str, Mapping[str, Any]]
    """Evaluator -> its settings."""
    images_seen: int
    """0: nothing was trained, so that there is no budget to share."""

    @classmethod
    def of_run(cls, record: RunRecord) -> ArmConditions:
        """The conditions that a finished run recorded."""
        settings = protocol_settings(record.recipe)
        return cls(record.path.name, record.data, settings, record.images_seen)


def disagreements(conditions: Sequence[ArmConditions], match: Match) -> list[str]:
    """Why these runs must not stand in one table, one line each; empty where they may. All are
    held against the first."""
    found = [line for other in conditions[1:] for line in _between(conditions[0], other)]
    trained = [each for each in conditions if each.images_seen]
    if match == "epochs":
        found += [line for other in trained[1:] for line in _budgets(trained[0], other)]
    return list(dict.fromkeys(found))


def _between(first: ArmConditions, other: ArmConditions) -> Iterator[str]:
    pair = f"{first.source} and {other.source}"
    for split in ("train", "test"):
        a, b = first.data.get(split), other.data.get(split)
        if a != b:
            yield (
                f"{pair}: the {split} data differ (fingerprints {a} and {b}); "
                "compare runs on the same data"
            )
    for protocol in sorted(first.protocols.keys() & other.protocols.keys()):
        for name in sorted(first.protocols[protocol].keys() | other.protocols[protocol].keys()):
            a = first.protocols[protocol].get(name)
            b = other.protocols[protocol].get(name)
            if a != b:
                yield (
                    f"{pair}: protocol {protocol} has {name} {a} in one and {b} in the other; "
                    "measure all with the same settings"
                )


def _budgets(first: ArmConditions, other: ArmConditions) -> Iterator[str]:
    if first.images_seen != other.images_seen:
        ratio = other.images_seen / first.images_seen
        yield (
            f"{first.source} and {other.source}: the budgets differ, {first.images_seen:,} and "
            f"{other.images_seen:,} images seen ({ratio:.3g} times); set train.epochs and "
            "train.batch_size alike, or compare at equal training time with --match time"
        )
