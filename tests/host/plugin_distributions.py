"""Small real distributions: modules and hand-made metadata in a folder on `sys.path`."""

from __future__ import annotations

import textwrap
from collections.abc import Callable, Mapping
from pathlib import Path

Install = Callable[..., Path]
"""install(name, files, entry_points, version="1.0") -> the site folder."""


def write_distribution(
    folder: Path,
    name: str,
    files: Mapping[str, str],
    entry_points: str,
    version: str = "1.0",
) -> None:
    """What `pip install --target folder` leaves of a pure-Python package.

    entry_points: the lines of the section `sslkit`, or a whole file that starts with `[`."""
    for path, text in files.items():
        target = folder / path
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_text(textwrap.dedent(text))
    info = folder / f"{name.replace('-', '_')}-{version}.dist-info"
    info.mkdir(parents=True)
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n")
    text = textwrap.dedent(entry_points).strip()
    section = text if text.startswith("[") else f"[sslkit]\n{text}"
    (info / "entry_points.txt").write_text(f"{section}\n")
