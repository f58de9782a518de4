"""`~` in the paths of recipes, and what is said of the data before a run."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from sslkit.api import ComponentConfig, RunFacts
from sslkit.cli.options import expand_home
from sslkit.errors import RecipeError
from sslkit.recipe import dump_resolved, flatten, load_recipe
from sslkit.recipe.warnings import find_warnings


class Files(ComponentConfig):
    """Of a plugin."""

    one: Path
    """One."""
    some: tuple[Path, ...] = ()
    """Some."""
    either: Path | list[Path] | None = None
    """Either."""
    text: str = "~/text"
    """No path."""


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("HOME", str(tmp_path))
    return tmp_path


def test_every_path_of_every_component_is_expanded(home: Path) -> None:
    found = Files.model_validate(
        {"one": "~", "some": ["~/a", "b/~"], "either": ["~/c", "/d"], "text": "~/text"}
    )
    assert found.one == home
    assert found.some == (home / "a", Path("b/~"))
    assert found.either == [home / "c", Path("/d")]
    assert found.text == "~/text"
    with pytest.raises(ValueError, match="home of a user that this machine does not know"):
        Files.model_validate({"one": "~nobody-has-this-name/x"})
    with pytest.raises(ValueError, match="is not UTF-8; rename"):
        Files.model_validate({"one": "caf\udce9"})


def test_a_resolved_recipe_has_the_whole_path(home: Path) -> None:
    recipe = load_recipe(
        "quickstart",
        [
            "data={name: parquet, train: [~/a, /b], cache: ~/cache}",
            "backbone={name: timm, model: resnet10t, weights: ~/w.pt}",
            "runs_dir=~/runs",
        ],
    )
    values = flatten(recipe)
    assert values["data.train.0"] == str(home / "a")
    assert values["data.cache"] == str(home / "cache")
    assert values["backbone.weights"] == str(home / "w.pt")
    assert values["runs_dir"] == str(home / "runs")
    assert "~" not in dump_resolved(recipe)
    with pytest.raises(
        RecipeError, match=r"data.train: .*home of a user .*, got the text '~nobody"
    ):
        load_recipe("quickstart", ["data={name: image_folder, train: ~nobody-has-this-name}"])


def test_words_of_the_command_line(home: Path) -> None:
    assert expand_home("--out=~/x") == f"--out={home}/x"
    assert expand_home("~/runs/a") == f"{home}/runs/a"
    for word in (
        "--out",
        "a~b",
        "-o",
        "data.train=~/x",
        "{name: x, train: ~/y}",
        "~no-such-user/x",
    ):
        assert expand_home(word) == word


def facts(**changed: object) -> RunFacts:
    known = {
        "num_images": 100, "channels": 1, "image_size": (32, 32), "num_classes": 10,
        "batch_size": 10, "steps_per_epoch": 10, "total_steps": 10, "num_test_images": 20,
        "test_has_labels": True,
    }  # fmt: skip
    return RunFacts(**{**known, **changed})  # type: ignore[arg-type]


def test_evaluators_that_will_find_nothing_are_told_before_the_start() -> None:
    recipe = load_recipe("quickstart", ["evaluate=[{name: knn, k: 5}, {name: collapse}]"])

    def said(**changed: object) -> list[str]:
        return [str(w) for w in find_warnings(recipe, facts(**changed)) if "skipped" in w.message]

    assert said() == []
    assert said(num_test_images=0, test_has_labels=False) == [
        "evaluate.0: knn will be skipped: there is no test split; name one, or set "
        "data.test_fraction=0.2"
    ]
    assert said(test_has_labels=False) == [
        "evaluate.0: knn will be skipped: it needs labels, the test split has none"
    ]
    assert said(num_classes=None) == [
        "evaluate.0: knn will be skipped: it needs labels, the data has none"
    ]
    (note,) = [w for w in find_warnings(recipe, facts(data_notes=("9 of 9",))) if w.path == "data"]
    assert str(note) == "data: 9 of 9"


def test_python_warnings_are_one_line_of_ours() -> None:
    program = (
        "import warnings; from sslkit.cli.standard_streams import show_warnings_in_one_line as s;"
        "s(); warnings.warn('few\\n  images', stacklevel=1)"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert done.stderr == "warning: few images\n"
