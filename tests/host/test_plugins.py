"""The plugin host on real small distributions, good and broken."""

from __future__ import annotations

import json
import subprocess
import sys
import textwrap
from pathlib import Path

import pluggy
import pytest
from plugin_distributions import Install, write_distribution

import sslkit
from sslkit.api import INTERFACES
from sslkit.errors import PluginError
from sslkit.host import hookspecs
from sslkit.host.plugin_errors import describe_failure
from sslkit.host.plugins import HOOK_KINDS, PluginHost, PluginRecord, load_plugins

GOOD = """
    from sslkit import hookimpl

    @hookimpl
    def register_losses():
        return {"good_loss": "good_plugin_parts:GoodLoss"}
"""


def record_of(host: PluginHost, distribution: str) -> PluginRecord:
    (record,) = [r for r in host.records if r.distribution == distribution]
    return record


def hook(body: str, name: str = "register_losses", mark: str = "@hookimpl") -> str:
    return f"from sslkit import hookimpl\n\n{mark}\ndef {name}():\n    {body}\n"


def test_the_hooks_are_the_interfaces() -> None:
    specs = {name for name in vars(hookspecs) if name.startswith("register_")}
    assert set(HOOK_KINDS) == specs
    assert list(HOOK_KINDS.values()) == [interface.kind for interface in INTERFACES]


def test_the_built_ins_come_first_and_work() -> None:
    host = load_plugins()
    first = host.records[0]
    assert (first.distribution, first.module) == ("sslkit", "sslkit.builtin")
    assert (first.reason, first.version) == (None, sslkit.__version__)
    assert "simclr" in host.registry.names("method")
    assert set(first.components) == set(HOOK_KINDS.values())


def test_an_installed_plugin_adds_names(install: Install) -> None:
    before = load_plugins().registry
    install("Good_Plugin", {"good_plugin.py": GOOD}, "good = good_plugin", version="2.5")
    host = load_plugins()
    record = record_of(host, "good-plugin")
    assert record == PluginRecord(
        "good", "good-plugin", "2.5", "good_plugin", None, {"loss": ("good_loss",)}
    )
    for kind in HOOK_KINDS.values():
        added = set(host.registry.names(kind)) - set(before.names(kind))
        assert added == ({"good_loss"} if kind == "loss" else set())


BROKEN = {
    "import": ("import not_installed_anywhere", ["ModuleNotFoundError", "bad_plugin.py:1"]),
    "raises": (
        "def f():\n    raise ValueError('two\\nlines')\nf()",
        ["ValueError: two lines", "bad_plugin.py:2"],
    ),
    "exits": ("raise SystemExit(3)", ["SystemExit: 3", "bad_plugin.py:1"]),
    "syntax": ("def :", ["SyntaxError", "bad_plugin.py:1"]),
    "empty": ("", ["registers nothing", "@sslkit.hookimpl"]),
    "hook raises": (hook("return 1 / 0"), ["ZeroDivisionError", "bad_plugin.py:5"]),
    "misspelt hook": (
        hook("return {'a': 'b:C'}", name="register_loses"),
        ["unknown hook 'register_loses', did you mean 'register_losses'?", "bad_plugin.py:3"],
    ),
    "unmarked hook": (
        hook("return {'a': 'b:C'}", mark=""),
        ["register_losses is not marked with @sslkit.hookimpl", "bad_plugin.py:4"],
    ),
    "signature": (
        "from sslkit import hookimpl\n@hookimpl\ndef register_losses(registry): return {}",
        ["wrong signature", "registry"],
    ),
    "wrapper": (
        "from sslkit import hookimpl\n@hookimpl(wrapper=True)\n"
        "def register_losses():\n    return (yield)",
        ["register_losses is a hook wrapper, which is not allowed"],
    ),
    "returns a list": (hook("return ['a']"), ["returned list, expected a mapping"]),
    "returns nothing": (hook("pass"), ["returned NoneType, expected a mapping"]),
    "class as value": (
        hook("return {'mine': ValueError}"),
        ["maps 'mine' to <class 'ValueError'>", '"module:Class"'],
    ),
    "bad target": (hook("return {'mine': 'parts.Loss'}"), ["maps 'mine' to 'parts.Loss'"]),
    "bad name": (hook("return {'my loss': 'parts:Loss'}"), ["the name 'my loss'"]),
    "colon in name": (hook("return {'a:b': 'parts:Loss'}"), ["the name 'a:b'"]),
    "number as name": (hook("return {3: 'parts:Loss'}"), ["the name 3"]),
    "built-in name": (
        hook("return {'nt_xent': 'parts:Loss'}"),
        ["claims the built-in loss 'nt_xent' (their names are reserved: a recipe means the same "],
    ),
}


@pytest.mark.parametrize("case", BROKEN)
def test_a_broken_plugin_is_listed_and_breaks_nothing(case: str, install: Install) -> None:
    source, expected = BROKEN[case]
    install("bad-plugin", {"bad_plugin.py": source}, "bad = bad_plugin")
    install("good-plugin", {"good_plugin.py": GOOD}, "good = good_plugin")
    host = load_plugins()
    reason = record_of(host, "bad-plugin").reason
    assert reason is not None
    for text in expected:
        assert text in reason
    assert "\n" not in reason
    assert record_of(host, "good-plugin").reason is None
    assert host.records[0].reason is None
    assert "good_loss" in host.registry.names("loss")
    assert "mine" not in host.registry.names("loss")


def test_a_missing_module_is_listed(install: Install) -> None:
    install("ghost", {}, "ghost = ghost_plugin")
    reason = record_of(load_plugins(), "ghost").reason
    assert reason == "ModuleNotFoundError: No module named 'ghost_plugin'"


def test_every_fault_of_a_plugin_is_named(install: Install) -> None:
    source = (
        hook("return {'a': 1, 'b': 'x'}")
        + "\n@hookimpl\ndef register_head(): return {}\ndef register_methods(): return {}\n"
    )
    install("bad-plugin", {"bad_plugin.py": source}, "bad = bad_plugin")
    reason = record_of(load_plugins(), "bad-plugin").reason or ""
    for text in ("maps 'a' to 1", "maps 'b' to 'x'", "'register_head'", "register_methods is not"):
        assert text in reason


@pytest.mark.parametrize("text", ["[sslkit]\nno equals sign", "[sslkit\nx = y"])
def test_unreadable_entry_points_do_not_hide_other_plugins(text: str, install: Install) -> None:
    install("bad-plugin", {}, text)
    install("good-plugin", {"good_plugin.py": GOOD}, "good = good_plugin")
    host = load_plugins()
    assert record_of(host, "good-plugin").reason is None
    assert host.records[0].reason is None
    bad = [r for r in host.records if r.distribution == "bad-plugin"]
    assert all("entry_points.txt" in (r.reason or "") for r in bad)
    assert len(bad) == (1 if text.startswith("[sslkit]") else 0)


def test_missing_metadata_does_not_break_a_plugin(install: Install) -> None:
    site = install("anonymous", {"good_plugin.py": GOOD}, "good = good_plugin")
    (site / "anonymous-1.0.dist-info" / "METADATA").unlink()
    host = load_plugins()
    (record,) = [r for r in host.records if r.module == "good_plugin"]
    assert (record.distribution, record.version, record.reason) == ("unknown", "unknown", None)


def test_what_a_plugin_prints_goes_to_stderr(
    install: Install, capsys: pytest.CaptureFixture[str]
) -> None:
    install("chatty", {"good_plugin.py": f"print('hello')\n{GOOD}".replace("    ", "")
                       .replace("return", "    return")}, "good = good_plugin")  # fmt: skip
    assert record_of(load_plugins(), "chatty").reason is None
    captured = capsys.readouterr()
    assert captured.out == ""
    assert "hello" in captured.err


def test_two_distributions_with_one_name_both_need_the_distribution(install: Install) -> None:
    for name in ("alpha", "beta"):
        parts = """
            from sslkit.api import Schedule
            class Mine(Schedule):
                def factor(self, progress): return 1.0
        """
        source = hook(f"return {{'mine': '{name}_parts:Mine'}}", name="register_schedules")
        files = {f"{name}_plugin.py": source, f"{name}_parts.py": parts}
        install(name, files, f"same = {name}_plugin")  # the entry points share their name, too
    host = load_plugins()
    assert record_of(host, "alpha").reason is None
    assert record_of(host, "beta").reason is None
    names = host.registry.names("schedule")
    assert "mine" not in names
    assert {"alpha:mine", "beta:mine"} <= set(names)
    with pytest.raises(PluginError) as error:
        host.registry.resolve("schedule", "mine")
    assert str(error.value) == (
        "schedule 'mine' is ambiguous: alpha and beta provide it, write 'alpha:mine' or 'beta:mine'"
    )
    assert host.registry.resolve("schedule", "beta:mine").cls.__module__ == "beta_parts"


def test_one_distribution_cannot_register_a_name_twice(install: Install) -> None:
    files = {"one.py": hook("return {'x': 'p:X'}"), "two.py": hook("return {'x': 'p:Y'}")}
    install("twice", files, "one = one\ntwo = two")
    first, second = [r for r in load_plugins().records if r.distribution == "twice"]
    assert first.reason is None
    assert second.reason is not None
    assert "own distribution's loss 'x'" in second.reason


def test_a_hook_module_may_import_torch(install: Install) -> None:
    source = f"import torch\n{textwrap.dedent(GOOD)}"
    install("heavy", {"heavy_plugin.py": source}, "heavy = heavy_plugin")
    assert record_of(load_plugins(), "heavy").reason is None


def test_an_exception_that_cannot_be_printed_is_still_named(install: Install) -> None:
    source = """
        class Odd(Exception):
            def __str__(self): raise RuntimeError
        raise Odd
    """
    install("odd", {"odd_plugin.py": source}, "odd = odd_plugin")
    reason = record_of(load_plugins(), "odd").reason or ""
    assert reason.startswith("Odd (")
    assert reason.endswith("odd_plugin.py:4)")


def test_each_load_sees_what_is_installed_now(install: Install) -> None:
    assert "good_loss" not in load_plugins().registry.names("loss")
    install("good-plugin", {"good_plugin.py": GOOD}, "good = good_plugin")
    assert "good_loss" in load_plugins().registry.names("loss")


def test_no_module_keeps_a_plugin_manager() -> None:
    load_plugins()
    ours = [m for n, m in list(sys.modules.items()) if n.partition(".")[0] == "sslkit"]
    kept = [v for m in ours for v in vars(m).values() if isinstance(v, pluggy.PluginManager)]
    assert not kept


# --- In a fresh interpreter -----------------------------------------------------------------------


def python(code: str, *flags: str, path: str = "") -> str:
    done = subprocess.run(
        [sys.executable, *flags, "-c", textwrap.dedent(code)],
        capture_output=True,
        text=True,
        check=False,
        env={"PYTHONPATH": path},
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_loading_plugins_is_fast_and_imports_no_torch(tmp_path: Path) -> None:
    write_distribution(tmp_path, "good-plugin", {"good_plugin.py": GOOD}, "good = good_plugin")
    output = python(
        """
        import sys, time
        start = time.process_time()
        from sslkit.host.plugins import load_plugins
        host = load_plugins()
        names = [host.registry.names(kind) for kind in ("method", "loss", "backbone")]
        print(time.process_time() - start)
        print([m for m in ("torch", "numpy", "pydantic", "timm", "mlflow") if m in sys.modules])
        print(names)
        """,
        path=str(tmp_path),
    )
    seconds, heavy, names = output.splitlines()
    assert heavy == "[]"
    assert "good_loss" in names
    assert float(seconds) < 0.3  # CPU time, imports included; 0.1 s on an idle machine


def test_a_source_tree_without_metadata_has_the_built_ins(tmp_path: Path) -> None:
    package, library = Path(sslkit.__file__).parent, Path(pluggy.__file__).parent
    (tmp_path / "sslkit").symlink_to(package, target_is_directory=True)
    (tmp_path / "pluggy").symlink_to(library, target_is_directory=True)
    output = python(
        """
        import sslkit
        from sslkit.host.plugins import load_plugins
        host = load_plugins()
        print(sslkit.__version__, [(r.name, r.distribution, r.reason) for r in host.records])
        print(host.registry.names("method"))
        """,
        "-S",
        path=str(tmp_path),
    )
    first, second = output.splitlines()
    assert first == "0+source [('builtin', 'sslkit', None)]"
    assert "simclr" in second


PARTS = """
    import codecs, json, torch
    from sslkit.nn.functional import nt_xent

    def decoded(): codecs.decode(b"\\xff", "utf-8")
    def parsed(): json.loads("{")
    def multiplied(): torch.ones(2, 3) @ torch.ones(2, 3)
    def asked(): nt_xent(torch.ones(2, 3), torch.ones(2, 4), 0.1)
    def divided(): 1 / 0
"""


@pytest.mark.parametrize(
    ("name", "line"),
    [("decoded", 5), ("parsed", 6), ("multiplied", 7), ("asked", 8), ("divided", 9)],
)
def test_a_failure_shows_the_plugins_line_wherever_it_came_up(
    install: Install, name: str, line: int
) -> None:
    """Not that of Python, torch or the core, which the plugin called."""
    site = install("good-plugin", {"good_plugin.py": f"{PARTS}{GOOD}"}, "good = good_plugin")
    load_plugins()
    with pytest.raises(Exception) as error:  # noqa: PT011
        getattr(sys.modules["good_plugin"], name)()
    place = f"({site}/good_plugin.py:{line})"
    assert describe_failure(error.value).endswith(place)
    assert describe_failure(error.value, "good_plugin.parts").endswith(place)
    assert __file__ not in describe_failure(error.value)


def test_a_failure_without_a_plugin_shows_the_innermost_line_that_is_not_pythons() -> None:
    with pytest.raises(ValueError, match="Expecting") as error:
        json.loads("{")
    assert f"({__file__}:" in describe_failure(error.value)
