"""What people look for in a how-to is in one."""

from __future__ import annotations

import re

import pytest
from pages import DOCS


def blocks(text: str) -> str:
    """The code of a page."""
    return "\n".join(re.findall(r"^```\w*\n(.*?)^```", text, flags=re.MULTILINE | re.DOTALL))


@pytest.mark.parametrize(
    ("page", "title", "code"),
    [
        ("devices.md", r"GPU", r"CUDA_VISIBLE_DEVICES=\d"),
        ("views.md", r"[Vv]iew", r"augmented_views"),
        ("views.md", r"[Mm]ulti-crop", r"views:"),
        ("small_components.md", r"[Ss]chedule", r"class \w+\(Schedule\)"),
        ("small_components.md", r"[Oo]ptimiser", r"class \w+\(Optimizer\)"),
        ("small_components.md", r"[Hh]ead", r"class \w+\(Head\)"),
    ],
)
def test_a_page_has_a_heading_and_code_for(page: str, title: str, code: str) -> None:
    text = (DOCS / "howto" / page).read_text(encoding="utf-8")
    headings = "\n".join(line for line in text.splitlines() if line.startswith("#"))
    assert re.search(title, headings), headings
    assert re.search(code, blocks(text)) or re.search(rf"`[^`]*{code}[^`]*`", text)
    index = (DOCS / "howto" / "index.md").read_text(encoding="utf-8")
    assert f"\n{page.removesuffix('.md')}\n" in index
