"""The YAML that recipes are written in."""

from __future__ import annotations

import math
import random
from typing import Any

import pytest

from sslkit.errors import RecipeError
from sslkit.recipe.yaml_positions import (
    Mark,
    dump_document,
    parse_document,
    parse_value,
    resolve_scalar,
)


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("3e-4", 3e-4),
        ("1E5", 1e5),
        ("1.", 1.0),
        (".5", 0.5),
        ("-1.5e+3", -1500.0),
        ("12", 12),
        ("+12", 12),
        ("010", 10),
        ("0o17", 15),
        ("0xff", 255),
        ("true", True),
        ("FALSE", False),
        ("null", None),
        ("~", None),
        ("-.inf", -math.inf),
        ("on", "on"),
        ("yes", "yes"),
        ("Off", "Off"),
        ("1_000", "1_000"),
        ("12:30:45", "12:30:45"),
        ("2026-01-02", "2026-01-02"),
        ("1e", "1e"),
        (".", "."),
        ("0b1", "0b1"),
        ("tRUE", "tRUE"),
        ("9" * 5000, "9" * 5000),
    ],
)
def test_plain_scalars(text: str, value: Any) -> None:
    resolved = resolve_scalar(text)
    assert resolved == value
    assert type(resolved) is type(value)


def test_not_a_number_is_one() -> None:
    assert math.isnan(resolve_scalar(".nan"))


def test_quotes_make_text() -> None:
    text = "a: '1'\nb: \"true\"\nc: |\n  5\nd: ''\ne:\n"
    assert parse_document(text, "x").tree == {"a": "1", "b": "true", "c": "5\n", "d": "", "e": None}


def test_keys_are_text() -> None:
    assert parse_document("1: a\non: b\nnull: c\n", "x").tree == {"1": "a", "on": "b", "null": "c"}


def test_positions_of_keys_and_values() -> None:
    marks = parse_document("a:\n  b: [1, {c: 2}]\n", "x").marks
    assert marks.keys["a", "b"] == Mark(line=2, column=3)
    assert marks.values["a", "b"] == Mark(line=2, column=6)
    assert marks.values["a", "b", 1, "c"] == Mark(line=2, column=14)
    assert marks.find(("a", "b", 1, "d")) == Mark(line=2, column=10)
    assert marks.find(("z",)) == Mark(line=1, column=1)


def test_a_byte_order_mark_and_a_document_start_are_fine() -> None:
    assert parse_document("--- # a recipe\na: 1\n...\n", "x").tree == {"a": 1}


def test_all_problems_of_the_text_are_reported() -> None:
    with pytest.raises(RecipeError) as error:
        parse_document("a: &x 1\nb: !t 2\nb: 3\nc: *x\n!!str d: 1\n", "x")
    assert [line.split(": ")[0] for line in error.value.problems] == [
        "x:1:4", "x:2:4", "x:3:1", "x:4:4", "x:5:1"
    ]  # fmt: skip


def test_an_alias_bomb_is_refused_before_it_grows() -> None:
    levels = ["a0: &a0 [x, x, x, x, x, x, x, x, x]"]
    levels += [f"a{i}: &a{i} [{', '.join([f'*a{i - 1}'] * 9)}]" for i in range(1, 9)]
    with pytest.raises(RecipeError, match="the alias"):
        parse_document("\n".join(levels), "x")


@pytest.mark.parametrize("opening", ["[", "{a: ", "- "])
def test_deep_nesting_is_refused(opening: str) -> None:
    with pytest.raises(RecipeError) as error:
        parse_document("a: " + opening * 5000 if opening != "- " else opening * 5000, "x")
    assert len(error.value.problems) == 1


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("5", 5),
        ("3e-4", 3e-4),
        ("", None),
        ("a/b c.parquet", "a/b c.parquet"),
        ("'5'", "5"),
        ("[1, {a: b}]", [1, {"a": "b"}]),
        ("{a: [x]}", {"a": ["x"]}),
        ("x=y", "x=y"),
    ],
)
def test_values_of_overrides(text: str, value: Any) -> None:
    assert parse_value(text) == value


@pytest.mark.parametrize("text", ["a: b", "- a", "[1", "*x", "&x 1", "!t 1", "{a: 1, a: 2}", "\n"])
def test_refused_values_of_overrides(text: str) -> None:
    with pytest.raises(ValueError, match=r"\S"):
        parse_value(text)


ATOMS = [
    *("on", "yes", "null", "~", "", "1e3", "0o17", "0x1F", "1_000", "010", "2026-01-02", "12:30"),
    *("a: b", "# c", " lead", "trail ", "two\nlines", "tab\t", "'", '"', "<<", "=", "é", "\u2028"),
    *(True, False, None, 0, -5, 10**30, 3e-4, 1e300, 5e-324, 0.1 + 0.2, 1.0, -0.0, 1e22),
]


def random_tree(source: random.Random, depth: int) -> Any:
    roll = source.random()
    if depth == 0 or roll < 0.5:
        return source.choice(ATOMS)
    if roll < 0.75:
        return [random_tree(source, depth - 1) for _ in range(source.randrange(4))]
    keys = [str(source.choice(ATOMS)) for _ in range(source.randrange(4))]
    return {key: random_tree(source, depth - 1) for key in keys}


def test_what_is_written_is_read_back() -> None:
    source = random.Random(0)
    for _ in range(300):
        tree = {"top": random_tree(source, 4)}
        read = parse_document(dump_document(tree), "x").tree
        assert repr(read) == repr(tree)  # repr also tells -0.0 from 0.0 and 1 from True


def problems_of(text: str) -> tuple[str, ...]:
    try:
        parse_document(text, "x")
    except RecipeError as error:
        return error.problems
    return ()


def test_any_text_is_read_or_refused() -> None:
    source = random.Random(1)
    pieces = [*"abc:-[]{},&*!|>'\"%@`#?\n\t =<0.e~", "\x00", "é", "---", "- ", ": ", "\n  "]
    refused = 0
    for _ in range(2000):
        problems = problems_of(
            "".join(source.choice(pieces) for _ in range(source.randrange(1, 30)))
        )
        refused += bool(problems)
        assert all(problem.startswith("x:") and "\n" not in problem for problem in problems)
    assert refused > 100
