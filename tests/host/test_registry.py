"""Names to classes: lazy import, checks of the class, and messages for what cannot be found."""

from __future__ import annotations

import pytest
from plugin_distributions import Install
from pydantic import ValidationError

from sslkit.errors import PluginError
from sslkit.host.plugins import components_named, load_plugins

PLUGIN = """
    from sslkit import hookimpl

    @hookimpl
    def register_losses():
        names = ["Fine", "Function", "WithSet", "NotALoss", "Abstract"]
        names += ["BadConfig", "NoConfig", "Named", "Bare"]
        return {name.lower(): f"parts_of_it:{name}" for name in names} | {
            "absent": "parts_of_it:Absent", "failing": "failing_part:Loss"}

    @hookimpl
    def register_datasets():
        return {"plain": "parts_of_it:PlainDataset"}
"""
PARTS = """
    from pydantic import BaseModel
    from sslkit.api import ComponentConfig, DataSource, Loss, ScheduledNumber

    class Fine(Loss):
        def forward(self, inputs): return inputs.views[0].sum()
    def Function(): ...
    class NotALoss: ...
    class Abstract(Loss): ...
    class BadConfig(Fine):
        class Config(BaseModel): ...
    class NoConfig(Fine):
        Config = None
    class Named(Fine):
        class Config(ComponentConfig):
            name: str = "x"
    class Bare(Fine):
        class Config(ComponentConfig):
            t: ScheduledNumber = 2.0
    class WithSet(Fine):
        class Config(ComponentConfig):
            kinds: tuple[int, frozenset[str] | None] = (0, None)
    class PlainDataset(DataSource):
        class Config(ComponentConfig): ...
        def open(self, split): return None
"""


@pytest.fixture
def plugin(install: Install) -> None:
    files = {
        "it_plugin.py": PLUGIN,
        "parts_of_it.py": PARTS,
        "failing_part.py": "import no_such_thing",
    }
    install("it", files, "it = it_plugin", version="0.3")


@pytest.mark.usefixtures("plugin")
def test_a_class_is_found_with_its_origin() -> None:
    registry = load_plugins().registry
    for name in ("fine", "it:fine", "IT:fine"):
        found = registry.resolve("loss", name)
        assert found.cls.__name__ == "Fine"
        assert (found.name, found.distribution, found.version) == ("fine", "it", "0.3")


@pytest.mark.usefixtures("plugin")
@pytest.mark.parametrize(
    ("kind", "name", "expected"),
    [
        ("loss", "function", ["is a function", "a subclass of sslkit.api.Loss"]),
        ("loss", "notaloss", ["base builtins.object", "a subclass of sslkit.api.Loss"]),
        ("loss", "abstract", ["does not implement forward of sslkit.api.Loss"]),
        ("loss", "badconfig", ["BadConfig.Config", "sslkit.api.ComponentConfig"]),
        ("loss", "noconfig", ["the Config None", "sslkit.api.ComponentConfig"]),
        ("loss", "named", ["Config field 'name'"]),
        ("loss", "bare", ["has 2.0 as the default of 't': write scheduled(2.0)"]),
        ("loss", "withset", ["a set as Config field 'kinds'", "use a tuple"]),
        ("loss", "absent", ["cannot import parts_of_it:Absent", "AttributeError"]),
        ("loss", "failing", ["cannot import", "'no_such_thing'", "failing_part.py:1"]),
        ("dataset", "plain", ["expected a subclass of sslkit.api.DataSourceConfig"]),
    ],
)
def test_a_wrong_class_is_explained(kind: str, name: str, expected: list[str]) -> None:
    with pytest.raises(PluginError) as error:
        load_plugins().registry.resolve(kind, name)
    message = str(error.value)
    assert message.startswith(f"{kind} '{name}' of it 0.3: ")
    for text in expected:
        assert text in message
    assert "\n" not in message


def test_an_unknown_name_gets_a_suggestion() -> None:
    registry = load_plugins().registry
    with pytest.raises(PluginError) as error:
        registry.resolve("loss", "NTXent")
    assert {"info_nce", "nt_xent"} <= set(registry.names("loss"))
    assert str(error.value) == (
        "unknown loss 'NTXent', did you mean 'nt_xent'? "
        f"Valid: {', '.join(registry.names('loss'))}. See: sslkit plugins list --kind loss"
    )


def test_a_name_that_is_like_none_asks_for_its_package() -> None:
    with pytest.raises(PluginError) as error:
        load_plugins().registry.resolve("loss", "zyx")
    assert str(error.value).startswith(
        "unknown loss 'zyx'; no installed package provides it: is the one that does installed? "
        "Valid: "
    )
    with pytest.raises(PluginError, match="'far-away' provides no working plugin; is it installed"):
        load_plugins().registry.resolve("loss", "far-away:wmse")


@pytest.mark.usefixtures("plugin")
@pytest.mark.parametrize("name", ["fine", "it:fine"])
def test_a_name_of_another_kind_says_of_which(name: str) -> None:
    registry = load_plugins().registry
    with pytest.raises(PluginError) as error:
        registry.resolve("head", name)
    assert str(error.value).startswith(
        f"unknown head '{name}': registered as loss (it 0.3), and not as head. "
        f"Valid: {', '.join(registry.names('head'))}"
    )


def test_a_name_of_another_kind_of_a_broken_plugin_says_both(install: Install) -> None:
    source = """
        from sslkit import hookimpl
        @hookimpl
        def register_losses(): return {"wanted": "p:Wanted", "nt_xent": "p:Mine"}
    """
    install("broken", {"broken_plugin.py": source}, "b = broken_plugin")
    registry = load_plugins().registry
    with pytest.raises(PluginError, match=r"as loss \(the broken plugin 'b' of broken\), and not"):
        registry.resolve("head", "wanted")
    with pytest.raises(PluginError, match="loss 'wanted' comes from the broken plugin 'b' of"):
        components_named(registry, "wanted")


def test_an_unknown_distribution_is_named() -> None:
    with pytest.raises(PluginError) as error:
        load_plugins().registry.resolve("loss", "slkit:nt_xent")
    assert str(error.value).startswith(
        "unknown loss 'slkit:nt_xent': 'slkit' provides no working plugin, did you mean 'sslkit'?"
    )


def test_a_name_of_a_broken_plugin_says_why(install: Install) -> None:
    source = """
        from sslkit import hookimpl
        @hookimpl
        def register_losses(): return {"wanted": "p:Wanted", "nt_xent": "p:Mine"}
    """
    install("broken", {"broken_plugin.py": source}, "b = broken_plugin")
    for name in ("wanted", "broken:wanted"):
        with pytest.raises(PluginError, match=r"broken plugin 'b' of broken 1.0: claims the built"):
            load_plugins().registry.resolve("loss", name)
    assert load_plugins().registry.resolve("loss", "nt_xent").distribution == "sslkit"


def test_a_plugin_that_cannot_be_imported_is_a_suspect(install: Install) -> None:
    install("broken", {"broken_plugin.py": "import no_such_thing"}, "b = broken_plugin")
    with pytest.raises(PluginError, match=r"may provide it: b of broken .*no_such_thing"):
        load_plugins().registry.resolve("loss", "wanted")


def test_nothing_is_imported_before_it_is_named(install: Install) -> None:
    source = """
        from sslkit import hookimpl
        @hookimpl
        def register_losses(): return {"late": "late_parts:Late"}
    """
    site = install("late", {"late_plugin.py": source}, "late = late_plugin")
    registry = load_plugins().registry
    assert "late" in registry.names("loss")
    (site / "late_parts.py").write_text(
        "from sslkit.api import Loss\nclass Late(Loss):\n    def forward(self, inputs): ..."
    )
    assert registry.resolve("loss", "late").cls.__name__ == "Late"


def test_a_config_validates_outside_a_recipe_with_what_is_installed() -> None:
    from sslkit.builtin.simclr import SimCLR

    default = SimCLR.Config()
    assert (default.head.name, default.loss.name) == ("mlp", "nt_xent")
    chosen = SimCLR.Config(head={"name": "mlp", "out_dim": 32})  # type: ignore[arg-type]
    assert chosen.head.build(in_dim=8).out_dim == 32
    with pytest.raises(ValidationError, match="unknown head 'mlpp', did you mean 'mlp'"):
        SimCLR.Config(head={"name": "mlpp"})  # type: ignore[arg-type]
