"""What all tests share, those of the core and those of each package under `plugins/`."""

from __future__ import annotations

import functools
import gc
import io
import itertools
import os
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

os.environ.setdefault("TORCH_CPP_LOG_LEVEL", "ERROR")  # as `sslkit run` does for ranks
# Of programs too: threads that wait for each other spin, in the way of the test beside them. The
# notebook took 63 s in place of 272.
os.environ.setdefault("OMP_NUM_THREADS", "1")
# Where it is set, each program compiles all modules of sslkit anew: one second of ten.
os.environ.pop("PYTHONDONTWRITEBYTECODE", None)

import torch
from matplotlib.figure import Figure
from PIL import Image

from sslkit.builtin import timm_backbone
from sslkit.host import plugins
from sslkit.report import report
from sslkit.runs import environment
from sslkit.testing import Check, PackageCheck

# Before torch's compiler imagines a GPU, for which autograd then starts threads; no fork has them.
torch.ones(1, requires_grad=True).backward()

sys.path += map(str, sorted(Path(__file__).parent.glob("plugins/*/tests")))
"""For the helpers that stand beside tests."""

# --- What a small run would do again and again ----------------------------------------------------
# Its pictures and what it asks of the machine are half of what a run of two steps takes.

_draw, _draw_curves = Figure.savefig, report.draw_curves
_PICTURE = io.BytesIO()
Image.new("RGB", (8, 8)).save(_PICTURE, "png")


def _draw_little(figure: Figure, where: Any, **options: Any) -> None:
    if "bbox_inches" in options and isinstance(where, Path) and where.suffix == ".png":
        where.write_bytes(_PICTURE.getvalue())  # of `write_report`
    else:
        _draw(figure, where, **options)


@pytest.fixture
def pictures(monkeypatch: pytest.MonkeyPatch) -> None:
    """For a test that looks at the pictures of a run's report: they are drawn."""
    monkeypatch.setattr(Figure, "savefig", _draw)
    monkeypatch.setattr(report, "draw_curves", _draw_curves)


def _once(module: Any, name: str, while_: Callable[..., bool] = lambda *_: True) -> None:
    """Keeps what a function of a module says of the same arguments, as long as `while_` holds of
    them: what does not change while tests run."""
    ask = getattr(module, name)
    kept = functools.cache(ask)

    def asked(*given: Any, **named: Any) -> Any:
        return (kept if while_(*given, **named) else ask)(*given, **named)

    setattr(module, name, asked)


_HERE, _PATH = Path(__file__).parent, frozenset(sys.path)


def _nothing_installed() -> bool:
    """Since the tests began: modules are found where they were, or inside this checkout."""
    return all(_HERE in Path(place).parents for place in set(sys.path) - _PATH)


def _try_networks_once() -> None:
    """Keeps what is wrong with a network of timm, which each check of a recipe builds anew."""
    find, kept = timm_backbone.network_problems, {}

    def found(config: Any, channels: int, sizes: list[int]) -> Iterator[tuple[str, str]]:
        if config.pretrained or config.weights or ":" in config.model:  # files, which may change
            return find(config, channels, sizes)
        key = (config.model_dump_json(), channels, *sizes)
        if key not in kept:
            kept[key] = list(find(config, channels, sizes))
        return iter(kept[key])

    timm_backbone.network_problems = found


Figure.savefig = _draw_little
report.draw_curves = lambda lines: Figure()
_once(environment, "_git", lambda folder, *_: folder == _HERE)  # not repositories of a test
_once(environment, "_code_digest", lambda package: package.startswith("sslkit"))
_once(environment, "version")
_once(plugins, "entry_points", lambda group: _nothing_installed())
_try_networks_once()
os.fsync = lambda handle: None
"""No test cuts the power, and what was written survives a kill without it.
tests/test_writing.py has that it is called."""


def pytest_itemcollected(item: pytest.Item) -> None:
    """A check of `sslkit.testing` that takes long, or can wait, is a slow test; those may take five
    minutes, since a compiler alone takes one or two on a busy machine."""
    spec = getattr(item, "callspec", None)  # of a test with parameters
    check = spec.params.get("check") if spec else None
    slow = check.slow if isinstance(check, PackageCheck) else False
    if slow or (isinstance(check, Check) and check.law.slow):
        item.add_marker(pytest.mark.slow)
    if item.get_closest_marker("slow") and not item.get_closest_marker("timeout"):
        item.add_marker(pytest.mark.timeout(300))


LONG = (
    "tests/docs/test_pages.py",
    "tests/docs/test_notebook.py",
    "tests/ranks/",
    "tests/workflows/",
    "tests/soak/",
    "tests/testing/",
    "tests/cli/",
    "tests/engine/",
    "tests/evaluation/",
)
"""What comes first, since a process that takes it last works on while the others have ended."""
APART = "tests/docs/test_pages.py::test_the_commands_of_a_page_work"
"""Tests of minutes that share nothing: each goes to the process that is free."""
RANKS = "tests/ranks/"
"""Tests of several processes each. Two at a time, on two cores, wait for each other's messages."""


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Puts what takes long first, and another file between two of ranks; tests of a file stay
    together and in order."""

    def place(item: pytest.Item) -> int:
        return next((n for n, path in enumerate(LONG) if item.nodeid.startswith(path)), len(LONG))

    items.sort(key=place)
    files = [list(its) for _, its in itertools.groupby(items, lambda item: item.path)]
    first = next((n for n, its in enumerate(files) if its[0].nodeid.startswith(RANKS)), len(files))
    ranks = [its for its in files[first:] if its[0].nodeid.startswith(RANKS)]
    others = [its for its in files[first:] if not its[0].nodeid.startswith(RANKS)]
    pairs = itertools.zip_longest(ranks, others, fillvalue=[])
    items[:] = itertools.chain(*files[:first], *itertools.chain(*pairs))


def pytest_collection_finish() -> None:
    """Ten thousand tests are not searched for garbage each time."""
    gc.collect()
    gc.freeze()


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> Any:
    """Gives each process a file, for what its tests share, or one of the tests that share nothing;
    in the order in which they are collected."""
    if config.getvalue("dist") != "loadfile":
        return None
    from xdist.scheduler import LoadFileScheduling

    class LongFirst(LoadFileScheduling):
        def _split_scope(self, nodeid: str) -> str:
            file: str = super()._split_scope(nodeid)
            return nodeid if nodeid.startswith(APART) else file

    config.option.loadscopereorder = False  # by the number of tests, that would be
    return LongFirst(config, log)


@pytest.fixture(autouse=True, scope="session")
def _one_thread_from_the_start() -> None:
    """For fixtures of a module, which are made before those of a test."""
    torch.set_num_threads(1)


def _settings() -> dict[str, object]:
    """What holds for all of torch in this process, and changes what other tests compute."""
    return {
        "grad mode": torch.is_grad_enabled(),
        "default dtype": torch.get_default_dtype(),
        "deterministic algorithms": torch.are_deterministic_algorithms_enabled(),
        "float32 products": torch.get_float32_matmul_precision(),
        "oneDNN": torch.backends.mkldnn.enabled,
        "anomaly detection": torch.is_anomaly_enabled(),
        "autocast": torch.is_autocast_enabled("cpu"),
        "working folder": Path.cwd(),
    }


_AT_FIRST = _settings()


@pytest.fixture(autouse=True)
def _settings_stay() -> Iterator[None]:
    """One thread: small tensors are faster on it, and the machine may be shared. A test that leaves
    another setting behind fails, for the sake of those after it."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)
    found = _settings()
    changed = {key: value for key, value in found.items() if value != _AT_FIRST[key]}
    _AT_FIRST.update(changed)  # the tests after this one are not to blame
    if changed:
        pytest.fail(f"the test, or a fixture of its module, leaves behind: {changed}")
