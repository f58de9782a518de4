"""Where things stand in figures and on the comparison page, as far as numbers tell it."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import torch
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.legend import Legend
from matplotlib.patches import Rectangle

from sslkit.evaluation.results import ComparisonRow
from sslkit.evaluation.scores import Estimate
from sslkit.report.comparison.figures import draw_all
from sslkit.report.comparison.page import html_page
from sslkit.report.comparison.side_by_side import Comparison
from sslkit.report.comparison.svg import Picture
from sslkit.report.figures import draw_accuracies, draw_curves
from sslkit.report.maps import choose_images, draw_map
from sslkit.report.projection import project
from sslkit.runs.metrics_file import MetricLine
from sslkit.workflows.compare.arm_statistics import make_comparison
from sslkit.workflows.compare.comparison_folder import write_comparison
from tests.report.run_folders import make_run
from tests.report.test_comparison import arm

PAGE_WIDTH = 1340
"""Pixels of the page's text at most, which fits a window of 1,400."""


@pytest.fixture(scope="module")
def eight_arms(tmp_path_factory: pytest.TempPathFactory) -> Comparison:
    """Eight arms with long names and three seeds each, baselines and evaluations on the way."""
    folder = tmp_path_factory.mktemp("arms")
    arms = [
        arm(
            f"method.loss.temperature={number / 10}",
            [
                make_run(folder, f"a{number}", seed, 0.5 + number / 50 + seed / 90,
                         during=(0.2 + number / 40, 0.3 + seed / 20),
                         baselines={"pixels": 0.4, "untrained": 0.3})
                for seed in range(3)
            ],
        )
        for number in range(8)
    ]  # fmt: skip
    return make_comparison("eight", arms, arms[0].label)


def reports() -> dict[str, Figure]:
    """The figures of a run's report, with as many curves and bars as one has."""
    keys = ["train/loss", "train/lr", "train/online_probe/top1", "collapse/std"]
    keys += [f"eval/{name}/top1" for name in ("knn", "linear", "online_probe", "finetune")]
    values = dict.fromkeys(keys, 0.9)
    lines = [
        MetricLine(step, 0, {**values, "train/epoch": step / 4, "train/loss": 5.0 / (step + 1)})
        for step in range(1, 20)
    ]
    estimates = {name: Estimate(0.99, 0.9, 1.0) for name in ("pixels", "untrained", "trained")}
    rows = [ComparisonRow(name, "top1", estimates, {}) for name in ("knn", "linear", "finetune")]
    labels = torch.arange(60) % 12
    images = choose_images(60, labels, [f"a long name of class {i}" for i in range(12)], seed=0)
    features = torch.randn(60, 4, generator=torch.Generator().manual_seed(0))
    panels = {
        name: project(features[images.rows], "pca", seed=0) for name in ("untrained", "trained")
    }
    return {
        "curves": draw_curves(lines),
        "accuracies": draw_accuracies(rows),
        "map": draw_map(panels, images, "pca"),
    }


def legends(figure: Figure) -> list[Legend]:
    own = [axis.get_legend() for axis in figure.axes]
    return [*figure.legends, *(legend for legend in own if legend is not None)]


def covered(figure: Figure) -> list[str]:
    """Titles of the panels that a legend lies on, though it be by a pixel, and legends that leave
    the figure."""
    FigureCanvasAgg(figure).draw()
    whole = figure.bbox.padded(1.0)
    found = []
    for legend in legends(figure):
        box = legend.get_window_extent()
        panels = [axis for axis in figure.axes if axis.get_visible()]
        inside = {axis.get_title(): axis.get_window_extent().padded(-1.0) for axis in panels}
        found += [title for title, area in inside.items() if area.overlaps(box)]
        across = whole.x0 <= box.x0 and box.x1 <= whole.x1
        if not (across and whole.y0 <= box.y0 and box.y1 <= whole.y1):
            found.append("the edge of the figure")
    return found


@pytest.mark.parametrize("names", [("pixels", "untrained", "trained"), ("raw", "trained")])
def test_accuracies_have_a_bar_for_what_was_measured_alone(names: tuple[str, ...]) -> None:
    values = {name: Estimate(0.9) for name in names}
    figure = draw_accuracies([ComparisonRow("knn", "top1", values, {})])
    (legend,) = figure.legends
    assert [text.get_text() for text in legend.get_texts()] == list(names)
    (axis,) = figure.axes
    (left, *_, right) = [bar for bar in axis.patches if isinstance(bar, Rectangle)]
    assert left.get_x() == pytest.approx(-right.get_x() - right.get_width())  # around the name
    assert right.get_x() + right.get_width() - left.get_x() == pytest.approx(0.8, abs=0.05)


def test_legends_of_reports_cover_nothing() -> None:
    for name, figure in reports().items():
        assert legends(figure), name
        assert covered(figure) == [], name


def test_legends_of_comparisons_cover_nothing(eight_arms: Comparison) -> None:
    figures = draw_all(eight_arms)
    assert set(figures) == {"learning_curves", "accuracy_against_time", "final_accuracies"}
    for name, figure in figures.items():
        assert legends(figure), name
        assert covered(figure) == [], name


def test_eight_arms_fit_the_page(eight_arms: Comparison, tmp_path: Path) -> None:
    """Figures are shown in their own width at most, and tables, whose text is 14.4 px high and
    about half as wide a letter, do not fill the page."""
    write_comparison(eight_arms, tmp_path)
    style = re.search(r"<style>(.*?)</style>", (tmp_path / "comparison.html").read_text(), re.S)
    assert style is not None
    assert f"max-width:{PAGE_WIDTH}px" in style[1]
    assert "svg{max-width:100%;height:auto}" in style[1]
    for row in re.findall(r"<tr>.*?</tr>", html_page(eight_arms, [])):
        cells = re.findall(r"<t[dh][^>]*>(.*?)</t[dh]>", row)
        # The first cell breaks where it must; a cell has 2 x 0.8 em of padding.
        width = 6 * 14.4 + sum(7.5 * len(cell) + 1.6 * 14.4 for cell in cells[1:])
        assert width < PAGE_WIDTH, row


def test_scores_are_first_and_only_tables_and_figures_scroll_sideways(
    eight_arms: Comparison, tmp_path: Path
) -> None:
    """On a telephone: the scores before all else, each arm's score in the first three columns, and
    everything that may be wider than 420 px in a box that scrolls by itself."""
    write_comparison(eight_arms, tmp_path)
    page = (tmp_path / "comparison.html").read_text()
    body = page[page.index("<body>") :]
    assert '<meta name="viewport" content="width=device-width, initial-scale=1">' in page
    assert body.index("<table") < body.index("<svg") < body.index("<h2>Runs")
    head = re.findall(r"<th scope=\"col\">(.*?)</th>", body)[:3]
    assert head == ["arm", "n", "score"]
    first = "<td>method.loss.temperature=0.0</td><td>3</td><td>51.1 [48.4, 53.9]</td>"
    assert first in body
    assert body.count("<table") == body.count('<div class="wide"><table')
    assert body.count("<svg") == body.count('<figure><div class="fitting"><svg') == 3
    assert ".wide{overflow-x:auto}" in page
    wide = Picture("several", '<svg width="900pt" height="9pt"></svg>', "several panels")
    assert '<div class="wide"><svg' in html_page(eight_arms, [wide])
    assert re.search(r"pre\{[^}]*overflow-x:auto", page)
    assert re.search(r"td:first-child\{[^}]*overflow-wrap:anywhere", page)
