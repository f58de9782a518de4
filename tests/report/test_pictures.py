"""Maps and nearest neighbours: what is shown, and that it is the same for every arm."""

from __future__ import annotations

import re
import xml.etree.ElementTree as ET
from importlib.util import find_spec
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F

from sslkit.engine.display import Silent
from sslkit.errors import RecipeError
from sslkit.report import projection
from sslkit.report.comparison.gallery import (
    Neighbours,
    choose_queries,
    gallery_svg,
    nearest,
    same_class,
    thumbnail,
)
from sslkit.report.comparison.side_by_side import Arm, Comparison
from sslkit.report.maps import CLASSES, choose_images, draw_map
from sslkit.report.projection import parse_methods, project
from sslkit.workflows.compare.arm_statistics import make_comparison
from sslkit.workflows.compare.comparison_folder import write_comparison
from sslkit.workflows.compare.pictures import PictureOptions, make_pictures
from sslkit.workflows.compare.records import read_run
from sslkit.workflows.train import start
from tests.report.test_comparison import Page

SVG = "{http://www.w3.org/2000/svg}"


def blobs(classes: int = 3, each: int = 20, width: int = 12) -> torch.Tensor:
    """(classes * each, width) features around orthogonal directions."""
    generator = torch.Generator().manual_seed(0)
    centres = torch.eye(width)[:classes].repeat_interleave(each, 0)
    return centres + 0.05 * torch.randn(classes * each, width, generator=generator)


def test_pca_finds_the_axes_of_the_spread() -> None:
    # On the unit circle around the first axis: 80 % of the variance along the second, 20 % along
    # the third, up to what normalising takes away.
    generator = torch.Generator().manual_seed(1)
    rows = torch.zeros(4000, 6)
    rows[:, 0] = 1.0
    rows[:, 1:3] = 0.01 * torch.tensor([2.0, 1.0]) * torch.randn(4000, 2, generator=generator)
    found = project(rows, "pca", 0)
    assert found.explained == pytest.approx((0.8, 0.2), abs=0.02)
    expected = F.normalize(rows, dim=1)[:, 1:3].double()
    expected = expected - expected.mean(dim=0)
    assert (found.points - expected).abs().max() < 1e-3


@pytest.mark.parametrize("method", ["pca", "tsne"])
def test_maps_depend_on_the_features_alone(method: str) -> None:
    features = blobs()
    first = project(features, method, 0)
    torch.set_num_threads(2)  # `_one_thread` puts it back
    torch.rand(3)  # the global generator is not asked
    again = project(features, method, 0)
    assert torch.equal(first.points, again.points)
    assert first.points.shape == (60, 2)


def test_tsne_keeps_classes_together_and_survives_a_collapse() -> None:
    points = project(blobs(), "tsne", 0).points
    labels = torch.arange(3).repeat_interleave(20)
    distances = torch.cdist(points, points).fill_diagonal_(torch.inf)
    assert (labels[distances.argmin(dim=1)] == labels).float().mean() > 0.95
    for method in ("pca", "tsne"):
        assert project(torch.ones(20, 4), method, 0).points.isfinite().all()
        assert project(torch.rand(20, 1), method, 0).points.isfinite().all()


def test_methods_are_checked_before_anything_runs(monkeypatch: pytest.MonkeyPatch) -> None:
    assert parse_methods("tsne, pca,tsne") == ("tsne", "pca")
    assert parse_methods("none") == ()
    with pytest.raises(RecipeError, match="'mds' is no map; valid are pca, tsne, umap, and none"):
        parse_methods("pca,mds")
    monkeypatch.setattr(projection, "find_spec", lambda name: None)
    with pytest.raises(
        RecipeError, match=r"umap-learn is not installed.*pip install sslkit\[viz\]"
    ):
        parse_methods("umap")


@pytest.mark.slow  # umap compiles itself
@pytest.mark.timeout(600)
@pytest.mark.skipif(find_spec("umap") is None, reason="umap-learn is not installed")
def test_umap_is_a_function_of_the_features() -> None:
    first = project(blobs(), "umap", 0).points
    assert torch.equal(first, project(blobs(), "umap", 0).points)


def test_images_are_chosen_by_the_seed_and_bounded() -> None:
    labels = torch.arange(50).repeat_interleave(100)
    labels[:100] = -1
    chosen = choose_images(5000, labels, None, seed=0)
    assert torch.equal(chosen.rows, choose_images(5000, labels, None, seed=0).rows)
    assert len(chosen.classes) == CLASSES
    assert chosen.left_out == 49 - CLASSES
    assert len(chosen.rows) == 2000
    assert chosen.labels is not None
    assert set(chosen.labels.tolist()) == set(chosen.classes)
    assert torch.equal(labels[chosen.rows], chosen.labels)
    assert (chosen.rows.diff() < 0).any()  # mixed, so that no class lies on top
    assert "of 20 of 49 classes" in chosen.sentence("test")
    unlabelled = choose_images(30, None, None, seed=0)
    assert sorted(unlabelled.rows.tolist()) == list(range(30))
    figure = draw_map({"a": project(torch.rand(30, 4), "pca", 0)}, unlabelled, "pca")
    assert not figure.legends


def test_the_legend_is_read_row_by_row() -> None:
    images = choose_images(50, torch.arange(10).repeat(5), None, seed=0)
    panels = {name: project(torch.rand(50, 4), "pca", 0) for name in "abc"}
    (legend,) = draw_map(panels, images, "pca").legends
    drawn = [text.get_text() for text in legend.get_texts()]  # matplotlib fills column by column
    assert drawn == ["0", "5", "1", "6", "2", "7", "3", "8", "4", "9"]


def test_queries_are_of_different_classes_first() -> None:
    labels = torch.tensor([0] * 90 + [1] * 5 + [2] * 5 + [-1] * 10)
    queries = choose_queries(labels, 110, 5, 0)
    assert set(labels[queries[:3]].tolist()) == {0, 1, 2}
    assert (labels[queries] >= 0).all()
    assert len(set(queries.tolist())) == 5
    assert len(choose_queries(None, 110, 5, 0)) == 5


def test_nearest_is_by_cosine_and_ties_go_to_the_first() -> None:
    gallery = torch.tensor([[0.0, 1.0], [2.0, 0.0], [5.0, 0.0], [1.0, 1.0]])
    similarity, rows = nearest(torch.tensor([[3.0, 0.0]]), gallery, 3)
    assert rows.tolist() == [[1, 2, 3]]
    assert similarity[0].tolist() == pytest.approx([1.0, 1.0, 0.5**0.5])


def test_the_gallery_marks_neighbours_of_the_class() -> None:
    image = torch.randint(0, 256, (3, 100, 160), dtype=torch.uint8)
    query = thumbnail(image, 0, "a <cat>")
    gallery = {0: thumbnail(image, 0, "a <cat>"), 7: thumbnail(image[:1], 1, "a very long name")}
    found = [Neighbours(name, torch.tensor([[0, 7]]), torch.tensor([[0.9, 0.5]])) for name in "xy"]
    root = ET.fromstring(gallery_svg([query], gallery, found, "all & sundry"))
    assert root.get("aria-label") == "all & sundry"
    images = root.findall(f".//{SVG}image")
    assert len(images) == 3  # the query, and each of the gallery once
    assert all(str(each.get("href")).startswith("data:image/jpeg;base64,") for each in images)
    frames = [frame.get("stroke-dasharray") for frame in root.iter(f"{SVG}rect")]
    assert frames == [None, "5 3"] * 2
    titles = [title.text for title in root.iter(f"{SVG}title")]
    assert titles[:2] == ["a <cat>, same class, similarity 0.900",
                          "a very long name, another class, similarity 0.500"]  # fmt: skip
    assert same_class([query], gallery, found[0]) == 1


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """Two short real runs of one comparison."""
    from tests.conftest import TINY

    folder = tmp_path_factory.mktemp("runs")
    recipe = folder / "tiny.yaml"
    recipe.write_text(TINY + f"runs_dir: {folder / 'runs'}\n")
    short = ["train.max_steps=2", "evaluate=[{name: knn, k: 5}]"]
    return [
        start(recipe, [*short, f"name={name}", f"method.loss.temperature={temperature}"],
              display=Silent()).run_dir
        for name, temperature in (("a", 0.1), ("b", 0.5))
    ]  # fmt: skip


def compared(runs: list[Path]) -> Comparison:
    return make_comparison("x", [Arm(path.name[:1], [read_run(path)]) for path in runs], "a")


@pytest.mark.slow  # 7 seconds
def test_pictures_of_real_runs_are_in_the_page(runs: list[Path], tmp_path: Path) -> None:
    comparison = compared(runs)
    pictures, notes = make_pictures(comparison, PictureOptions(("pca", "tsne"), 3), Silent())
    assert notes == []
    assert [picture.name for picture in pictures] == ["map_pca", "map_tsne", "neighbours"]
    again, _ = make_pictures(comparison, PictureOptions(("pca", "tsne"), 3), Silent())
    assert [each.svg for each in again] == [each.svg for each in pictures]
    for picture in pictures[:2]:
        titles = re.findall(r">(a|b|untrained \(a\))<", picture.svg)
        assert set(titles) == {"a", "b", "untrained (a)"}
        assert picture.svg.count("data:image/png;base64") == 3  # points are pixels, not paths
        assert "48 images of the test split" in picture.caption
    written = write_comparison(comparison, tmp_path, pictures)
    assert tmp_path / "figures" / "neighbours.svg" in written
    for path in written:
        if path.suffix == ".svg":
            ET.parse(path)
    text = (tmp_path / "comparison.html").read_text()
    page = Page()
    page.feed(text)
    assert page.open == []
    assert all(each.startswith(("#", "data:image/")) for each in page.references)
    assert {each[1:] for each in page.references if each.startswith("#")} <= set(page.ids)
    assert len(page.ids) == len(set(page.ids))
    assert len(text) < 2e6
    assert "The 3 nearest of 96 training images" in text


@pytest.mark.slow  # 5 seconds
def test_numbers_are_not_lost_for_a_picture(runs: list[Path], tmp_path: Path) -> None:
    comparison = compared(runs)
    weights = runs[1] / "encoder.safetensors"
    kept = weights.read_bytes()
    weights.write_bytes(b"broken")
    try:
        pictures, notes = make_pictures(comparison, PictureOptions(("pca",), 0), Silent())
    finally:
        weights.write_bytes(kept)
    assert [picture.name for picture in pictures] == ["map_pca"]
    assert len(notes) == 1
    assert notes[0].startswith("b: no map and no neighbours: CheckpointError")
    assert make_pictures(comparison, PictureOptions((), 0), Silent()) == ([], [])
