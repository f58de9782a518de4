"""A plugin that ends the process, or plays Ctrl-C, is one line with exit code 1, everywhere."""

from __future__ import annotations

import os
import signal

import pytest

from sslkit.cli.app import main

COMMANDS = [
    (["validate", "quickstart"], "sslkit.workflows.validate.validate"),
    (["plan", "quickstart"], "sslkit.workflows.plan.make_plan"),
    (["run", "quickstart", "--dry-run"], "sslkit.workflows.plan.make_plan"),
    (["plugins", "list"], "sslkit.host.plugins._load"),
    (["doctor"], "sslkit.workflows.doctor.diagnose"),
]


@pytest.mark.parametrize(("words", "place"), COMMANDS)
@pytest.mark.parametrize("error", [SystemExit(0), SystemExit("bye"), KeyboardInterrupt()])
def test_one_line_and_exit_code_1(
    words: list[str],
    place: str,
    error: BaseException,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    def leave(*given: object, **named: object) -> None:
        raise error

    monkeypatch.setattr(place, leave)
    with pytest.raises(SystemExit) as left:
        main(words)
    assert left.value.code == 1
    (line,) = capsys.readouterr().err.strip().splitlines()
    assert line.startswith(f"error: {type(error).__name__}")
    assert line.endswith("a component must raise an error instead")
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


def test_ctrl_c_is_still_ctrl_c(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def press(*given: object, **named: object) -> None:
        os.kill(os.getpid(), signal.SIGINT)

    monkeypatch.setattr("sslkit.workflows.validate.validate", press)
    with pytest.raises(SystemExit) as left:
        main(["validate", "quickstart"])
    assert left.value.code in (1, 130)  # by the version of typer
    assert "a component" not in capsys.readouterr().err
