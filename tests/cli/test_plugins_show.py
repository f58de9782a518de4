"""`sslkit plugins show`: nested fields, defaults as a recipe has them, lines that fit."""

from __future__ import annotations

import json
import os
import pty
import subprocess
import sys
from typing import Any

import pytest

from sslkit.host.plugins import load_plugins
from sslkit.report.console import print_text
from sslkit.report.listing import component_fields, print_components

REGISTRY = load_plugins().registry


def fields(name: str) -> dict[str, Any]:
    (shown,) = component_fields(REGISTRY, name)
    return {field["field"]: field for field in shown["fields"]}


def test_nested_fields_stand_behind_their_block() -> None:
    timm = fields("backbone:timm")
    assert timm["normalize.mean"]["default"] == "required"
    assert timm["normalize.mean"]["type"] == "list of numbers"
    names = list(timm)
    assert names[names.index("normalize") + 1 :][:2] == ["normalize.mean", "normalize.std"]
    views = fields("augmentation:simclr")
    assert views["views.N.blur_sigma"]["default"] == [0.1, 2.0]
    assert views["views.N.role"]["meaning"].startswith("What a method may tell views apart by")
    assert views["views.N.blur_sigma"] != views["blur_sigma"]


def test_defaults_are_written_as_in_a_recipe(capsys: pytest.CaptureFixture[str]) -> None:
    print_components(component_fields(REGISTRY, "method:simclr"))
    print_components(component_fields(REGISTRY, "augmentation:simclr"))
    shown = capsys.readouterr().out
    assert "{name: mlp}" in shown
    (size,) = [line.split() for line in shown.splitlines() if line.split()[:1] == ["views.N.size"]]
    assert "that of size" in " ".join(size)  # a view has what the augmentation has, not 224
    assert "true" in shown
    assert "[0.75, 1.33333]" in shown
    assert "True" not in shown
    assert "'name'" not in shown
    json.dumps(component_fields(REGISTRY, "timm"))


def test_paragraphs_wrap_between_words_on_a_terminal_only(
    capsys: pytest.CaptureFixture[str],
) -> None:
    text = "word " * 40
    print_text(text.strip())
    assert capsys.readouterr().out == f"{text.strip()}\n"
    ours, theirs = pty.openpty()
    code = f"from sslkit.report.console import print_text; print_text('- ' + {text!r}, indent='  ')"
    environment = {**os.environ, "COLUMNS": "50"}
    subprocess.run([sys.executable, "-c", code], stdout=theirs, env=environment, check=True)
    os.close(theirs)
    lines = os.read(ours, 10_000).decode().split()
    assert lines.count("word") == 40
    os.close(ours)
