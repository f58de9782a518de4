"""Every kind of component."""

from __future__ import annotations

from .backbones import Backbone, Head
from .component import Component
from .data import DataSource
from .evaluation import Evaluator
from .losses import Loss
from .method import Method
from .optimizers import Optimizer
from .schedules import Schedule
from .tracking import Callback, Tracker
from .views import Augmentation

INTERFACES: tuple[type[Component], ...] = (
    Method, Backbone, Head, Loss, Augmentation, DataSource,
    Evaluator, Optimizer, Schedule, Tracker, Callback,
)  # fmt: skip
"""Every kind of component, in the order of the hooks."""
