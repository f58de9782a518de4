"""The doors of the kit: `checks` for pytest, `check_plugin` for everything else."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sslkit.api import Component

from .augmentation_laws import AugmentationLaws
from .callback_laws import CallbackLaws
from .dataset_laws import DatasetLaws
from .evaluator_network_laws import EvaluatorLaws
from .head_laws import HeadLaws
from .laws import Check, Laws, checks_on
from .loss_state_laws import LossLaws
from .optimizer_laws import OptimizerLaws
from .saved_backbone_laws import SavedBackboneLaws
from .schedule_laws import ScheduleLaws
from .subject import Subject, find_subject
from .tracker_laws import TrackerLaws
from .training_laws import TrainingLaws

_LAWS: tuple[type[Laws], ...] = (
    TrainingLaws,
    CallbackLaws,
    EvaluatorLaws,
    TrackerLaws,
    SavedBackboneLaws,
    HeadLaws,
    AugmentationLaws,
    DatasetLaws,
    ScheduleLaws,
    OptimizerLaws,
    LossLaws,
)
KINDS_OF_LAWS: Mapping[str, type[Laws]] = {laws.kind: laws for laws in _LAWS}
"""Kind -> its laws."""


def checks(
    component: str | type[Component],
    *,
    recipe: Path | str | None = None,
    fast: bool = False,
    **fields: Any,
) -> list[Check]:
    """The checks of a component, for `pytest.mark.parametrize(..., ids=str)`: one for each law of
    its kind. Each is called without arguments and raises AssertionError, of one line, where the law
    is broken, or unittest.SkipTest where it has nothing to say.

    component: `"loss:mine"`, `"mine"`, or the class. fields: of its block, where it has fields
    without default, or where small ones do. recipe: a file, or the name of a shipped recipe, that
    it stands in, where the kit's own small one does not suit it: a method that needs other views,
    say; without `fields`, the component is then as that recipe has it. fast: leaves out what takes
    more than about a second. Raises PluginError and RecipeError."""
    return checks_of(find_subject(component, fields, recipe), fast=fast)


def checks_of(subject: Subject, *, fast: bool = False) -> list[Check]:
    """The checks of a subject."""
    return checks_on(laws_of(subject), fast=fast)


def laws_of(subject: Subject) -> Laws:
    """The laws of its kind, ready to be tried on a subject."""
    return KINDS_OF_LAWS[subject.kind](subject)


@dataclass(frozen=True)
class Report:
    """What the kit found."""

    component: str
    """`loss 'mine'`."""
    rows: Sequence[Mapping[str, Any]]
    """For each law `law`, `statement`, `status` (passed; failed; skipped, where it says nothing of
    this component; untried, where it could not be tried), `text` (what was seen, why it was not
    tried, or a sentence beside "passed"), `remedy`, `seconds`, and `waits_for` (the broken law
    until which it is not tried, or "")."""
    broken: Sequence[str]
    """A line for each law that is broken: where, what the law is, what was seen, how to meet it."""
    notes: Sequence[str] = ()
    """What was measured beside the laws, such as the cost of a step."""

    @property
    def passed(self) -> bool:
        """Whether no law is broken."""
        return not self.broken

    def to_json(self) -> dict[str, Any]:
        """Ready for JSON."""
        return {
            "component": self.component,
            "passed": self.passed,
            "laws": [dict(row) for row in self.rows],
            "notes": list(self.notes),
        }


def check_plugin(
    name: str | type[Component],
    *,
    recipe: Path | str | None = None,
    fast: bool = False,
    **fields: Any,
) -> Report:
    """Tries every law of a component; see `checks` for the arguments."""
    return report_on(find_subject(name, fields, recipe), fast=fast)


def report_on(subject: Subject, *, fast: bool = False) -> Report:
    """What comes of trying every law on a subject."""
    return report_of(laws_of(subject), fast=fast)


def report_of(laws: Laws, *, fast: bool = False) -> Report:
    """What comes of trying these laws on their subject."""
    outcomes = [(check, check.outcome()) for check in checks_on(laws, fast=fast)]
    rows = [
        {
            "law": check.law.name,
            "statement": check.law.statement,
            "status": outcome.status,
            "text": outcome.text,
            "remedy": check.law.remedy,
            "seconds": round(outcome.seconds, 3),
            "waits_for": outcome.waits_for,
        }
        for check, outcome in outcomes
    ]
    broken = [check.line() for check, outcome in outcomes if outcome.status == "failed"]
    notes = [] if broken or (fast and laws.slow_notes) else list(laws.notes())
    return Report(str(laws.subject), rows, broken, notes)
