"""Sphinx configuration. Build with `make docs`."""

from __future__ import annotations

import sys
from pathlib import Path

HERE = Path(__file__).parent
sys.path.insert(0, str(HERE))

import docstrings  # noqa: E402
import generated_reference  # noqa: E402
from sphinx.application import Sphinx  # noqa: E402
from sphinx.util import logging  # noqa: E402

import sslkit  # noqa: E402

project = "sslkit"
author = "The sslkit authors"
copyright = "2026, the sslkit authors"
version = release = sslkit.__version__

extensions = ["myst_parser", "sphinx.ext.autodoc", "sphinx.ext.viewcode"]
exclude_patterns = ["_build"]
html_theme = "furo"
html_title = f"sslkit {version}"
html_show_sphinx = False

myst_enable_extensions = ["colon_fence", "deflist"]
myst_heading_anchors = 3
suppress_warnings = ["myst.header"]  # a page of hooks starts with the docstring of its module

default_role = "literal"
autodoc_member_order = "bysource"
autodoc_typehints = "signature"
autodoc_default_options = {
    "members": True,
    "undoc-members": True,
    "show-inheritance": True,
    "exclude-members": "model_config",
}
autodoc_preserve_defaults = True
python_use_unqualified_type_names = True
toc_object_entries_show_parents = "hide"

for problem in generated_reference.write_reference(HERE / "reference" / "_generated"):
    logging.getLogger(__name__).warning("reference: %s", problem)


def _process_docstring(
    app: object, what: str, name: str, item: object, options: object, lines: list[str]
) -> None:
    lines[:] = docstrings.to_restructured_text(lines)


def _process_signature(
    app: object,
    what: str,
    name: str,
    item: object,
    options: object,
    given: str | None,
    returned: str | None,
) -> tuple[str | None, str | None]:
    return given and docstrings.readable_signature(given), returned


def setup(app: Sphinx) -> None:
    """Called by Sphinx."""
    app.connect("autodoc-process-docstring", _process_docstring)
    app.connect("autodoc-process-signature", _process_signature)
