"""What a component says of the data it is to run on, whatever that is."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import replace
from typing import Any

from sslkit.api import RunFacts, ViewSpec

from .component_laws import ComponentLaws
from .laws import law, refuse

_VIEWS = (ViewSpec(32), ViewSpec(32))
_USUAL = RunFacts(
    num_images=512, channels=3, image_size=(32, 32), num_classes=4, batch_size=64,
    steps_per_epoch=8, total_steps=80, views=_VIEWS, num_test_images=128,
    class_sizes=(128, 128, 128, 128),
)  # fmt: skip
FACTS: Mapping[str, RunFacts] = {
    "usual data": _USUAL,
    "data without labels": replace(_USUAL, num_classes=None, class_sizes=(), test_has_labels=False),
    "data without a test split": replace(_USUAL, num_test_images=0, test_has_labels=False),
    "data of which little is known": replace(
        _USUAL, image_size=None, num_test_images=None, class_sizes=()
    ),
    "one image of one class": replace(
        _USUAL, num_images=1, num_classes=1, class_sizes=(1,), num_test_images=1
    ),
    "a run of one step": replace(_USUAL, steps_per_epoch=1, total_steps=1, batch_size=512),
    "views in place of two of one": replace(_USUAL, views=_VIEWS[:1]),
    "many views": replace(_USUAL, views=(*_VIEWS, ViewSpec(16, "local"), ViewSpec(16, "local"))),
}
"""What data may be -> its facts."""


class FactsLaws(ComponentLaws):
    """The laws of what a component says before anything is built."""

    @law(
        "look at every field of RunFacts that may be None or 0 before it is used, and yield pairs "
        "of a field of Config and a message"
    )
    def it_judges_any_data(self) -> str | None:
        """`problems`, `warnings` and `plan_facts` answer for any data, with or without labels, a
        test split or a known size."""
        slot = self.subject.slot
        said = []
        for words, facts in FACTS.items():
            try:
                inside = slot.cls.facts_inside(slot.config, facts)
                plan = slot.cls.plan_facts(slot.config, facts)
                told = [
                    *slot.cls.problems(slot.config, facts),
                    *slot.cls.warnings(slot.config, facts),
                ]
            except Exception as error:
                raise _naming(words, error) from error
            refuse(not isinstance(inside, RunFacts), f"facts_inside gave {inside!r} of {words}")
            for odd in (*self._odd_pairs(told), *_odd_facts(plan)):
                refuse(True, f"{odd} of {words}")
            said += [words] * bool(told)
        return f"it refuses, or warns of, {', '.join(said)}" if said else None

    def _odd_pairs(self, told: list[Any]) -> Iterator[str]:
        fields = {*self.subject.slot.cls.Config.model_fields, "name", ""}
        for pair in told:
            if not (isinstance(pair, tuple) and len(pair) == 2):
                yield f"it said {pair!r}, which is no pair of a field and a message,"
                continue
            field, message = pair
            if not isinstance(field, str) or field.partition(".")[0] not in fields:
                yield f"it named {field!r}, which is no field of Config,"
            if not isinstance(message, str) or not message.strip() or "\n" in message:
                yield f"it said {message!r}, which is no line of text,"


def _odd_facts(plan: Mapping[str, Any]) -> Iterator[str]:
    for name, value in plan.items():
        if not isinstance(name, str) or not isinstance(value, (str, int, float)):
            yield f"plan_facts gave {name!r} as {value!r}, which is no number and no text,"


def _naming(words: str, error: Exception) -> Exception:
    """The error, saying of what data."""
    error.args = (f"{error} (of {words})",)
    return error
