"""The benchmarks are a package below the repository, as `python -m tests.benchmarks` sees them."""

from __future__ import annotations

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[2]))
