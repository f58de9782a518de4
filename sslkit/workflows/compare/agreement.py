"""What must be equal for a comparison to mean anything: data, protocols, and the budget."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from sslkit.report.comparison.model import Match, RunRecord

from .records import protocol_settings


@dataclass(frozen=True)
class Terms:
    """The conditions of one run, or of one that is planned."""

    source: str
    """What messages call it."""
    data: Mapping[str, str]
    """Split -> fingerprint."""
    protocols: Mapping[str, Mapping[str, Any]]
    """Protocol -> its settings."""
    images_seen: int
    """0: nothing was trained, so that there is no budget to share."""

    @classmethod
    def of_run(cls, record: RunRecord) -> Terms:
        """The conditions that a finished run recorded."""
        settings = protocol_settings(record.recipe)
        return cls(record.path.name, record.data, settings, record.images_seen)


def disagreements(terms: Sequence[Terms], match: Match) -> list[str]:
    """Why these runs must not stand in one table, one line each; empty where they may. All are
    held against the first."""
    found = [line for other in terms[1:] for line in _between(terms[0], other)]
    trained = [each for each in terms if each.images_seen]
    if match == "epochs":
        found += [line for other in trained[1:] for line in _budgets(trained[0], other)]
    return list(dict.fromkeys(found))


def _between(first: Terms, other: Terms) -> Iterator[str]:
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


def _budgets(first: Terms, other: Terms) -> Iterator[str]:
    if first.images_seen != other.images_seen:
        ratio = other.images_seen / first.images_seen
        yield (
            f"{first.source} and {other.source}: the budgets differ, {first.images_seen:,} and "
            f"{other.images_seen:,} images seen ({ratio:.3g} times); set train.epochs and "
            "train.batch_size alike, or compare at equal training time with --match time"
        )
