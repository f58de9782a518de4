"""Figures, pages and tables of a comparison, from run folders with chosen numbers."""

from __future__ import annotations

from html.parser import HTMLParser
from pathlib import Path

import pytest

from sslkit.evaluation.statistics import Interval
from sslkit.report.comparison.figures import mean_curve, seed_curves
from sslkit.report.comparison.page import html_page
from sslkit.report.comparison.side_by_side import Arm
from sslkit.report.comparison.tables import cell, print_comparison
from sslkit.workflows.compare.arm_statistics import make_comparison
from sslkit.workflows.compare.comparison_folder import write_comparison
from tests.report.run_folders import IMAGES, B, arm, make_run, make_two_arms


@pytest.fixture(name="two_arms")
def two_arms_of_three_seeds(tmp_path: Path) -> list[Arm]:
    return make_two_arms(tmp_path)


def test_bands_are_intervals_by_students_t_at_steps_that_all_seeds_have(
    two_arms: list[Arm],
) -> None:
    curve = mean_curve(two_arms[1], "eval/knn/top1", lambda point: point.epoch)
    assert [x for x, _ in curve] == [1, 2, 3]
    half = 4.302653 * (0.0002 / 2 / 3) ** 0.5  # of 0.30, 0.31, 0.32
    assert curve[0][1] == pytest.approx((0.31, 0.31 - half, 0.31 + half), abs=1e-6)
    assert curve[2][1].mean == pytest.approx(sum(B) / 3)
    each = seed_curves(two_arms[1], "eval/knn/top1", lambda point: point.seconds)
    assert [values[0][1] for values in each] == [0.30, 0.31, 0.32]
    seconds = IMAGES / 3 / 50  # of an epoch
    assert [x for x, _ in each[0]] == pytest.approx([seconds, 2 * seconds, 3 * seconds])


VOID = {"meta", "br", "img", "link", "hr", "input"}


class Page(HTMLParser):
    """Checks that elements are closed; collects ids, text and what is referred to."""

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.tags: set[str] = set()
        self.ids: list[str] = []
        self.references: list[str] = []
        self.texts: list[str] = []
        self.descriptions = 0

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.handle_startendtag(tag, attrs)
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.add(tag)
        for name, value in attrs:
            self.descriptions += name == "aria-label"
            if name == "id":
                self.ids.append(str(value))
            elif name in ("src", "href", "xlink:href", "srcset", "data", "action"):
                self.references.append(str(value))
            elif not name.startswith("xmlns"):
                self.references += [part.split(")")[0] for part in str(value).split("url(")[1:]]

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.texts.append(data)


@pytest.mark.slow  # 3 seconds
def test_the_page_is_whole_and_needs_nothing_from_elsewhere(
    two_arms: list[Arm], tmp_path: Path
) -> None:
    two_arms[1] = Arm("<script>alert(1)</script> & b", two_arms[1].records)
    out = tmp_path / "out"
    written = write_comparison(make_comparison("x <y>", two_arms, "a"), out)
    text = (out / "comparison.html").read_text()
    page = Page()
    page.feed(text)
    page.close()
    assert page.open == []
    assert {"table", "svg", "details"} <= page.tags
    assert not page.tags & {"script", "link", "iframe", "img", "object", "embed"}
    assert page.references
    assert all(reference.startswith("#") for reference in page.references)
    assert {reference[1:] for reference in page.references} <= set(page.ids)
    assert page.descriptions == len(written) - 3  # every figure says what it shows
    assert len(page.ids) == len(set(page.ids))
    assert "@import" not in text
    assert "53.0 [44.0, 62.0]" in page.texts
    assert "+4.3 [-0.8, +9.5]" in page.texts
    assert {path.name for path in written} == {
        "comparison.html", "comparison.md", "comparison.json",
        "learning_curves.svg", "accuracy_against_time.svg", "final_accuracies.svg",
    }  # fmt: skip
    before = {path: path.read_bytes() for path in written}
    write_comparison(make_comparison("x <y>", two_arms, "a"), out)
    assert {path: path.read_bytes() for path in written} == before  # the same bytes again


def test_markdown_and_terminal(
    two_arms: list[Arm], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    comparison = make_comparison("x", two_arms, "a")
    write_comparison(comparison, tmp_path / "out")
    text = (tmp_path / "out" / "comparison.md").read_text()
    assert "| knn top1 | a | 3 | 53.0 [44.0, 62.0] | baseline |" in text
    assert "![learning curves](figures/learning_curves.svg)" in text
    print_comparison(comparison, tmp_path / "out")
    printed = capsys.readouterr().out
    assert "+4.3 [-0.8, +9.5]" in printed
    assert "2 arms, 6 runs, matched by images seen, baseline a." in printed


def test_what_is_rounded_to_zero_has_no_minus() -> None:
    small = Interval(-0.0001, -0.02, 0.0001)
    assert cell("eval/knn/top1", small, signed=True) == "+0.0 [-2.0, +0.0]"


def test_the_page_names_each_evaluator_once_above_its_rows(
    two_arms: list[Arm], tmp_path: Path
) -> None:
    page = html_page(make_comparison("x", two_arms, "a"), [])
    assert page.count('<th scope="rowgroup" colspan="6">knn top1</th>') == 1
    assert "<td>knn top1</td>" not in page  # a narrow screen has no room for it beside the score


def test_names_from_files_are_text_in_every_file(tmp_path: Path) -> None:
    run = make_run(tmp_path, "a", 0, 0.5, more={"k\x1b[2J<script>": {"top1$x^y^z$": 0.5}})
    out = tmp_path / "out"
    for path in write_comparison(make_comparison("x", [arm("a", [run])], "a"), out):
        text = path.read_text()
        assert "\x1b" not in text, path
        assert path.suffix == ".json" or "<script" not in text, path
