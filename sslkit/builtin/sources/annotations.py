"""Annotation files from disk, read as data that may be hostile: bounded in size and depth, without
entities, and refused in one line."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NoReturn
from xml.etree.ElementTree import Element, TreeBuilder
from xml.parsers import expat

import numpy as np
from numpy.typing import NDArray

from sslkit.builtin.sources.regular_files import read_regular
from sslkit.errors import DataError, first_line_of

MAX_XML_BYTES = 1 << 22
"""4 MiB: an annotation of a single image has a few KiB."""
MAX_JSON_BYTES = 1 << 31
"""2 GiB: the largest of COCO's has 448 MB."""
_MAX_DEPTH = 32
_MAX_ELEMENTS = 100_000
_NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]*")


def bad(path: Path, what: str, valid: str) -> DataError:
    """The error for a file that is not as it should be. what: what is wrong, and where in it."""
    return DataError(f"{path}: {what}; expected {valid}; correct the file or leave it out")


def read_bytes(path: Path, most: int) -> bytes:
    """A file of at most `most` bytes; a larger one is not read at all. Raises DataError."""
    try:
        if path.is_file() and path.stat().st_size > most:
            raise bad(path, f"more than {most:,} bytes", f"at most {most:,}")
        data = read_regular(path, most)
    except OSError as error:
        raise DataError(
            f"{path}: cannot be read ({error.strerror}); check the path, its permissions and the "
            "disk"
        ) from error
    if len(data) > most:
        raise bad(path, f"more than {most:,} bytes", f"at most {most:,}")
    return data


def read_names(path: Path) -> list[str]:
    """The first word of every line that has one, such as the names of images in a list. Raises
    DataError for names that could lead out of a folder."""
    text = read_bytes(path, MAX_XML_BYTES).decode("utf-8", errors="replace")
    names = [line.split()[0] for line in text.splitlines() if line.strip()]
    for number, name in enumerate(names, start=1):
        if not _NAME.fullmatch(name):
            raise bad(path, f"entry {number} is {_short(name)}", "letters, digits and any of _ . -")
    return names


# --- XML ------------------------------------------------------------------------------------------


def read_xml(path: Path) -> Element:
    """The root element. Document types, and with them entities, are refused. Raises DataError."""
    data = read_bytes(path, MAX_XML_BYTES)
    builder, parser = TreeBuilder(), expat.ParserCreate()
    depth = elements = 0

    def refuse(*_: object) -> NoReturn:
        raise bad(path, "it declares a document type", "plain XML without DOCTYPE and entities")

    def start(tag: str, attributes: dict[str, str]) -> None:
        nonlocal depth, elements
        depth, elements = depth + 1, elements + 1
        if depth > _MAX_DEPTH or elements > _MAX_ELEMENTS:
            raise bad(
                path,
                f"{elements:,} elements, {depth} deep",
                f"at most {_MAX_ELEMENTS:,} elements, {_MAX_DEPTH} deep",
            )
        builder.start(tag, attributes)

    def end(tag: str) -> None:
        nonlocal depth
        depth -= 1
        builder.end(tag)

    parser.StartDoctypeDeclHandler = refuse
    parser.EntityDeclHandler = refuse
    parser.StartElementHandler = start
    parser.EndElementHandler = end
    parser.CharacterDataHandler = builder.data
    try:
        parser.Parse(data, True)
        return builder.close()
    except (expat.ExpatError, ValueError, LookupError) as error:
        raise bad(path, f"not XML ({error})", "an annotation in XML") from error


def text_of(path: Path, element: Element, tag: str) -> str:
    """The text of a child that must be there. Raises DataError."""
    child = element.find(tag)
    text = (child.text or "").strip() if child is not None else ""
    if not text:
        raise bad(path, f"<{element.tag}> has no <{tag}>", f"<{tag}> with a value")
    return text


def number_of(path: Path, element: Element, tag: str) -> float:
    """The number in a child that must be there. Raises DataError."""
    text = text_of(path, element, tag)
    try:
        value = float(text)
    except ValueError:
        value = float("nan")
    if not abs(value) < 1e9:  # NaN too
        raise bad(path, f"<{tag}> of <{element.tag}> is {_short(text)}", "a number")
    return value


# --- JSON -----------------------------------------------------------------------------------------


def read_json(path: Path, *, without: str) -> dict[str, Any]:
    """The object in a JSON file; fields called `without` are dropped as they are read, to save
    memory. Raises DataError."""

    def lean(fields: dict[str, Any]) -> dict[str, Any]:
        fields.pop(without, None)
        return fields

    def refuse(name: str) -> NoReturn:
        raise ValueError(f"{name} is no number of JSON")

    data = read_bytes(path, MAX_JSON_BYTES)
    try:
        found = json.loads(data, object_hook=lean, parse_constant=refuse)
    except (ValueError, RecursionError) as error:  # also bytes that are no text
        raise bad(path, f"not JSON ({first_line_of(error)})", "annotations in JSON") from error
    if not isinstance(found, dict):
        raise bad(path, f"it holds a {type(found).__name__}", "an object with named lists")
    return found


def objects_in(path: Path, tree: dict[str, Any], field: str) -> list[dict[str, Any]]:
    """The list of objects under `field`. Raises DataError."""
    found = tree.get(field)
    if not isinstance(found, list) or not all(isinstance(item, dict) for item in found):
        raise bad(path, f"'{field}' is {_short(found)}", f"'{field}' with a list of objects")
    return found


def field_of(path: Path, where: str, item: dict[str, Any], field: str, kind: type[Any]) -> Any:
    """A field of an object that must have this type. Raises DataError."""
    value = item.get(field)
    if not isinstance(value, kind) or (isinstance(value, bool) and kind is not bool):
        words = {int: "a whole number", str: "text", list: "a list"}[kind]
        raise bad(path, f"{where}: '{field}' is {_short(value)}", words)
    if isinstance(value, str) and not _is_whole(value):
        raise bad(path, f"{where}: '{field}' is {_short(value)}", "text without halves of letters")
    return value


def _is_whole(text: str) -> bool:
    """Whether it can be written: JSON may hold one half of a character beyond the first 65,536."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


# --- Boxes ----------------------------------------------------------------------------------------


def within_image(
    path: Path, where: str, corners: Sequence[float], size: tuple[int, int]
) -> NDArray[np.float32]:
    """(4,) left, top, right, bottom, cut to the image. size: (height, width).

    Raises DataError for what is no box, or has no area in the image."""
    height, width = size
    given = np.array(corners, dtype=np.float64)
    sides = np.array([width, height, width, height], dtype=np.float32)
    box = given.astype(np.float32).clip(0.0, sides)
    if not (box[2] > box[0] and box[3] > box[1]):
        words = ", ".join(f"{value:g}" for value in given)
        raise bad(
            path,
            f"{where} goes from left, top to right, bottom ({words})",
            f"a box with an area inside its image of {width} x {height} pixels",
        )
    return box


def _short(value: object) -> str:
    text = repr(value)
    return text if len(text) <= 60 else f"{text[:57]}..."
