"""The pages of the methods against the code: fields and defaults, recipes, metrics."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import generated_methods
import generated_reference as reference
import pytest
from generated_methods import NOT_YET, catalogue_page, method_pages, recipes_by_page, rows
from pages import DOCS, REPOSITORY

from sslkit.api import ImageAugmentation, resolve_component
from sslkit.engine.display import Silent
from sslkit.host.plugins import load_plugins
from sslkit.recipe import find_recipe, load_recipe, shipped_recipes
from sslkit.workflows.train import start

METHODS = DOCS / "methods"
PAGES = {name: page.path.name for page in method_pages() for name in page.names}
"""Method, or loss that makes another method of one, -> its page."""
KINDS = {name: page.kind for page in method_pages() for name in page.names}

_PERCENT = re.compile(r"\b0\.\d{3}\b")


def shipped_methods() -> dict[str, type[Any]]:
    """The methods of the packages of this repository that are installed, and losses with pages."""
    distributions = {"sslkit", *(path.name for path in (REPOSITORY / "plugins").iterdir())}
    registry = load_plugins().registry
    return {
        entry.name: registry.resolve(kind, entry.name).cls
        for kind in ("method", "loss")
        for entry in registry.entries(kind)
        if entry.distribution in distributions
        and (kind == "method" or KINDS.get(entry.name) == kind)
    }


def shipped_files() -> dict[str, Path]:
    """Name -> file of the recipes of this repository, those of absent plugins left out."""
    files = shipped_recipes().items()
    return {name: path for name, path in files if REPOSITORY in path.resolve().parents}


def text_of(method: str) -> str:
    return (METHODS / PAGES[method]).read_text(encoding="utf-8")


def sections(text: str) -> dict[str, str]:
    """Heading of the first level below the title -> its text."""
    parts = re.split(r"^## ", text, flags=re.MULTILINE)[1:]
    return {head: body for head, _, body in (part.partition("\n") for part in parts)}


def section_of(method: str) -> str:
    """The part of a page that describes a method: the page, unless it describes several."""
    page = text_of(method)
    heading = {
        "moco_v1": "MoCo v1 and v2",
        "moco_v2": "MoCo v1 and v2",
        "moco_v3": "MoCo v3",
    }.get(method)
    return page if heading is None else sections(page)[heading]


def test_every_shipped_method_has_a_page() -> None:
    methods = shipped_methods()
    assert set(methods) <= set(PAGES)
    assert {"index.md", *PAGES.values()} == {path.name for path in METHODS.glob("*.md")}


def test_the_catalogue_has_a_row_for_every_method_with_its_paper_and_differences() -> None:
    table = rows(catalogue_page(), "method")
    assert set(table) == {f"[`{name}`](../../methods/{PAGES[name]})" for name in shipped_methods()}
    for row, (paper, package, measured, *_, differences) in table.items():
        assert paper.startswith("["), f"{row}: the class names no paper that its page links"
        assert package.startswith("sslkit")
        assert measured
        assert differences.startswith("[what differs]"), f"{row}: no heading with 'differ'"


def test_the_catalogue_says_what_was_measured_by_method() -> None:
    table = rows(catalogue_page(), "method")
    assert "kNN 43.2" in table["[`byol`](../../methods/byol.md)"][2]
    assert table["[`moco_v3`](../../methods/moco.md)"][2] == NOT_YET


def test_the_catalogue_shows_the_table_of_one_budget_once_it_is_published(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    table = tmp_path / "table.csv"
    monkeypatch.setattr(generated_methods, "TABLE", table)
    heads = "method,backbone,metric,mean,minus_untrained_mean,minus_untrained_low"
    assert "in 3 minutes" not in catalogue_page()
    lines = [
        "simclr,resnet10t,eval/knn/top1,0.5237,0.1519,0.1347",
        "simclr,resnet10t,eval/linear/top1,0.1,0.1,0.1",
        "byol,vit_tiny,eval/knn/top1,0.3,-0.012,-0.02",
    ]
    table.write_text("\n".join([heads, *lines]), encoding="utf-8")
    page = catalogue_page()
    shown = {row: cells[3] for row, cells in rows(page, "method").items()}
    assert "methods-one-budget.md" in page
    assert shown.pop("[`simclr`](../../methods/simclr.md)") == "ResNet 52.4 (+15.2)"
    doubted = "ViT 30.0 (-1.2: not shown to be above it)"
    assert shown.pop("[`byol`](../../methods/byol.md)") == doubted
    assert set(shown.values()) == {NOT_YET}


@pytest.mark.parametrize("method", PAGES)
def test_a_page_gives_every_field_with_its_default(method: str) -> None:
    methods = shipped_methods()
    if method not in methods:
        pytest.skip(f"the plugin of {method} is not installed")
    config = methods[method].Config
    defaults = resolve_component(load_plugins().registry, KINDS[method], {"name": method}).config
    table = rows(section_of(method), "field")
    assert {name for name in table if "." not in name} == set(config.model_fields)
    for name, (default, *_) in table.items():
        if "." in name:
            part, inner = name.split(".")
            expected = f"`{reference.yaml_words(getattr(getattr(defaults, part).config, inner))}`"
        else:
            expected = reference.default_words(config, name)
        of_several = dict(re.findall(r"`(\w+)`: (`[^`]*`)", default))
        assert of_several.get(method, default) == expected, f"{PAGES[method]}: {name}"


def recipes_of(method: str) -> list[str]:
    """The recipes of a method on images; those of other samples stand in their package's README."""
    shipped = shipped_files()
    return [
        name
        for name in recipes_by_page().get(method, ())
        if name in shipped
        and issubclass(load_recipe(shipped[name]).augmentation.cls, ImageAugmentation)
    ]


@pytest.mark.parametrize("page", sorted(set(PAGES.values())))
def test_a_page_lists_its_recipes_as_their_headers_do(page: str) -> None:
    """Published and measured figures are those of the header, and what the header calls not yet
    measured the page does too."""
    table = rows((METHODS / page).read_text(encoding="utf-8"), "recipe")
    expected = [name for method in PAGES if PAGES[method] == page for name in recipes_of(method)]
    if not expected:
        pytest.skip("the plugin of the page is not installed")
    assert set(table) == set(expected)
    for name, (_, published, measured) in table.items():
        text = find_recipe(name).read_text(encoding="utf-8")
        header = " ".join(re.findall(r"^# ?(.*)$", text, flags=re.MULTILINE))
        figures = {f"{100 * float(number):.1f}" for number in _PERCENT.findall(header)}
        shown = set(re.findall(r"\b\d\d\.\d\b", f"{published} {measured}"))
        assert shown - figures == set(), f"{page}: {name}: not in the header of the recipe"
        unmeasured = "not yet measured" in header.lower()
        assert (measured == "not yet measured") is unmeasured, f"{page}: {name}: {measured}"


FEW = ("simclr", "byol", "mae")
"""Whose runs `make test` takes; each takes a second."""
SMALL = [
    "data={name: synthetic, num_train: 32, num_test: 16, size: 32}",
    "train.batch_size=16",
    "train.epochs=1",
    "train.max_steps=1",
    "train.compile=false",
    "train.device=cpu",
    "evaluate=[{name: collapse}]",
    "expect={}",
    "tracking={name: none}",
]


OTHER_RUNS = {"beit": ("method.tokenizer", "cpu/vq_tokenizer_cifar10_short")}
"""Method -> the field that names another run, and the recipe of that run."""


def of_other_run(method: str, runs: Path) -> list[str]:
    """The override that a method needs which builds on another run."""
    if method not in OTHER_RUNS:
        return []
    field, recipe = OTHER_RUNS[method]
    overrides = [*SMALL, *small_network(recipe), "evaluate=[]", f"runs_dir={runs}"]
    return [f"{field}={start(recipe, overrides, display=Silent()).run_dir}"]


def small_network(recipe: str) -> list[str]:
    """A small model of timm in place of a large one."""
    backbone = load_recipe(find_recipe(recipe)).backbone
    if backbone.name != "timm":
        return []
    model = backbone.config
    small = f"test_vit, patch_size: {model.patch_size}" if "vit" in model.model else "test_resnet"
    return [f"backbone={{name: timm, model: {small}}}"]


@pytest.mark.parametrize(
    "method",
    [pytest.param(name, marks=[] if name in FEW else pytest.mark.slow) for name in PAGES],
)
def test_the_metrics_on_a_page_are_those_of_a_run(method: str, tmp_path: Path) -> None:
    if method not in shipped_methods():
        pytest.skip(f"the plugin of {method} is not installed")
    recipe = next(name for name in recipes_of(method) if "cifar10" in name)
    overrides = [*SMALL, *small_network(recipe), *of_other_run(method, tmp_path)]
    overrides.append(f"runs_dir={tmp_path}")
    logged = set(start(recipe, overrides, display=Silent()).metrics)
    table = rows(text_of(method), "metric")
    named = {name.strip("` ") for cell in table for name in cell.split(",")}
    own = {name for name in named if name.startswith(("train/", "collapse/"))}
    assert own <= logged, f"{PAGES[method]}: {own - logged} is not logged"
    common = rows((METHODS / "index.md").read_text(encoding="utf-8"), "metric")
    everywhere = {name.strip("` ") for cell in common for name in cell.split(",")}
    entry = re.compile(r"^(collapse/\w+)/.+")  # of `Method.embed`, and its views
    trained = {
        entry.sub(r"\1/<entry>", name)
        for name in logged
        if name.startswith(("train/", "collapse/"))
    }
    silent = {"train/lr", "train/epoch", "train/online_probe/loss"}
    assert trained - named - everywhere <= silent, "a metric that no page explains"
