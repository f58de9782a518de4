"""Names and notes from files of strangers, where they are shown."""

from __future__ import annotations

import io
import re
import xml.etree.ElementTree as ET

import pytest
import torch

from sslkit.report.comparison.svg import svg_text
from sslkit.report.console import print_line, print_table, print_text
from sslkit.report.harmless import fenced, in_figure, in_html, in_markdown, markdown_table
from sslkit.report.maps import MapImages, draw_map
from sslkit.report.projection import Projection

HOSTILE = (
    "a\x1b[2J\x1b]0;title\x07b\u202ec <script>alert(1)</script> ![x](http://h/p) $\\frac$ |\n# d"
)


def test_a_line_of_markdown_is_text_alone() -> None:
    line = in_markdown(HOSTILE)
    assert line.isprintable()
    assert "<" not in line
    assert not re.search(r"\]\(", line)
    assert in_markdown("53.0 [44.0, 62.0] of `x` & y") == "53.0 [44.0, 62.0] of `x` & y"


def test_cells_of_a_table_stay_cells() -> None:
    head, line, row = markdown_table(["a", "b"], [[HOSTILE, "2"]])
    assert (head, line) == ("| a | b |", "|---|---|")
    assert len(re.findall(r"(?<!\\)\|", row)) == 3
    assert row.isprintable()


def test_nothing_in_a_block_of_code_ends_it() -> None:
    text = "a: |\n  ```\n  <script>\n  ````\nb: 1"
    first, *_, last = fenced(text, "yaml").splitlines()
    assert (first, last) == ("`````yaml", "`````")
    assert fenced("a: 1", "yaml") == "```yaml\na: 1\n```"


def test_html_holds_what_xml_takes() -> None:
    found = ET.fromstring(f'<p title="{in_html(HOSTILE)}">{in_html(HOSTILE)}</p>')
    assert found.text is not None
    assert "<script>" in found.text
    assert list(found) == []


@pytest.mark.parametrize("shown", ["line", "text", "table"])
def test_a_terminal_gets_no_control_characters(
    shown: str, capsys: pytest.CaptureFixture[str]
) -> None:
    if shown == "table":
        print_table(["head"], [[HOSTILE]])
    else:
        (print_line if shown == "line" else print_text)(HOSTILE)
    printed = capsys.readouterr().out
    assert not set(printed) & set("\x1b\x07\u202e")
    assert r"a\x1b[2J" in printed


def test_class_names_are_no_formulas() -> None:
    names = {0: "us$bill$\\frac", 1: "$a_b^c^d$", 2: "_first"}
    points = torch.rand(9, 2, generator=torch.Generator().manual_seed(0))
    images = MapImages(torch.arange(9), torch.arange(9) % 3, names)
    figure = draw_map({"$\\over$": Projection(points, None)}, images, "pca")
    figure.savefig(io.BytesIO())  # where matplotlib reads formulas
    shown = [text.get_text() for text in figure.legends[0].get_texts()]
    assert sorted(shown) == sorted(in_figure(name) for name in names.values())
    assert "$" not in in_figure("a$b$c").replace(r"\$", "")
    ET.fromstring(svg_text(figure, "map", "x"))
