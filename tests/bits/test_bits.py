"""The tool sees what it should see; one experiment is recorded for real with `make test-all`."""

from __future__ import annotations

import copy
import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from tests.bits.__main__ import main
from tests.bits.experiments import EXPERIMENTS, NAMES, arguments, write_photos
from tests.bits.fingerprint import fingerprint
from tests.bits.recording import Options, environment, record
from tests.bits.trees import BitsError, Tree, checked_out
from tests.conftest import REPOSITORY

RECORDED = Path(__file__).parent / "recorded.json"


# --- Fingerprints ---------------------------------------------------------------------------------


class Folder:
    """A finished run, whose parts can be changed before it is written."""

    def __init__(self) -> None:
        self.weights = {"conv.weight": torch.arange(6.0).reshape(2, 3), "count": torch.tensor(3)}
        self.state: dict[str, Any] = {
            "format": 2,
            "step": 4,
            "method": {f"layer{i}.weight": torch.full((2, 2), float(i)) for i in range(20)},
            "optimization": {"state": {0: {"step": torch.tensor(4.0), "m": torch.ones(3)}}},
        }
        self.lines: list[dict[str, Any]] = [
            {"step": 2, "time_ms": 5, "metrics": {"train/loss": 1.5, "perf/rate": 9.0}},
            {"step": 4, "time_ms": 6, "metrics": {"train/loss": 0.1 + 0.2, "eval/x": "NaN"}},
        ]
        self.results: dict[str, Any] = {
            "trained": {"metrics": {"top1": 0.5}, "draws": [0.1] * 9, "seconds": 2.0, "errors": {}},
            "notes": "x",
            "cost": {"training_seconds": 3.0},
        }

    def write(self, folder: Path) -> dict[str, Any]:
        """Its fingerprint."""
        (folder / "checkpoints").mkdir(parents=True)
        torch.save({}, folder / "checkpoints" / "step-00000002.pt")
        torch.save(self.state, folder / "checkpoints" / "step-00000004.pt")
        save_file(self.weights, folder / "encoder.safetensors", {"written": str(folder)})
        (folder / "metrics.jsonl").write_text("\n".join(map(json.dumps, self.lines)))
        (folder / "results.json").write_text(json.dumps(self.results))
        return fingerprint(folder)


def _record(experiments: dict[str, Any]) -> dict[str, Any]:
    return {
        "format": 1,
        "commit": "a" * 40,
        "environment": environment(),
        "data": {"cifar10": None},
        "experiments": experiments,
    }


def _compare(tmp_path: Path, a: dict[str, Any], b: dict[str, Any], *words: str) -> int:
    for name, one in (("a", a), ("b", b)):
        (tmp_path / f"{name}.json").write_text(json.dumps(one))
    return main(["compare", str(tmp_path / "a.json"), str(tmp_path / "b.json"), *words])


def _clock_and_order(run: Folder) -> None:
    run.lines[0]["time_ms"] = 7
    run.lines[0]["metrics"]["perf/rate"] = 8.0
    run.results["trained"]["seconds"] = 9.0
    run.results["cost"]["training_seconds"] = 9.0
    run.results["notes"] = "y"
    run.state["format"] = 3
    run.state = dict(reversed(run.state.items()))
    run.lines[1]["metrics"] = dict(reversed(run.lines[1]["metrics"].items()))
    state = run.state["optimization"]["state"]
    state[0] = dict(reversed(state[0].items()))


def _metric(run: Folder) -> None:
    run.lines[1]["metrics"]["train/loss"] = 0.3


def _score(run: Folder) -> None:
    run.results["trained"]["metrics"]["top1"] = 0.5000000000000001


def _draw(run: Folder) -> None:
    run.results["trained"]["draws"][8] = 0.2


def _weight(run: Folder) -> None:
    run.weights["conv.weight"][1, 2] = torch.nextafter(torch.tensor(5.0), torch.tensor(6.0))


def _negative_zero(run: Folder) -> None:
    run.weights["conv.weight"][0, 0] = -0.0


def _shape(run: Folder) -> None:
    run.weights["conv.weight"] = run.weights["conv.weight"].reshape(3, 2).contiguous()


def _dtype(run: Folder) -> None:
    run.weights["count"] = run.weights["count"].to(torch.int32)


def _optimizer(run: Folder) -> None:
    run.state["optimization"]["state"][0]["m"][2] += 1e-6


def _method(run: Folder) -> None:
    run.state["method"]["layer7.weight"][0, 0] += 1e-6
    run.state["method"]["layer9.weight"][0, 0] += 1e-6


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        (_metric, "metrics: step 4, train/loss: 0.30000000000000004 and 0.3"),
        (_score, "results: trained.metrics: top1 0.5 and top1 0.5000000000000001"),
        (_draw, "results: trained.draws: 9 values "),
        (_weight, "encoder: conv.weight: "),
        (_negative_zero, "encoder: conv.weight: "),
        (_shape, "encoder: conv.weight: "),
        (_dtype, "encoder: count: int64 3 and int32 3"),
        (_optimizer, "checkpoint: optimization.state.0: m "),
        (_method, "checkpoint: method.layer7.weight: "),
    ],
)
def test_what_differs_is_named(
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    change: Callable[[Folder], None],
    expected: str,
) -> None:
    run, other = Folder(), Folder()
    change(other)
    a = {"one": run.write(tmp_path / "run")}
    b = {"one": other.write(tmp_path / "other")}
    assert _compare(tmp_path, _record(a), _record(b)) == 1
    printed = capsys.readouterr().out
    assert printed.startswith(f"one:\n  {expected}")
    assert len(printed.splitlines()) == 3
    assert ("(and 1 more)" in printed) == (change is _method)


def test_equal_records_compare_equal_whenever_and_wherever_they_were_made(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    later = Folder()
    _clock_and_order(later)
    a = {"one": Folder().write(tmp_path / "run")}
    b = {"one": later.write(tmp_path / "other")}
    assert _compare(tmp_path, _record(a), _record(b)) == 0
    assert "1 experiments, the same bits" in capsys.readouterr().out


def test_a_brief_record_is_judged_by_its_hashes(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    other = Folder()
    _weight(other)
    whole, changed = Folder().write(tmp_path / "run"), other.write(tmp_path / "other")
    brief = fingerprint(tmp_path / "run", brief=True)
    assert brief["encoder"]["values"] == {}
    assert brief["metrics"] == whole["metrics"]
    assert _compare(tmp_path, _record({"one": brief}), _record({"one": whole})) == 0
    assert _compare(tmp_path, _record({"one": brief}), _record({"one": changed})) == 1
    assert "encoder: other bits (no single values are recorded)" in capsys.readouterr().out


def test_evaluators_that_fail_are_no_proof(tmp_path: Path) -> None:
    run = Folder()
    run.results["trained"]["errors"] = {"knn": "no"}
    with pytest.raises(BitsError, match=r"evaluators failed: {'knn': 'no'}"):
        run.write(tmp_path / "run")


# --- Judging --------------------------------------------------------------------------------------


def test_what_did_not_run_on_both_sides_is_not_the_same(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    done, failed = Folder().write(tmp_path / "run"), {"error": "sslkit run ended with code 2"}
    a = _record({"simclr": done, "byol": failed, "fp16": failed, "views": done})
    b = _record({"simclr": done, "byol": done, "fp16": failed})
    assert _compare(tmp_path, a, b) == 1
    printed = capsys.readouterr().out
    assert "3 of 4 experiments are not the same: byol, fp16, views" in printed
    assert "views:\n  not in the second record" in printed
    assert _compare(tmp_path, a, b, "--only", "simclr") == 0
    assert _compare(tmp_path, a, b, "--only", "photos") == 1
    assert _compare(tmp_path, _record({}), _record({})) == 1


@pytest.mark.parametrize(
    ("part", "value", "told"),
    [
        ("cpu", "Z80", " and Z80"),
        ("threads", 2, "threads 1 and 2"),
        ("torch", "1.0", f"packages.torch {torch.__version__.partition('+')[0]}"),
    ],
)
def test_other_machines_are_not_judged(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], part: str, value: object, told: str
) -> None:
    a = _record({"simclr": Folder().write(tmp_path / "run")})
    b = copy.deepcopy(a)
    place = b["environment"]["packages"] if part == "torch" else b["environment"]
    place[part] = value
    assert _compare(tmp_path, a, b) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("error: not judged (--anyway does): ")
    assert told in line
    assert _compare(tmp_path, a, b, "--anyway") == 0


def test_other_data_are_not_judged(tmp_path: Path) -> None:
    a = _record({"simclr": Folder().write(tmp_path / "run")})
    assert _compare(tmp_path, a, {**a, "data": {"cifar10": {"train": 2048, "test": 512}}}) == 2


@pytest.mark.parametrize("text", ["", "[]", "{}"])
def test_what_is_no_record_is_one_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], text: str
) -> None:
    path = tmp_path / "x.json"
    path.write_text(text)
    assert main(["compare", str(path), str(path)]) == 2
    assert capsys.readouterr().err.startswith(f"error: {path}: ")


# --- Trees ----------------------------------------------------------------------------------------


def test_the_tree_itself_is_imported(tmp_path: Path) -> None:
    tree = Tree(REPOSITORY)
    assert tree.check_imports(tree.environment(tmp_path), tmp_path) == (
        REPOSITORY / "sslkit" / "__init__.py"
    )


def test_a_tree_whose_package_is_elsewhere_is_refused(tmp_path: Path) -> None:
    """Its folder holds no `sslkit`, so that the installed one is imported."""
    (tmp_path / "tree").mkdir()
    (tmp_path / "tree" / "pyproject.toml").write_text("[project]\nname = 'sslkit'\n")
    (tmp_path / "metadata").mkdir()
    tree = Tree(tmp_path / "tree")
    with pytest.raises(BitsError, match=r"is imported instead|cannot be imported"):
        tree.check_imports(tree.environment(tmp_path / "metadata"), tmp_path)


def _small_tree(folder: Path) -> Tree:
    (folder / "sslkit").mkdir(parents=True)
    (folder / "sslkit" / "a.py").write_text("1")
    return Tree(folder)


def test_a_digest_is_of_names_and_contents_of_code_and_recipes(tmp_path: Path) -> None:
    one, two = _small_tree(tmp_path / "one"), _small_tree(tmp_path / "two")
    (one.root / "sslkit" / "a.pyc").touch()
    (one.root / "README.md").touch()
    digests = [one.digest()]
    assert two.digest() == one.digest()
    (one.root / "sslkit" / "a.py").rename(one.root / "sslkit" / "b.py")
    digests.append(one.digest())
    (two.root / "plugins" / "p" / "src").mkdir(parents=True)
    (two.root / "plugins" / "p" / "src" / "r.yaml").touch()
    digests.append(two.digest())
    assert len(set(digests)) == 3


def test_a_tree_that_changes_while_it_is_recorded_is_refused(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    digests = iter("ab")
    monkeypatch.setattr(Tree, "digest", lambda _: next(digests))
    with pytest.raises(BitsError, match="its files changed while it was recorded"):
        record(Tree(REPOSITORY), Options(only=["no such experiment"]))


def test_an_unknown_commit_is_one_line() -> None:
    with pytest.raises(BitsError, match="no such commit"), checked_out(REPOSITORY, "nothing-here"):
        pass


# --- Experiments ----------------------------------------------------------------------------------


_VALIDATE_ALL = """
import json, os, sys
from sslkit.cli import main
for folder, words in json.load(sys.stdin):
    os.chdir(folder)
    sys.argv = ["sslkit", "validate", *words]
    try:
        main()
    except SystemExit as end:
        if end.code:
            sys.exit(f"{folder}: code {end.code}")
print("all valid")
"""


@pytest.mark.slow  # 16 seconds
def test_every_experiment_is_valid(tmp_path: Path) -> None:
    """Names of recipes, fields and data, by the command of this tree."""
    commands = []
    for experiment in EXPERIMENTS:
        folder = tmp_path / experiment.name
        folder.mkdir()
        commands.append((str(folder), arguments(experiment, folder, None)))
    (tmp_path / "metadata").mkdir()
    done = subprocess.run(
        [sys.executable, "-c", _VALIDATE_ALL],
        input=json.dumps(commands),
        cwd=tmp_path,
        env=Tree(REPOSITORY).environment(tmp_path / "metadata"),
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.stdout.endswith("all valid\n"), done.stdout + done.stderr


def test_photos_are_the_same_each_time(tmp_path: Path) -> None:
    for name in ("a", "b"):
        write_photos(tmp_path / name, 3)
    files = [
        {path.relative_to(tmp_path / name): path.read_bytes() for path in _files(tmp_path / name)}
        for name in ("a", "b")
    ]
    assert files[0] == files[1]
    assert len(files[0]) == 12


def _files(folder: Path) -> list[Path]:
    return [path for path in folder.rglob("*") if path.is_file()]


def test_the_committed_record_is_whole_and_speaks_of_no_place() -> None:
    found = json.loads(RECORDED.read_text())
    assert tuple(found["experiments"]) == NAMES
    assert not [name for name, one in found["experiments"].items() if "error" in one]
    assert RECORDED.stat().st_size < 250_000
    assert "+" not in found["commit"]
    assert not any(word in RECORDED.read_text() for word in ("/home", "/tmp", "/work", "host"))


# --- For real -------------------------------------------------------------------------------------


@pytest.mark.slow  # half a minute: a run, the same run killed and resumed, and again
@pytest.mark.timeout(600)
def test_an_experiment_recorded_twice_is_the_same(tmp_path: Path) -> None:
    a, b = tmp_path / "a.json", tmp_path / "b.json"
    assert main(["record", str(a), "--only", "simclr", "--only", "resumed"]) == 0
    assert main(["record", str(b), "--only", "simclr"]) == 0
    assert main(["compare", str(a), str(b), "--only", "simclr"]) == 0


@pytest.mark.slow  # a quarter of a minute: a worktree, two runs
@pytest.mark.timeout(600)
def test_against_a_commit(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["against", "HEAD", "--only", "simclr", "--out", str(tmp_path)]) == 0
    printed = capsys.readouterr().out
    assert f": {REPOSITORY / 'sslkit' / '__init__.py'}" in printed
    assert "sslkit-bits-" in printed
    assert {path.name for path in tmp_path.iterdir()} == {"before.json", "after.json"}
    worktrees = subprocess.run(["git", "-C", REPOSITORY, "worktree", "list"], capture_output=True)
    assert b"sslkit-bits-" not in worktrees.stdout
