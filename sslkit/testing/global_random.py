"""The random numbers of Python and numpy, which belong to nobody and which no checkpoint holds."""

from __future__ import annotations

import random as python_random
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np

from .laws import refuse


def global_states() -> dict[str, str]:
    """Where they are, by whose they are."""
    return {
        "numpy": str(np.random.get_state(legacy=True)),  # noqa: NPY002  (others use it)
        "Python": repr(python_random.getstate()),
    }


@contextmanager
def global_random_numbers_unused(what: str) -> Iterator[None]:
    """Refuses a block that moves them on. what: it does."""
    before = global_states()
    yield
    moved = [name for name, state in global_states().items() if state != before[name]]
    refuse(moved, f"{what} moves the global random numbers of {' and '.join(moved)} on")
