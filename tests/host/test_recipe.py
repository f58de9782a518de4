"""Recipes: loading, overrides, identity, written-out forms, and checks against the data."""

from __future__ import annotations

import copy
import pickle
import random
import re
from pathlib import Path

import pytest
from broken_recipes import GOOD
from plugin_distributions import Install
from pydantic import BaseModel, ValidationError

from sslkit.api import RunFacts, ViewSpec
from sslkit.builtin.losses import NTXent
from sslkit.errors import RecipeError
from sslkit.host.plugins import load_plugins
from sslkit.host.registry import Registry
from sslkit.recipe import (
    Expectation,
    OnlineProbeConfig,
    Recipe,
    TrainConfig,
    check_recipe,
    components,
    dump_resolved,
    find_recipe,
    flatten,
    hashed_view,
    load_recipe,
    parse_recipe,
    recipe_hash,
)

FACTS = RunFacts(
    num_images=100, channels=1, image_size=(8, 8), num_classes=10,
    batch_size=64, steps_per_epoch=1, total_steps=2,
)  # fmt: skip

ACME_PLUGIN = """
    from sslkit import hookimpl
    @hookimpl
    def register_datasets(): return {"acme_files": "acme_parts:Files"}
    @hookimpl
    def register_methods(): return {"acme": "acme_parts:Acme"}
    @hookimpl
    def register_losses(): return {"acme_loss": "acme_parts:AcmeLoss"}
    @hookimpl
    def register_callbacks(): return {"acme_watch": "acme_parts:Watch"}
"""
ACME_PARTS = """
    from pathlib import Path
    from typing import Annotated
    from pydantic import BeforeValidator, field_validator
    from sslkit.api import (
        Callback, ComponentConfig, DataSource, DataSourceConfig, Head, Loss, Method, Slot, slot)

    class Files(DataSource):
        class Config(DataSourceConfig):
            train: Path
            extra: tuple[Path, ...] = ()
            by_name: dict[str, Path | None] = {}
        def open(self, split): return None

    class AcmeLoss(Loss):
        requires = frozenset({"labels"})
        class Config(ComponentConfig):
            fraction: Annotated[float, BeforeValidator(
                lambda v: float(v[:-1]) / 100 if isinstance(v, str) and v.endswith("%") else v)] = 1
        def forward(self, inputs): return inputs.views[0].sum()

    class Acme(Method):
        requires_labels = True
        class Config(ComponentConfig):
            heads: tuple[Slot[Head], ...] = ()
            predictor: Slot[Head] | None = None
            loss: Slot[Loss] = slot("acme_loss", fraction=0.25)
            crash: bool = False
            @field_validator("crash")
            @classmethod
            def _crash(cls, value):
                if value: raise KeyError("a bug of the plugin")
                return value
        @classmethod
        def problems(cls, config, facts):
            if facts.channels != 3:
                yield "heads.0.out_dim", f"needs 3 channels, the data has {facts.channels}"
            if facts.num_images == 1:
                raise RuntimeError("a bug of the check")
        def embed(self, batch): return {}
        def objective(self, embeddings, batch, progress): return None

    class Watch(Callback): ...
"""
ACME_RECIPE = """\
name: acme
data: {name: acme_files, train: a/b.bin}
augmentation: {name: simclr, size: 32}
backbone: {name: timm, model: resnet18}
method:
  name: acme
  heads: [{name: mlp, out_dim: 16}, {name: mlp}]
optimizer: {name: sgd, lr: 0.1}
train: {epochs: 2, batch_size: 64}
tracking: {name: none}
"""


@pytest.fixture
def acme(install: Install) -> Registry:
    files = {"acme_plugin.py": ACME_PLUGIN, "acme_parts.py": ACME_PARTS}
    install("acme-ssl", files, "acme = acme_plugin", version="1.2")
    return load_plugins().registry


def good(*overrides: str) -> Recipe:
    return parse_recipe(GOOD, "good.yaml", overrides)


def problems_of(text: str, registry: Registry, *overrides: str) -> tuple[str, ...]:
    with pytest.raises(RecipeError) as error:
        parse_recipe(text, "x.yaml", overrides, registry)
    return error.value.problems


# --- Loading --------------------------------------------------------------------------------------


def test_a_recipe_is_typed_and_complete() -> None:
    recipe = good()
    assert recipe.optimizer.config.lr == 3e-4
    assert recipe.method.config.loss.name == "nt_xent"
    assert recipe.schedule.name == "cosine"
    assert recipe.train == TrainConfig(epochs=2, batch_size=64)
    assert recipe.train.online_probe == OnlineProbeConfig()
    assert recipe.runs_dir == Path("runs")
    assert isinstance(recipe.evaluate, tuple)


def test_a_recipe_is_frozen() -> None:
    recipe = good()
    for target, name in ((recipe, "seed"), (recipe.train, "epochs"), (recipe.data.config, "size")):
        with pytest.raises(ValidationError, match="frozen"):
            setattr(target, name, 5)


@pytest.mark.parametrize("model", [Recipe, TrainConfig, OnlineProbeConfig, Expectation])
def test_every_field_is_documented(model: type[BaseModel]) -> None:
    assert not [name for name, field in model.model_fields.items() if not field.description]


def test_components_are_listed_with_their_paths(acme: Registry) -> None:
    recipe = parse_recipe(ACME_RECIPE, "x", ["evaluate=[{name: knn}]"], acme)
    assert [path for path, _ in components(recipe)] == [
        "data", "augmentation", "backbone", "method", "method.heads.0", "method.heads.1",
        "method.loss", "optimizer", "schedule", "evaluate.0", "tracking",
    ]  # fmt: skip


def test_errors_of_nested_components_keep_their_path(acme: Registry) -> None:
    text = ACME_RECIPE.replace("{name: mlp}]", "{name: mlp, out_dim: x}, {name: mpl}]")
    assert problems_of(text, acme) == (
        "x.yaml:7:58: method.heads.1.out_dim: expected a whole number, got the text 'x'",
        "x.yaml:7:69: method.heads.2: unknown head 'mpl', did you mean 'mlp'? Valid: "
        f"{', '.join(acme.names('head'))}. See: sslkit plugins list --kind head",
    )


def test_a_validator_may_take_other_types(acme: Registry) -> None:
    recipe = parse_recipe(ACME_RECIPE, "x", ["method.loss.fraction=50%"], acme)
    assert recipe.method.config.loss.config.fraction == 0.5


def test_a_failing_validator_is_a_problem_of_its_component(acme: Registry) -> None:
    (line,) = problems_of(ACME_RECIPE, acme, "method.crash=true")
    assert "method: the Config of method 'acme' failed: KeyError: 'a bug of the plugin'" in line


# --- Overrides ------------------------------------------------------------------------------------


def test_overrides_change_values() -> None:
    recipe = good(
        "train.epochs=7", "method.loss.temperature=1e-1", "evaluate.0.k=9", "name=a-b", "seed=3"
    )
    assert (recipe.train.epochs, recipe.name, recipe.seed) == (7, "a-b", 3)
    assert recipe.method.config.loss.config.temperature.at(None) == 0.1
    assert recipe.evaluate[0].config.k == 9
    assert recipe.evaluate[0].name == "knn"


def test_overrides_replace_lists_and_blocks() -> None:
    assert good("evaluate=[]").evaluate == ()
    evaluate = good("evaluate=[{name: knn, k: 1}, {name: knn, k: 2}]").evaluate
    assert [slot.config.k for slot in evaluate] == [1, 2]
    assert good("train.online_probe=null").train.online_probe is None
    assert good("method.loss={name: info_nce}").method.config.loss.name == "info_nce"


def test_a_new_name_replaces_the_block_and_the_same_name_does_not() -> None:
    kept = good("method.head.name=mlp", "optimizer.name=sslkit:sgd")
    assert kept.method.config.head.config.out_dim == 64
    assert kept.optimizer.config.lr == 3e-4
    changed = good("optimizer.name=lars", "optimizer.lr=0.5")
    assert (changed.optimizer.name, changed.optimizer.config.lr) == ("lars", 0.5)
    with pytest.raises(RecipeError, match=r"optimizer\.lr: is required"):
        good("optimizer.lr=0.5", "optimizer.name=lars")  # the order counts


def test_overrides_reach_into_defaults(acme: Registry) -> None:
    overrides = ["train.online_probe.weight_decay=0.1", "schedule.warmup_epochs=1",
                 "method.loss.fraction=0.5", "tracking.name=none"]  # fmt: skip
    recipe = parse_recipe(ACME_RECIPE, "x", overrides, acme)
    assert recipe.train.online_probe == OnlineProbeConfig(weight_decay=0.1)
    assert (recipe.schedule.name, recipe.schedule.config.warmup_epochs) == ("cosine", 1)
    assert recipe.method.config.loss.name == "acme_loss"
    recipe = parse_recipe(ACME_RECIPE, "x", ["augmentation.crop_scale.0=0.25"], acme)
    assert recipe.augmentation.config.crop_scale == (0.25, 1.0)
    recipe = parse_recipe(ACME_RECIPE, "x", ["expect.train/loss.at_most=5"], acme)
    assert recipe.expect == {"train/loss": Expectation(at_most=5.0)}
    recipe = parse_recipe(ACME_RECIPE, "x", ["method.predictor.name=mlp"], acme)
    assert recipe.method.config.predictor.name == "mlp"
    recipe = parse_recipe(ACME_RECIPE, "x", ["train.online_probe=null"], acme)
    assert recipe.train.online_probe is None


def test_the_default_of_a_block_is_kept_around_an_override(acme: Registry) -> None:
    recipe = parse_recipe(ACME_RECIPE, "x", [], acme)
    assert recipe.method.config.loss.config.fraction == 0.25
    recipe = parse_recipe(ACME_RECIPE, "x", ["method.loss.name=acme_loss"], acme)
    assert recipe.method.config.loss.config.fraction == 0.25


def test_an_override_can_mend_the_file() -> None:
    text = GOOD.replace("  epochs: 2\n", "")
    assert parse_recipe(text, "x", ["train.epochs=4"]).train.epochs == 4


# --- Identity -------------------------------------------------------------------------------------


def test_a_resolved_recipe_reads_back_equal(acme: Registry) -> None:
    for recipe in (
        good("expect={eval/knn/top1: {at_least: 0.5}}"),
        parse_recipe(ACME_RECIPE, "x", ["data.by_name={on: null, b: 1e3/x}"], acme),
    ):
        text = dump_resolved(recipe)
        again = parse_recipe(text, "resolved", (), acme)
        assert again == recipe
        assert recipe_hash(again) == recipe_hash(recipe)
        assert dump_resolved(again) == text
        assert again.origins["data"].distribution == recipe.data.distribution
        assert set(again.origins) == {path for path, _ in components(recipe)}


def test_recipes_survive_copying_and_pickling() -> None:
    recipe = good()
    for again in (copy.deepcopy(recipe), pickle.loads(pickle.dumps(recipe))):  # noqa: S301
        assert again == recipe
        assert hash(again) == hash(recipe)
    assert good("seed=1") != recipe
    assert recipe != "recipe"


@pytest.mark.parametrize(
    "override",
    ["seed=9", "name=x", "runs_dir=/elsewhere", "tracking.name=mlflow", "train.loader_threads=0",
     "callbacks=[{name: acme_watch}]", "train.log_every_steps=1", "train.keep_checkpoints=9",
     "train.checkpoint_every_epochs=9", "train.checkpoint_every_steps=9", "train.device=cpu",
     "expect={train/loss: {at_most: 1}}", "data.train=/other/place", "train.epochs=2",
     "method.heads.1.name=sslkit:mlp"],
)  # fmt: skip
def test_the_hash_leaves_out(override: str, acme: Registry) -> None:
    plain = parse_recipe(ACME_RECIPE, "x", (), acme)
    assert recipe_hash(parse_recipe(ACME_RECIPE, "x", [override], acme)) == recipe_hash(plain)


@pytest.mark.parametrize(
    "override",
    ["train.epochs=3", "train.batch_size=65", "train.precision=bf16", "train.compile=true",
     "train.deterministic=true", "train.max_steps=5", "method.loss.fraction=0.5",
     "method.heads.0.out_dim=17", "optimizer.lr=0.2", "evaluate=[{name: knn}]",
     "data.max_corrupt_fraction=0.5", "data.extra=[a]", "data.by_name={a: null}",
     "train.online_probe=null"],
)  # fmt: skip
def test_the_hash_covers(override: str, acme: Registry) -> None:
    plain = parse_recipe(ACME_RECIPE, "x", (), acme)
    assert recipe_hash(parse_recipe(ACME_RECIPE, "x", [override], acme)) != recipe_hash(plain)


def test_the_hash_changes_only_on_purpose() -> None:
    """A new field, another default and another rule of hashing change it: each is for a minor
    release and its changelog (docs/reference/compatibility.md), and for a new value here."""
    assert recipe_hash(parse_recipe(GOOD, "x")) == "f117f7c40b2d0ea0"


def test_the_hash_ignores_order_and_layout() -> None:
    lines = GOOD.splitlines(keepends=True)
    reordered = "".join([lines[-1], "# a comment\n", *lines[:-1]])
    assert recipe_hash(parse_recipe(reordered, "x")) == recipe_hash(good())
    view = hashed_view(good())
    loss = {"name": "sslkit:nt_xent", "temperature": 0.5, "chunk_elements": 2**22}
    assert view["method"]["loss"] == loss
    assert set(view) == {
        "data", "augmentation", "backbone", "method", "optimizer", "schedule", "train", "evaluate",
        "evaluation_precision",
    }  # fmt: skip


def test_a_new_version_of_a_plugin_keeps_the_hash(acme: Registry, site: Path) -> None:
    before = parse_recipe(ACME_RECIPE, "x", (), acme)
    info = site / "acme_ssl-1.2.dist-info"
    metadata = (info / "METADATA").read_text()
    (info / "METADATA").write_text(metadata.replace("Version: 1.2", "Version: 1.3"))
    after = parse_recipe(ACME_RECIPE, "x", (), load_plugins().registry)
    assert (before.method.version, after.method.version) == ("1.2", "1.3")
    assert recipe_hash(before) == recipe_hash(after)
    assert "version: '1.3'" in dump_resolved(after) or "version: 1.3" in dump_resolved(after)
    parse_recipe(dump_resolved(after), "x", (), load_plugins().registry)


def test_a_resolved_recipe_outlives_a_later_clash(acme: Registry, install: Install) -> None:
    recipe = parse_recipe(ACME_RECIPE, "x", (), acme)
    resolved = dump_resolved(recipe)
    source = """
        from sslkit import hookimpl
        @hookimpl
        def register_losses(): return {"acme_loss": "other:Loss"}
    """
    install("other", {"other_plugin.py": source}, "o = other_plugin")
    registry = load_plugins().registry
    assert "is ambiguous" in problems_of(ACME_RECIPE, registry)[0]
    again = parse_recipe(resolved, "x", (), registry)
    assert again.method.config.loss.distribution == "acme-ssl"
    assert recipe_hash(again) == recipe_hash(recipe)


def test_a_resolved_recipe_does_not_take_anothers_component(
    acme: Registry, install: Install, site: Path
) -> None:
    resolved = dump_resolved(parse_recipe(ACME_RECIPE, "x", (), acme))
    source = """
        from sslkit import hookimpl
        @hookimpl
        def register_losses(): return {"acme_loss": "acme_parts:AcmeLoss"}
        @hookimpl
        def register_methods(): return {"acme": "acme_parts:Acme"}
        @hookimpl
        def register_datasets(): return {"acme_files": "acme_parts:Files"}
    """
    install("usurper", {"usurper_plugin.py": source}, "u = usurper_plugin")
    (site / "acme_ssl-1.2.dist-info" / "entry_points.txt").write_text("")
    registry = load_plugins().registry
    assert parse_recipe(ACME_RECIPE, "x", (), registry).method.distribution == "usurper"
    assert any(
        "method: unknown method 'acme-ssl:acme'" in line for line in problems_of(resolved, registry)
    )


def test_flatten_gives_dotted_scalars() -> None:
    flat = flatten(good("expect={eval/knn/top1: {at_least: 0.5}}"))
    assert flat["method.loss.temperature"] == 0.5
    assert flat["method.loss.name"] == "nt_xent"
    assert flat["evaluate.0.k"] == 20
    assert flat["expect.eval/knn/top1.at_least"] == 0.5
    assert flat["train.max_steps"] is None
    assert not any(key.startswith(("origins", "callbacks")) for key in flat)
    assert all(isinstance(value, (str, int, float, type(None))) for value in flat.values())


# --- Checks against the data ----------------------------------------------------------------------


def test_a_loss_without_its_labels_is_told_once(
    tiny: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(NTXent, "requires", frozenset({"labels"}))
    views = (ViewSpec(16), ViewSpec(16))
    unlabelled = RunFacts(96, 3, (16, 16), None, 16, 6, 18, views)
    (line,) = [line for line in check_recipe(load_recipe(tiny), unlabelled) if "labels" in line]
    assert "method.loss: loss 'nt_xent' needs labels, and the data has none; take data" in line


def test_check_recipe_finds_what_the_data_shows(acme: Registry) -> None:
    recipe = parse_recipe(ACME_RECIPE, "x.yaml", (), acme)
    unlabelled = RunFacts(100, 1, (8, 8), None, 64, 1, 2)
    lines = check_recipe(recipe, unlabelled)
    assert [line for line in lines if "method" in line] == [
        "x.yaml:6:3: method: method 'acme' needs labels, and the data has none; take data with "
        "labels, such as class folders, or another method",
        "x.yaml:7:32: method.heads.0.out_dim: needs 3 channels, the data has 1",
    ], "the loss needs labels, too, and the line of the method says so"


def test_check_recipe_names_the_baselines_that_there_are() -> None:
    recipe = load_recipe(
        find_recipe("quickstart"),
        ["evaluate=[{name: knn, layer: 1, baselines: [pixels]}, {name: collapse, baselines: []}]"],
    )
    facts = RunFacts(1000, 3, (32, 32), 10, 256, 3, 6)
    (line,) = (line for line in check_recipe(recipe, facts) if "baseline" in line)
    assert line.endswith("evaluate.0.baselines: 'knn' has no baseline pixels; valid: untrained")


def test_check_recipe_survives_a_bug_in_a_check(acme: Registry) -> None:
    facts = RunFacts(1, 3, (8, 8), 10, 1, 1, 2)
    lines = check_recipe(parse_recipe(ACME_RECIPE, "x.yaml", (), acme), facts)
    (line,) = [line for line in lines if "the check of method" in line]
    assert "RuntimeError: a bug of the check" in line
    assert "acme_parts.py:" in line


def test_check_recipe_names_the_override(acme: Registry) -> None:
    recipe = parse_recipe(ACME_RECIPE, "x.yaml", ["method.heads.0.out_dim=8"], acme)
    lines = check_recipe(recipe, FACTS)
    assert "-o method.heads.0.out_dim=8: needs 3 channels, the data has 1" in lines


def test_check_recipe_finds_nothing_in_a_good_recipe() -> None:
    views = (ViewSpec(32), ViewSpec(32))
    assert check_recipe(good(), RunFacts(1797, 3, (32, 32), 10, 64, 28, 56, views)) == []


def test_a_file_is_loaded_by_path_and_named_in_messages(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("r.yaml").write_text(GOOD.replace("epochs: 2", "epochs: -2"))
    with pytest.raises(RecipeError, match=r"^r\.yaml:13:11: train\.epochs: "):
        load_recipe("r.yaml")


def problems_or_none(text: str, overrides: list[str], registry: Registry) -> tuple[str, ...]:
    try:
        parse_recipe(text, "x", overrides, registry)
    except RecipeError as error:
        return error.problems
    return ()


def test_any_damage_to_a_recipe_is_explained() -> None:
    source = random.Random(0)
    registry = load_plugins().registry
    pieces = ["null", "[]", "{}", "x", "1", "-1", "1e999", "true", "{name: mlp}", "[{}]", ": ", "'"]
    paths = ["method", "method.loss", "evaluate.0", "train", "augmentation.crop_scale", "expect.a",
             "origins", "origins.method", "data.size", "train.online_probe", "name"]  # fmt: skip
    refused = 0
    for _ in range(300):
        words = re.split(r"(\W)", GOOD)
        overrides = []
        if source.random() < 0.5:
            words[source.randrange(len(words))] = source.choice(pieces)
        else:
            overrides.append(f"{source.choice(paths)}={source.choice(pieces)}")
        problems = problems_or_none("".join(words), overrides, registry)
        refused += bool(problems)
        assert all(p.startswith(("x:", "-o ")) and "\n" not in p for p in problems)
    assert 100 < refused < 300


def test_more_threads_than_any_machine_runs_are_refused() -> None:
    """Two billion of them took 4 GB before the first step."""
    with pytest.raises(RecipeError, match="at most 1024, got 2147483648"):
        parse_recipe(GOOD, "x.yaml", ["train.loader_threads=2147483648"])
