"""`sslkit eval`: measuring what is trained already, a run of ours or weights from elsewhere.

Not here: what is measured and how (`evaluation`, `builtin/evaluators`)."""

from __future__ import annotations

from .measure import Measured
from .saved_run import evaluate_run
from .weight_files import evaluate_weights

__all__ = ["Measured", "evaluate_run", "evaluate_weights"]
