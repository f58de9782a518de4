"""Plugins written for an earlier interface: what still works warns, what does not is refused, and
both say what to write."""

from __future__ import annotations

import importlib
import re
import subprocess
import sys
import warnings
from pathlib import Path
from typing import Any

import pytest
from plugin_distributions import Install

import sslkit
import sslkit.interfaces
from sslkit import api
from sslkit.deprecation import MOVED_MODULES, InterfaceWarning
from sslkit.errors import PluginError
from sslkit.host import compatibility
from sslkit.host.compatibility import CHANGES, Change, misfit
from sslkit.host.plugins import load_plugins

HOOKS = """
    from sslkit import hookimpl
    {statement}
    @hookimpl
    def register_losses():
        return {{"old_loss": "old_parts:OldLoss"}}

    @hookimpl
    def register_datasets():
        return {{"old_data": "old_parts:OldData"}}
"""
PARTS = """
    import numpy as np
    from sslkit.interfaces import ComponentConfig, Dataset, ImageReader, Loss, LossInput
    from sslkit.nn.functional import nt_xent
    from sslkit.nn.gather import all_gather

    class OldLoss(Loss):
        def forward(self, inputs: LossInput):
            a, b = inputs.views
            return nt_xent(all_gather(a), all_gather(b), temperature=0.5)

    class OldData(Dataset):
        def open(self, split):
            return Reader()

    class Reader(ImageReader):
        channels = 1
        image_size = (8, 8)
        labels = np.arange(32) % 2
        def __len__(self):
            return 32
        def read(self, index):
            return np.full((8, 8, 1), index, np.uint8)
        def fingerprint(self):
            return "old"
"""

INTERFACE_1 = [
    "Augmentation",
    "Backbone",
    "Batch",
    "Batches",
    "Boxes",
    "Callback",
    "Component",
    "ComponentConfig",
    "Dataset",
    "DatasetConfig",
    "Evaluation",
    "Evaluator",
    "EvaluatorConfig",
    "Facts",
    "FeatureBank",
    "FeatureStage",
    "Geometry",
    "Head",
    "IGNORED_PIXEL",
    "INTERFACES",
    "ImageReader",
    "Images",
    "Loss",
    "LossInput",
    "Method",
    "MetricPoint",
    "NoFeatureMapsError",
    "Optimizer",
    "OptimizerConfig",
    "ParamGroup",
    "Params",
    "Preprocess",
    "Progress",
    "RunView",
    "Schedule",
    "Slot",
    "StepOutput",
    "Subject",
    "Tracker",
    "UnreadableImageError",
    "ViewSpec",
    "optimizer_groups",
    "resolve_component",
    "slot",
]
"""The names of `sslkit.interfaces` before `sslkit.api` was there."""


def old_plugin(install: Install, statement: str = "") -> None:
    files = {"old_plugin.py": HOOKS.format(statement=statement), "old_parts.py": PARTS}
    install("sslkit-old", files, "old = old_plugin")


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_a_plugin_of_interface_1_works_and_is_told_what_to_import(install: Install) -> None:
    old_plugin(install)
    registry = load_plugins().registry
    with pytest.warns(InterfaceWarning) as warned:
        loss = registry.resolve("loss", "old_loss").cls
    data = registry.resolve("dataset", "old_data").cls  # the same module: nothing new to say
    assert issubclass(loss, api.Loss)
    assert issubclass(data, api.DataSource)
    said = [str(each.message) for each in warned if each.category is InterfaceWarning]
    assert said == [
        "sslkit-old 1.0 is written for an earlier interface, which ends with sslkit 0.3: import "
        "from sslkit.api instead of sslkit.interfaces: ComponentConfig, DataSource (was Dataset), "
        "ImageReader, Loss, LossInput; from sslkit.parallel.collectives instead "
        "of sslkit.nn.gather: all_gather"
    ]


def test_the_author_sees_the_line_of_the_import(install: Install) -> None:
    old_plugin(install)
    with pytest.warns(DeprecationWarning, match="the old address ends with") as said:
        importlib.import_module("old_parts")
    first = said[0]
    assert Path(first.filename).name == "old_parts.py"
    assert first.lineno == 3
    assert str(first.message) == (
        "sslkit.interfaces.ComponentConfig is sslkit.api.ComponentConfig now; the old address ends "
        "with sslkit 0.3"
    )


@pytest.mark.parametrize("name", INTERFACE_1)
def test_every_name_of_interface_1_is_answered(name: str) -> None:
    new = sslkit.interfaces.RENAMED.get(name, name)
    if name in sslkit.interfaces.REMOVED:
        with pytest.raises(ImportError, match=rf"sslkit\.interfaces\.{name} is gone: "):
            getattr(sslkit.interfaces, name)
        return
    assert new in api.__all__
    with pytest.warns(DeprecationWarning, match=rf"is sslkit\.api\.{new} now"):
        assert getattr(sslkit.interfaces, name) is getattr(api, new)


def test_a_name_that_never_was_is_none() -> None:
    with pytest.raises(AttributeError, match=r"'sslkit\.interfaces' has no attribute 'Los'"):
        _ = sslkit.interfaces.Los
    assert not hasattr(importlib.import_module("sslkit.nn.gather"), "__wrapped__")


def test_what_is_gone_says_what_to_write_in_an_import_statement() -> None:
    from sslkit.deprecation import moved_names

    module = type(sys)("old_address")
    vars(module)["__getattr__"] = moved_names("old_address", "sslkit.api", {}, {"A": "write B"})
    sys.modules["old_address"] = module
    try:
        with pytest.raises(ImportError, match=r"^old_address\.A is gone: write B$"):
            exec("from old_address import A")  # noqa: S102
    finally:
        del sys.modules["old_address"]


@pytest.mark.parametrize(("old", "new"), MOVED_MODULES.items())
def test_every_module_that_moved_is_found_under_its_old_address(old: str, new: str) -> None:
    content = importlib.import_module(new)
    own = [
        name for name, value in vars(content).items()
        if not name.startswith("_") and getattr(value, "__module__", None) == new
    ]  # fmt: skip
    moved = importlib.import_module(old)
    for name in own:
        with pytest.warns(DeprecationWarning, match=re.escape(f"{old}.{name} is {new}.{name} now")):
            assert getattr(moved, name) is getattr(content, name)


def test_no_old_address_hides_a_module_that_is_there() -> None:
    package = Path(sslkit.__file__).parents[1]
    for old in MOVED_MODULES:
        path = package / old.replace(".", "/")
        assert not path.is_dir()
        assert not path.with_suffix(".py").exists()


# --- What a plugin states -------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("stated", "reason"),
    [
        ("99", "is written for interface 99, this sslkit has 2: install a newer sslkit, or an "
               "older version of the plugin"),
        ("0", "is written for interface 0, this sslkit has 1 to 2: install a newer version of the "
              "plugin"),
        ("'2'", "sslkit_interface is '2', expected a whole number such as 2"),
        ("2.0", "sslkit_interface is 2.0, expected a whole number such as 2"),
        ("True", "sslkit_interface is True, expected a whole number such as 2"),
        ("0; sslkit_interface = [2] * 99", "sslkit_interface is [2, 2, 2, 2, 2, 2, 2, 2, 2, 2, 2, "
                                           "2, 2, , expected a whole number such as 2"),
    ],
)  # fmt: skip
def test_a_plugin_for_another_interface_is_broken(
    stated: str, reason: str, install: Install
) -> None:
    old_plugin(install, f"sslkit_interface = {stated}")
    host = load_plugins()
    (record,) = [r for r in host.records if r.distribution == "sslkit-old"]
    assert record.reason == reason
    with pytest.raises(PluginError, match=r"comes from the broken plugin 'old' of sslkit-old 1\.0"):
        host.registry.resolve("loss", "old_loss")


@pytest.mark.parametrize(
    "name", ["SSLKIT_INTERFACE", "sslkit_interface_version", "__sslkit_interface__"]
)
def test_a_misspelt_statement_is_not_passed_over(name: str, install: Install) -> None:
    old_plugin(install, f"{name} = 2")
    (record,) = [r for r in load_plugins().records if r.distribution == "sslkit-old"]
    assert record.reason == f"{name} is not read: write sslkit_interface = 2"


def test_what_a_plugin_states_is_said_before_what_it_lacks(install: Install) -> None:
    """A hook of a later sslkit is unknown here: the reason is the interface, not the hook."""
    later = """
        from sslkit import hookimpl
        sslkit_interface = 3
        @hookimpl
        def register_samplers(): return {"later": "later_parts:Later"}
    """
    install("sslkit-later", {"later_plugin.py": later}, "later = later_plugin")
    (record,) = [r for r in load_plugins().records if r.distribution == "sslkit-later"]
    assert record.reason is not None
    assert record.reason.startswith("is written for interface 3, this sslkit has 2: install")


REPOSITORY = Path(sslkit.__file__).parents[1]


@pytest.mark.parametrize(
    "path",
    sorted((REPOSITORY / "plugins").glob("*/src/*/__init__.py")),
    ids=lambda p: p.parent.name,
)
def test_the_plugins_of_this_repository_state_the_interface(path: Path) -> None:
    assert f"\nsslkit_interface = {sslkit.INTERFACE_VERSION}\n" in path.read_text()


def test_the_pages_teach_to_state_the_interface() -> None:
    """Every hook module on a page, but that of the plugin that was written for interface 1."""
    taught = [
        (path.name, block)
        for path in [REPOSITORY / "README.md", *sorted((REPOSITORY / "docs").rglob("*.md"))]
        for block in re.findall(
            r"^```python\n(.*?)^```$", path.read_text(), re.DOTALL | re.MULTILINE
        )
        if "import hookimpl" in block and "sslkit_veteran" not in block
    ]
    assert len(taught) > 4
    for name, block in taught:
        assert f"sslkit_interface = {sslkit.INTERFACE_VERSION}\n" in block, name


@pytest.mark.parametrize("stated", [1, sslkit.INTERFACE_VERSION])
def test_a_plugin_may_state_an_interface_that_is_there(stated: int, install: Install) -> None:
    old_plugin(install, f"sslkit_interface = {stated}")
    assert load_plugins().registry.find("loss", "old_loss").interface == stated


# --- What classes define --------------------------------------------------------------------------


class Mixin:
    def old_way(self) -> None: ...


def loss(**members: Any) -> type[api.Loss]:
    return type("MyLoss", (api.Loss,), {"forward": lambda self, inputs: None, **members})


@pytest.fixture
def changes(monkeypatch: pytest.MonkeyPatch) -> None:
    rows = (
        Change("loss", "gone", "forward(inputs)", since=2),
        Change("loss", "old_way", "new_way(config)", since=2, works=True),
        Change("head", "width", "out_dim", since=2),
    )
    monkeypatch.setattr(compatibility, "CHANGES", rows)


@pytest.mark.usefixtures("changes")
def test_an_old_member_that_no_longer_works_is_refused() -> None:
    said = "defines gone, which ended with interface 1: write forward(inputs)"
    assert misfit(loss(gone=True), api.Loss, None) == said
    assert misfit(loss(gone=True), api.Loss, 1) == said
    assert misfit(loss(gone=True), api.Loss, 2) is None  # its own, by what the plugin states
    assert misfit(loss(width=1), api.Loss, None) is None  # an old member of another kind


@pytest.mark.usefixtures("changes")
def test_an_old_member_that_works_is_warned_of() -> None:
    class Inherits(Mixin, api.Loss):
        def forward(self, inputs: api.LossInput) -> Any: ...

    assert misfit(Inherits, api.Loss, None) is None
    with pytest.warns(InterfaceWarning) as said:
        compatibility.warn_of_old_members("loss 'mine' of a 1.0", Inherits, api.Loss, None)
    assert str(said[0].message) == (
        "loss 'mine' of a 1.0 is written for an earlier interface, which ends with sslkit 0.3: "
        "write new_way(config) instead of old_way"
    )
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        compatibility.warn_of_old_members("x", Inherits, api.Loss, 2)
        compatibility.warn_of_old_members("x", loss(), api.Loss, None)


@pytest.mark.parametrize(
    ("members", "said"),
    [
        (
            {"forward": lambda self: None},
            "defines forward(self), which cannot be called as forward(self, inputs): write "
            "forward(self, inputs)",
        ),
        (
            {"metrics": lambda self, inputs, more: {}},
            "defines metrics(self, inputs, more), which cannot be called as metrics(self, inputs): "
            "write metrics(self, inputs)",
        ),
        (
            {"metrics": {}},
            "defines metrics = {}, which cannot be called as metrics(self, inputs): write "
            "metrics(self, inputs)",
        ),
        (
            {"problems": classmethod(lambda cls, config: ())},
            "defines problems(config), which cannot be called as problems(config, facts): write "
            "problems(config, facts)",
        ),
        ({"metrics": lambda self, *parts: {}}, None),
        ({"metrics": lambda self, other_name, more=None: {}}, None),
        ({"problems": staticmethod(lambda config, facts: ())}, None),
    ],
)
def test_a_method_that_cannot_be_called_as_the_interface_says_is_refused(
    members: dict[str, Any], said: str | None
) -> None:
    assert misfit(loss(**members), api.Loss, None) == said


def test_keywords_of_the_interface_are_taken_by_name() -> None:
    def backbone(tokens: Any) -> type[Any]:
        return type("Mine", (api.Backbone,), {"tokens": tokens})

    names = ("keep", "lengths", "masked", "mask_token", "blocks")
    assert misfit(backbone(lambda self, images, **asked: None), api.Backbone, None) is None
    by_name = lambda self, images, *, keep, lengths, masked, mask_token, blocks: None  # noqa: E731
    assert misfit(backbone(by_name), api.Backbone, None) is None
    without = misfit(backbone(lambda self, images, keep=None: None), api.Backbone, None)
    call = f"tokens(self, images, *, {', '.join(names)})"
    assert without == (
        f"defines tokens(self, images, keep=None), which cannot be called as {call}: write {call}"
    )


def test_what_is_installed_here_fits_and_warns_of_nothing() -> None:
    registry = load_plugins().registry
    with warnings.catch_warnings():
        warnings.simplefilter("error", InterfaceWarning)
        for entry in registry.entries():
            registry.resolve(entry.kind, entry.name)


def test_no_change_is_one_of_today() -> None:
    """What the table calls old, no interface has."""
    interfaces = {interface.kind: interface for interface in api.INTERFACES}
    for change in CHANGES:
        assert change.works or not hasattr(interfaces[change.kind], change.member)
        assert change.instead


# --- On the command line --------------------------------------------------------------------------


@pytest.mark.slow  # 5 seconds
def test_the_commands_say_it_once_on_standard_error(install: Install, tmp_path: Path) -> None:
    site = tmp_path / "site"
    old_plugin(install)
    done = subprocess.run(
        [sys.executable, "-m", "sslkit", "plugins", "show", "old_loss", "--json"],
        capture_output=True,
        text=True,
        check=False,
        env={"PYTHONPATH": str(site)},
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("[")
    (line,) = done.stderr.splitlines()
    assert line.startswith("warning: sslkit-old 1.0 is written for an earlier interface")
