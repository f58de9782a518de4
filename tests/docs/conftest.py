"""The helper module beside this file and the generator of the reference."""

from __future__ import annotations

import sys
from pathlib import Path

HERE = Path(__file__).parent
sys.path[:0] = [str(HERE), str(HERE.parents[1] / "docs")]

from page_states import states  # noqa: E402, F401  a fixture
