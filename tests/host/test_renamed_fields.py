"""Fields of components that had another name: old recipes, overrides and run folders."""

from __future__ import annotations

import re
import subprocess
import sys
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any

import pytest
from broken_recipes import GOOD
from plugin_distributions import Install, write_distribution

from sslkit.api import ComponentConfig, RenamedFrom, ScheduledNumber, scheduled
from sslkit.api.renamed_fields import renamed_fields
from sslkit.errors import PluginError, RecipeError
from sslkit.host.plugins import load_plugins
from sslkit.recipe import Recipe, dump_resolved, hashed_view, json_schema, parse_recipe, recipe_hash
from sslkit.recipe.loading import warn_once
from sslkit.report.listing import component_fields
from tests.conftest import TINY

HOOKS = """
    from sslkit import hookimpl
    sslkit_interface = 2
    @hookimpl
    def register_losses(): return {"soft": "soft_parts:Soft"}
    @hookimpl
    def register_heads(): return {"bent": "soft_parts:Bent"}
"""
FIRST = """
    from sslkit.api import ComponentConfig, Head, Loss, ScheduledNumber, Slot, scheduled, slot
    from sslkit.nn.functional import nt_xent
    from torch import nn
    class Part(ComponentConfig):
        size: int
    class Soft(Loss):
        class Config(ComponentConfig):
            tau: ScheduledNumber = scheduled(0.5)
            parts: tuple[Part, ...] = ()
            inner: Slot[Head] = slot("bent")
        def forward(self, inputs):
            tau = getattr(self.config, "tau", None) or self.config.temperature
            return nt_xent(*inputs.views, tau.at(inputs.progress))
    class Bent(Head):
        class Config(ComponentConfig):
            width: int = 3
        def forward(self, features): return features
"""
LATER = (
    FIRST.replace("import ComponentConfig", "import RenamedFrom, ComponentConfig")
    .replace("from torch", "from typing import Annotated\n    from torch")
    .replace("size: int", 'count: Annotated[int, RenamedFrom("size")]')
    .replace(
        "tau: ScheduledNumber",
        'temperature: Annotated[ScheduledNumber, RenamedFrom("tau", "temp", ends="soft 2.0")]',
    )
    .replace("inner: Slot[Head]", 'head: Annotated[Slot[Head], RenamedFrom("inner")]')
    .replace("width: int", 'out_dim: Annotated[int, RenamedFrom("width")]')
)
"""The same plugin, each of whose fields has another name now."""

OLD = GOOD.replace(
    "  loss: {name: nt_xent, temperature: 0.5}\n",
    "  loss:\n    name: soft\n    tau: 0.2\n    parts: [{size: 7}]\n"
    "    inner: {name: bent, width: 5}\n",
)
NEW = (
    OLD.replace("tau: 0.2", "temperature: 0.2").replace("size: 7", "count: 7")
    .replace("inner:", "head:").replace("width: 5", "out_dim: 5")
)  # fmt: skip


def put(site: Path, parts: str, version: str = "1.0") -> None:
    """Installs the plugin, in place of what there is of it."""
    for folder in site.glob("soft-*.dist-info"):
        for file in folder.iterdir():
            file.unlink()
        folder.rmdir()
    sys.modules.pop("soft_parts", None)
    write_distribution(
        site, "soft", {"soft_plugin.py": HOOKS, "soft_parts.py": parts}, "s = soft_plugin", version
    )
    for cached in site.rglob("*.pyc"):
        cached.unlink()


@pytest.fixture
def later(site: Path) -> None:
    put(site, LATER)


def read(text: str, overrides: Sequence[str] = ()) -> tuple[Recipe, list[str]]:
    """The recipe, and the warnings of reading it as a process that has just started does."""
    warn_once.cache_clear()
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        recipe = parse_recipe(text, "x.yaml", overrides)
    return recipe, [str(each.message) for each in said]


def quiet(text: str, overrides: Sequence[str] = ()) -> Recipe:
    recipe, said = read(text, overrides)
    assert said == []
    return recipe


@pytest.mark.usefixtures("later")
def test_an_old_recipe_means_the_same_and_says_what_to_write() -> None:
    recipe, said = read(OLD)
    assert said == [
        "x.yaml:11:5: method.loss.tau: is called temperature now: write that, the old name ends "
        "with soft 2.0",
        "x.yaml:13:5: method.loss.inner: is called head now: write that",
        "x.yaml:12:14: method.loss.parts.0.size: is called count now: write that",
        "x.yaml:13:25: method.loss.head.width: is called out_dim now: write that",
    ]
    assert recipe == quiet(NEW)
    assert recipe_hash(recipe) == recipe_hash(quiet(NEW))
    assert "temperature: 0.2" in dump_resolved(recipe)
    assert not re.search("tau|size: 7|inner|width", dump_resolved(recipe))
    quiet(dump_resolved(recipe))


@pytest.mark.usefixtures("later")
def test_a_problem_under_an_old_name_is_where_it_stands() -> None:
    with pytest.raises(RecipeError) as error:
        read(OLD.replace("tau: 0.2", "tau: warm").replace("size: 7", "size: 7.5"))
    assert [line.partition(", got")[0] for line in error.value.problems] == [
        "x.yaml:11:10: method.loss.temperature: expected a number or a schedule {name: ..., "
        "start: ..., end: ...}",
        "x.yaml:12:20: method.loss.parts.0.count: expected a whole number",
    ]


@pytest.mark.usefixtures("later")
def test_both_names_are_refused_where_the_old_one_stands() -> None:
    both = NEW.replace("temperature: 0.2", "temperature: 0.2\n    temp: 0.3")
    with pytest.raises(RecipeError) as error:
        read(both)
    assert error.value.problems == (
        "x.yaml:12:5: method.loss.temp: is an old name of temperature, which is given too: remove "
        "it",
    )
    two_old = OLD.replace("tau: 0.2", "tau: 0.2\n    temp: 0.3")
    with pytest.raises(RecipeError, match=r"x\.yaml:12:5: method\.loss\.temp: is an old name of"):
        read(two_old)


@pytest.mark.usefixtures("later")
@pytest.mark.parametrize("text", [OLD, NEW], ids=["old recipe", "new recipe"])
@pytest.mark.parametrize(
    ("override", "value"),
    [
        ("method.loss.tau=0.9", 0.9),
        ("method.loss.temp=0.9", 0.9),
        ("method.loss.temperature=0.9", 0.9),
        ("method.loss={name: soft, tau: 0.9}", 0.9),
        ("method={name: simclr, loss: {name: soft, tau: 0.9}}", 0.9),
    ],
)
def test_overrides_reach_a_field_by_either_name(text: str, override: str, value: float) -> None:
    recipe, said = read(text, [override])
    assert recipe.method.config.loss.config.temperature.start == value  # type: ignore[attr-defined]
    ours = [line for line in said if line.startswith("-o ")]
    assert len(ours) == (override != "method.loss.temperature=0.9")
    assert all("is called temperature now: write that" in line for line in ours)
    # Later overrides see the name of today.
    later, _ = read(text, [override, "method.loss.temperature=0.1"])
    assert later.method.config.loss.config.temperature.start == 0.1  # type: ignore[attr-defined]


@pytest.mark.usefixtures("later")
def test_overrides_reach_through_blocks_with_old_names() -> None:
    recipe, _ = read(OLD, ["method.loss.inner.width=9", "method.loss.parts.0.size=8"])
    loss: Any = recipe.method.config.loss.config  # type: ignore[attr-defined]
    assert (loss.head.config.out_dim, loss.parts[0].count) == (9, 8)
    changing, _ = read(OLD, ["method.loss.tau={name: cosine, start: 0.5, end: 0.1}",
                             "method.loss.tau.end=0.2"])  # fmt: skip
    number = changing.method.config.loss.config.temperature  # type: ignore[attr-defined]
    assert (number.start, number.end) == (0.5, 0.2)


def test_a_resolved_recipe_of_the_first_release_has_the_hash_that_it_had(site: Path) -> None:
    put(site, FIRST)
    before = quiet(OLD)
    saved, digest = dump_resolved(before), recipe_hash(before)
    assert "inner:" in saved
    put(site, LATER, "2.0")
    after, said = read(saved)
    assert recipe_hash(after) == digest
    assert hashed_view(after)["method"]["loss"]["temperature"] == 0.2  # shown as it is called
    assert said[0] == (
        "method.loss.tau of saved runs is called temperature now: write that, the old name ends "
        "with soft 2.0"
    )
    assert len(said) == 4


def test_origins_of_the_first_release_tell_names_apart(site: Path, install: Install) -> None:
    """A component in a renamed slot keeps its meaning where another plugin claims its name."""
    put(site, FIRST)
    saved = dump_resolved(quiet(OLD))
    put(site, LATER, "2.0")
    other = HOOKS.replace("soft_parts", "other_parts").replace('"soft"', '"other"')
    install("other", {"other_plugin.py": other, "other_parts.py": FIRST}, "o = other_plugin")
    recipe, _ = read(saved)
    head = recipe.method.config.loss.config.head  # type: ignore[attr-defined]
    assert (head.distribution, head.config.out_dim) == ("soft", 5)


@pytest.mark.usefixtures("later")
def test_an_editor_takes_old_names_and_strikes_them_out() -> None:
    jsonschema = pytest.importorskip("jsonschema")
    from sslkit.recipe.yaml_positions import parse_document

    schema = json_schema(load_plugins().registry)
    validator = jsonschema.Draft202012Validator(schema)
    for text in (OLD, NEW):
        assert validator.is_valid(parse_document(text, "x").tree)
    missing = NEW.replace("count: 7", "")
    assert not validator.is_valid(parse_document(missing, "x").tree)
    fields = schema["$defs"]["loss.soft:soft"]["properties"]
    assert fields["tau"]["deprecated"] is True
    assert "temperature" in fields["tau"]["deprecationMessage"]
    assert "deprecated" not in fields["temperature"]


@pytest.mark.usefixtures("later")
def test_plugins_show_lists_the_names_of_today() -> None:
    (shown,) = component_fields(load_plugins().registry, "soft")
    names = [field["field"] for field in shown["fields"]]
    assert names == ["temperature", "parts", "parts.N.count", "head"]


class Config(ComponentConfig):
    momentum: Annotated[ScheduledNumber, RenamedFrom("ema", ends="x 3")] = scheduled(0.9)


def test_a_config_made_in_python_warns_its_author() -> None:
    with pytest.warns(DeprecationWarning, match="Config: ema is called momentum now: write that"):
        made = Config(ema=0.5)  # type: ignore[call-arg]
    assert made == Config(momentum=scheduled_number(0.5))
    with pytest.raises(ValueError, match="ema: is an old name of momentum, which is given too"):
        Config.model_validate({"ema": 0.5, "momentum": 0.5})


def scheduled_number(value: float) -> ScheduledNumber:
    return Config.model_validate({"momentum": value}).momentum


def test_names_that_cannot_be_told_apart_are_refused(site: Path) -> None:
    class Taken(ComponentConfig):
        a: Annotated[int, RenamedFrom("b")] = 0
        b: int = 0

    class Shared(ComponentConfig):
        a: Annotated[int, RenamedFrom("c")] = 0
        b: Annotated[int, RenamedFrom("c")] = 0

    with pytest.raises(PluginError, match="has 'b' as an old name of the Config field 'a', and it"):
        renamed_fields(Taken)
    with pytest.raises(PluginError, match="has 'c' as an old name of the Config field 'b', and it"):
        renamed_fields(Shared)
    put(site, LATER.replace('RenamedFrom("inner")', 'RenamedFrom("parts")'))
    with pytest.raises(RecipeError, match=r"has 'parts' as an old name of the Config field 'head'"):
        read(OLD)


@pytest.mark.slow  # four real commands
def test_an_old_run_folder_goes_on_and_is_measured(site: Path, tmp_path: Path) -> None:
    """With the real command, in processes of its own: one line of warning each."""
    text = TINY.replace("method:", "method:\n  loss: {name: soft, tau: 0.4}")
    recipe = tmp_path / "old.yaml"
    recipe.write_text(f"{text}runs_dir: {tmp_path / 'runs'}\n")
    program = f"import sys; sys.path.insert(0, {str(site)!r}); from sslkit.cli import main; main()"

    def sslkit(*words: str) -> str:
        done = subprocess.run(
            [sys.executable, "-c", program, *words], capture_output=True, text=True, cwd=tmp_path
        )
        assert done.returncode == 0, done.stderr
        return done.stderr

    put(site, FIRST)
    sslkit("run", str(recipe), "-o", "train.epochs=1")
    (run,) = (tmp_path / "runs").iterdir()
    put(site, LATER, "2.0")
    (run / "results.json").unlink()  # as if it had been stopped at the end
    expected = "warning: method.loss.tau of saved runs is called temperature now: write that"
    for words in (["run", "--resume", str(run)], ["eval", str(run)]):
        said = sslkit(*words)
        assert said.count("is called") == 3, said  # each renamed field once
        assert expected in said
    said = sslkit("validate", str(recipe))
    assert said.splitlines() == [
        f"warning: {recipe}:6:22: method.loss.tau: is called temperature now: write that, the old "
        "name ends with soft 2.0"
    ]
