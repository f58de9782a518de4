"""What an editor shows of a recipe, asked of the language server that editors run: a program of npm
(`npm install --global yaml-language-server`). Where it is not installed, nothing is tried."""

from __future__ import annotations

import json
import select
import shutil
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from sslkit.host.plugins import load_plugins
from sslkit.host.recipe_files import copy_recipe
from sslkit.recipe import json_schema

SERVER = shutil.which("yaml-language-server")
pytestmark = pytest.mark.skipif(SERVER is None, reason="yaml-language-server is not installed")


class Editor:
    """Speaks the Language Server Protocol over the server's standard streams."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._server = subprocess.Popen(
            [str(SERVER), "--stdio"], stdin=subprocess.PIPE, stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
        )  # fmt: skip
        self._number, self._marks, self._answers = 0, {}, {}  # type: ignore[var-annotated]
        self._ask("initialize", {
            "processId": None, "rootUri": folder.as_uri(),
            "capabilities": {"textDocument": {"hover": {"contentFormat": ["markdown"]}}},
        })  # fmt: skip
        self._send("initialized", {})
        self._send("workspace/didChangeConfiguration", {"settings": {"yaml": {
            "schemaStore": {"enable": False}, "hover": True, "completion": True, "validate": True,
        }}})  # fmt: skip

    def close(self) -> None:
        self._server.kill()
        self._server.communicate()

    def open(self, text: str) -> list[tuple[int, str, str]]:
        """(line from 1, what is marked there, message) of every mark in a recipe."""
        self._number += 1
        self._uri, self._text = (self._folder / f"{self._number}.yaml").as_uri(), text
        document = {"uri": self._uri, "languageId": "yaml", "version": 1, "text": text}
        self._send("textDocument/didOpen", {"textDocument": document})
        while self._uri not in self._marks:
            self._receive()
        lines = text.splitlines()
        return [
            (start["line"] + 1, lines[start["line"]][start["character"]:end["character"]], message)
            for start, end, message in self._marks[self._uri]
        ]  # fmt: skip

    def complete(self, after: str) -> list[str]:
        """What is offered behind a piece of the recipe."""
        found = self._ask("textDocument/completion", self._position(after))
        return [item["label"] for item in (found["items"] if isinstance(found, dict) else found)]

    def hover(self, word: str) -> str:
        """What is shown under the pointer, on the last letter of a piece of the recipe."""
        where = self._position(word)
        where["position"]["character"] -= 1
        return str(self._ask("textDocument/hover", where)["contents"]["value"])

    def _position(self, after: str) -> dict[str, Any]:
        before = self._text[: self._text.index(after) + len(after)]
        line = before.count("\n")
        at = {"line": line, "character": len(before) - (before.rfind("\n") + 1)}
        return {"textDocument": {"uri": self._uri}, "position": at}

    def _ask(self, method: str, parameters: dict[str, Any]) -> Any:
        self._number += 1
        number = self._number
        self._send(method, parameters, id=number)
        while number not in self._answers:
            self._receive()
        return self._answers.pop(number)

    def _send(self, method: str, parameters: Any, **more: Any) -> None:
        self._write({"jsonrpc": "2.0", "method": method, "params": parameters, **more})

    def _write(self, message: dict[str, Any]) -> None:
        body = json.dumps(message).encode()
        assert self._server.stdin is not None
        self._server.stdin.write(b"Content-Length: %d\r\n\r\n" % len(body) + body)
        self._server.stdin.flush()

    def _receive(self) -> None:
        out: Any = self._server.stdout
        if not out.peek(1) and not select.select([out], [], [], 60)[0]:
            raise TimeoutError("the language server says nothing")
        size = 0
        while (line := out.readline()) not in (b"\r\n", b""):
            if line.lower().startswith(b"content-length:"):
                size = int(line.partition(b":")[2])
        message = json.loads(out.read(size))
        if message.get("method") == "textDocument/publishDiagnostics":
            self._marks[message["params"]["uri"]] = [
                (each["range"]["start"], each["range"]["end"], each["message"])
                for each in message["params"]["diagnostics"]
            ]
        elif "method" in message and "id" in message:
            items = message.get("params") or {}
            result = [None] * len(items.get("items", ())) if isinstance(items, dict) else None
            self._write({"jsonrpc": "2.0", "id": message["id"], "result": result})
        elif "id" in message:
            self._answers[message["id"]] = message.get("result")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a copied recipe and the schema beside it."""
    made = tmp_path_factory.mktemp("editor")
    copy_recipe("quickstart", made)
    schema = json.dumps(json_schema(load_plugins().registry))
    (made / "sslkit.schema.json").write_text(schema)
    return made


@pytest.fixture(scope="module")
def editor(folder: Path) -> Iterator[Editor]:
    made = Editor(folder)
    time.sleep(0.5)  # until it has taken the settings in
    yield made
    made.close()


@pytest.fixture(scope="module")
def recipe(folder: Path) -> str:
    return (folder / "quickstart.yaml").read_text()


LOSS = "  loss: {name: nt_xent, temperature: 0.2}"


def test_a_good_recipe_has_no_marks(editor: Editor, recipe: str) -> None:
    assert editor.open(recipe) == []


@pytest.mark.parametrize(
    ("old", "new", "marked", "message"),
    [
        ("temperature: 0.2", "temperatur: 0.2", "temperatur", "temperatur is not allowed"),
        ("temperature: 0.2", "temperature: warm", "warm", 'Expected "number | schedule block"'),
        ("temperature: 0.2", "temperature: -1", "-1", "below the exclusive minimum of 0"),
        ("nt_xent", "nt_xentt", "nt_xentt", '"info_nce", "normalized_mse", "nt_xent"'),
        ("{name: mlp, ", "{", "head", 'Missing property "name"'),
        ("k: 5", "l2: [1]", "l2", "l2 is not allowed"),
        ("epochs: 30", "epochs: 30, compile: maybe", "maybe", 'true, false, "if_available"'),
    ],
)
def test_a_mistake_is_marked_where_it_is(
    editor: Editor, recipe: str, old: str, new: str, marked: str, message: str
) -> None:
    text = recipe.replace(old, new, 1)
    assert text != recipe
    ((line, where, said),) = editor.open(text)
    assert marked in text.splitlines()[line - 1]
    assert where == marked
    assert message in said


def test_fields_and_names_are_offered(editor: Editor, recipe: str) -> None:
    editor.open(recipe.replace("  loss: {", "  \n  loss: {"))
    assert set(editor.complete("out_dim: 64}\n  ")) == {"loss_weight", "passes"}
    editor.open(recipe.replace(LOSS, "  loss:\n    name: "))
    assert set(editor.complete("loss:\n    name: ")) >= {"info_nce", "normalized_mse", "nt_xent"}
    assert not any(":" in word for word in editor.complete("loss:\n    name: "))
    editor.open(recipe.replace(LOSS, "  loss:\n    name: info_nce\n    "))
    assert set(editor.complete("info_nce\n    ")) == {"temperature", "symmetric", "chunk_elements"}


def test_what_a_field_means_is_shown(editor: Editor, recipe: str) -> None:
    editor.open(recipe)
    shown = editor.hover("temperature")
    assert "Softmax temperature." in shown
    assert "number > 0 or schedule block; default: 0.5" in shown
    assert "NT-Xent (SimCLR)" in editor.hover("nt_xent")
