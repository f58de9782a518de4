"""The doors of the kit: what a name stands for, what is printed, how a check fails."""

from __future__ import annotations

import json
from pathlib import Path
from unittest import SkipTest

import pytest
from broken_methods import Sound
from broken_schedule import GoesBelowZero

from sslkit.cli import main
from sslkit.errors import PluginError, RecipeError
from sslkit.testing import Laws, check_plugin, law, refuse
from sslkit.testing.kit import report_of
from sslkit.testing.laws import UntriedError, checks_on
from sslkit.testing.subject import find_subject, find_subjects
from sslkit.testing.table import print_report

SMALL = """\
name: small
data: {name: synthetic, num_train: 64, num_test: 16, size: 16}
augmentation: {name: simclr, size: 16}
backbone: {name: timm, model: test_resnet}
method: {name: simclr, loss: {name: nt_xent, temperature: 0.3}}
optimizer: {name: sgd, lr: 0.1}
train: {epochs: 2, batch_size: 8}
evaluate: [{name: knn, k: 7}]
"""


def command(*words: str, code: int = 0) -> None:
    with pytest.raises(SystemExit) as ended:
        main(["plugins", "check", *words])
    assert (ended.value.code or 0) == code


# --- What is tried --------------------------------------------------------------------------------


def test_a_name_may_say_its_kind_and_its_distribution() -> None:
    for name in ("nt_xent", "loss:nt_xent", "sslkit:nt_xent", "loss:sslkit:nt_xent"):
        assert str(find_subject(name, {}).slot.cls.__name__) == "NTXent"


def test_a_name_of_several_kinds_has_to_say_which() -> None:
    with pytest.raises(PluginError, match="say which: method:simclr or augmentation:simclr"):
        find_subject("simclr", {})


def test_an_unknown_name_is_one_line_with_a_guess() -> None:
    with pytest.raises(PluginError, match="'nt_xnet': no such component, did you mean 'nt_xent'"):
        find_subject("nt_xnet", {})


def test_a_distribution_stands_for_all_its_components() -> None:
    names = {str(subject) for subject in find_subjects("sslkit-byol", None, {})[0]}
    assert "method 'byol'" in names
    assert len(names) > 1
    found, others = find_subjects("sslkit", "optimizer", {})
    assert found == []
    assert others["optimizer 'sgd'"] == (
        "optimizer 'sgd'.lr: is required; check it by itself, with what it needs: optimizer:sgd "
        "-o FIELD=VALUE"
    )
    with pytest.raises(RecipeError, match="fields of one component at a time"):
        find_subjects("sslkit-byol", None, {"momentum": 1})


def test_fields_that_are_missing_or_wrong_are_named() -> None:
    with pytest.raises(RecipeError, match=r"optimizer 'sgd'.lr: is required"):
        find_subject("sgd", {})
    with pytest.raises(RecipeError, match=r"loss 'nt_xent'.temperature: .*greater than 0"):
        find_subject("nt_xent", {"temperature": -1})
    with pytest.raises(RecipeError, match=r"Sound\.momentum: Extra inputs"):
        find_subject(Sound, {"momentum": 1})


def test_a_class_that_is_no_component_is_refused() -> None:
    with pytest.raises(PluginError, match="is no component; derive it"):
        find_subject(Path, {})  # type: ignore[arg-type]


@pytest.mark.slow  # 12 seconds
def test_a_component_is_taken_as_its_recipe_has_it(tmp_path: Path) -> None:
    recipe = tmp_path / "small.yaml"
    recipe.write_text(SMALL)
    assert find_subject("knn", {}, recipe).slot.config.k == 7
    assert find_subject("knn", {"k": 3}, recipe).slot.config.k == 3
    inner = find_subject("nt_xent", {}, recipe).slot.config
    assert inner.temperature.start == pytest.approx(0.3)
    rows = check_plugin("method:simclr", recipe=recipe, fast=True).rows
    assert {row["law"]: row["text"] for row in rows if row["status"] != "passed"} == {}


def test_a_recipe_without_the_component_is_refused(tmp_path: Path) -> None:
    recipe = tmp_path / "small.yaml"
    recipe.write_text(SMALL)
    with pytest.raises(RecipeError, match=r"small.yaml: has no method 'byol'; .* simclr"):
        find_subject("byol", {}, recipe)


def test_a_batch_that_ranks_cannot_share_is_refused(tmp_path: Path) -> None:
    recipe = tmp_path / "small.yaml"
    recipe.write_text(SMALL.replace("batch_size: 8", "batch_size: 10"))
    (row,) = [
        row for row in check_plugin("method:simclr", recipe=recipe, fast=True).rows
        if row["status"] == "failed"
    ]  # fmt: skip
    assert row["law"] == "trains"
    assert "train.batch_size: 10 cannot be shared by 4 processes" in row["text"]


# --- How a check ends -----------------------------------------------------------------------------


class Odd(Laws):
    """Laws that end in every way."""

    kind = "loss"

    @law("do so")
    def holds(self) -> str:
        """It holds."""
        return "a sentence"

    @law("mend it", needs=("holds",))
    def is_broken(self) -> None:
        """It is not broken."""
        refuse(True, "a\nthing")

    @law("never mind", needs=("is-broken",))
    def follows(self) -> None:
        """It follows."""

    @law("never mind", needs=("follows",))
    def follows_from_that(self) -> None:
        """It follows from that."""

    @law("do not raise", slow=True)
    def raises(self) -> None:
        """It raises nothing."""
        raise ZeroDivisionError("by zero")

    @law("-")
    def says_nothing(self) -> None:
        """It has nothing to say."""
        raise SkipTest("no reason to")

    @law("-")
    def lacks_something(self) -> None:
        """It cannot be tried."""
        raise UntriedError("too large")


def test_a_law_passes_fails_or_is_left_out() -> None:
    found = {str(c): c.outcome() for c in checks_on(Odd(find_subject("nt_xent", {})))}
    assert {name: outcome.status for name, outcome in found.items()} == {
        "holds": "passed",
        "is-broken": "failed",
        "follows": "untried",
        "follows-from-that": "untried",
        "raises": "failed",
        "says-nothing": "skipped",
        "lacks-something": "untried",
    }
    assert found["holds"].text == "a sentence"
    assert found["follows-from-that"].text == "says nothing while is-broken is not met"
    assert found["raises"].text.startswith("ZeroDivisionError: by zero")
    fast = [str(check) for check in checks_on(Odd(find_subject("nt_xent", {})), fast=True)]
    assert "raises" not in fast


def test_a_check_is_what_pytest_knows() -> None:
    found = {str(c): c for c in checks_on(Odd(find_subject("nt_xent", {})))}
    found["holds"]()
    with pytest.raises(AssertionError) as broken:
        found["is-broken"]()
    assert str(broken.value) == (
        "loss 'nt_xent': is-broken: It is not broken; seen: a thing; to meet it: mend it"
    )
    with pytest.raises(AssertionError, match="to meet it: mend what raises this, and do not raise"):
        found["raises"]()
    for name, reason in (("says-nothing", "no reason to"), ("lacks-something", "too large")):
        with pytest.raises(SkipTest, match=reason):
            found[name]()


def test_laws_that_wait_for_another_are_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    report = report_of(Odd(find_subject("nt_xent", {})))
    assert [row["waits_for"] for row in report.rows].count("is-broken") == 2
    print_report(report)
    shown = capsys.readouterr().out
    assert "follows" not in shown
    assert [line.split() for line in shown.splitlines() if "until" in line] == [
        ["2", "laws", "untried", "until", "is-broken", "is", "met"]
    ]
    assert shown.splitlines()[-1] == (
        "loss 'nt_xent': 1 laws met, 2 broken, 1 say nothing of it, 3 not tried"
    )


# --- The command ----------------------------------------------------------------------------------


def test_the_command_prints_a_table_and_ends_with_zero(capsys: pytest.CaptureFixture[str]) -> None:
    command("nt_xent", "--fast")
    shown = capsys.readouterr().out
    assert "its-fields-are-described" in shown
    assert "loss 'nt_xent': " in shown.splitlines()[-1]
    assert " 0 broken" in shown.splitlines()[-1]


def test_a_broken_law_ends_with_one(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    broken = find_subject(GoesBelowZero, {})
    monkeypatch.setattr("sslkit.testing.subject.find_subjects", lambda *given: ([broken], {}))
    command("mine", "--fast", code=1)
    law = "factors-are-finite-and-not-negative"
    assert f"broken: schedule 'GoesBelowZero': {law}: " in capsys.readouterr().out
    command("mine", "--fast", "--json", code=1)
    (report,) = json.loads(capsys.readouterr().out)
    assert report["passed"] is False
    (row,) = [row for row in report["laws"] if row["status"] == "failed"]
    assert row["law"] == law


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (("nt_xent", "--kind", "losses"), "--kind: 'losses' is not a kind of component"),
        (("nothing",), "'nothing': no such component"),
        (("nt_xent", "-o", "temperature"), "-o temperature: expected FIELD=VALUE"),
        (("nt_xent", "-o", "temperature=[1"), "-o temperature=[1: "),
        (("nt_xent", "--recipe", "none.yaml"), "none.yaml: no such file"),
    ],
)
def test_wrong_words_are_one_line(
    capsys: pytest.CaptureFixture[str], words: tuple[str, ...], says: str
) -> None:
    command(*words, code=2)
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith(f"error: {says}")
