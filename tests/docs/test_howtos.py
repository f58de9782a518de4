"""What people look for in a how-to is in one."""

from __future__ import annotations

import re
import shutil
import subprocess
from pathlib import Path

import pytest
import yaml
from pages import DOCS
from pages import blocks as blocks_of

from sslkit.builtin.augmentations import SimCLRConfig
from sslkit.workflows.new_plugin import new_plugin


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
        ("small_components.md", r"[Ll]oss", r"class \w+\(Loss\)"),
        ("components.md", r"[Bb]ackbone", r"class \w+\(Backbone\)"),
        ("components.md", r"[Tt]est", r"sslkit plugins check \w+"),
    ],
)
def test_a_page_has_a_heading_and_code_for(page: str, title: str, code: str) -> None:
    text = (DOCS / "howto" / page).read_text(encoding="utf-8")
    headings = "\n".join(line for line in text.splitlines() if line.startswith("#"))
    assert re.search(title, headings), headings
    assert re.search(code, blocks(text)) or re.search(rf"`[^`]*{code}[^`]*`", text)
    index = (DOCS / "howto" / "index.md").read_text(encoding="utf-8")
    assert f"\n{page.removesuffix('.md')}\n" in index


def test_byols_views_are_those_of_its_recipe() -> None:
    """Which has the paper's: its saturation is half of its contrast, SimCLR's is all of it."""
    text = (DOCS / "howto" / "views.md").read_text(encoding="utf-8")
    [block] = re.findall(r"BYOL's two views:\n\n```yaml\n(.*?)```", text, flags=re.DOTALL)
    shown = yaml.safe_load(block)["augmentation"]
    recipe = DOCS.parent / "plugins/sslkit-byol/src/sslkit_byol/recipes/byol_r50.yaml"
    shipped = yaml.safe_load(recipe.read_text(encoding="utf-8"))["augmentation"]
    settings = [SimCLRConfig(**{k: v for k, v in found.items() if k != "name"}).blocks()
                for found in (shown, shipped)]  # fmt: skip
    values = [
        [(b.strengths, b.blur_rate, b.blur_kernel_size, b.solarize_probability) for b in views]
        for views in settings
    ]
    assert values[0] == values[1]


@pytest.mark.skipif(shutil.which("patch") is None, reason="there is no `patch` on this machine")
def test_the_tutorial_shows_and_changes_what_is_made(tmp_path: Path) -> None:
    """Without a run of the page, which is slow."""
    made = new_plugin("my-method", "method", tmp_path)
    page = blocks_of(DOCS / "tutorial" / "own_method.md")
    parts = [block for block in page if "part of" in block.marks]
    assert len(parts) == 5
    for block in parts:
        assert block.text in (tmp_path / block.marks["part of"]).read_text(), str(block)
    [change] = [block.text for block in page if block.language == "diff"]
    subprocess.run(["patch", "-d", made.path, "-p1"], input=change, text=True, check=True)
    assert not list(made.path.rglob("*.rej"))
    compile((made.path / "src/sslkit_my_method/method.py").read_text(), "method.py", "exec")
