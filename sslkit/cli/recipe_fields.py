"""What may stand at a path of a recipe, read from its JSON Schema: for the TAB after `-o`.

The schema is that of `sslkit.recipe.schema`, whose form this module knows. Nothing here imports
torch, and nothing raises for a recipe that is only half written."""

from __future__ import annotations

import re
import textwrap
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from sslkit.host.field_types import value_words

TYPEABLE = re.compile(r"[\w./:+,@%-]*")
"""What no shell reads in a way of its own."""
_LONGEST = 60
"""Characters of help beside a word."""


class Spot:
    """A place of a recipe: what the schema says of it, and what the recipe has there."""

    def __init__(self, schema: Mapping[str, Any], spec: Mapping[str, Any], value: Any) -> None:
        self._schema = schema
        self.spec = spec
        self.value = value

    def fields(self) -> dict[str, Spot]:
        """The places below, by the word that a path has for them; old names of fields left out."""
        if isinstance(self.value, list):
            item: Mapping[str, Any] = next(
                (o["items"] for o in self._options() if "items" in o), {}
            )
            return {str(i): self._at(item, each) for i, each in enumerate(self.value)}
        found: dict[str, Spot] = {}
        block = self.value if isinstance(self.value, Mapping) else {}
        for option in self._options():
            if "number" in self._types() and not block:
                continue  # a scheduled number that is constant
            for name, spec in option.get("properties", {}).items():
                if name not in found and not spec.get("deprecated"):
                    found[name] = self._at(spec, block.get(name, spec.get("default")))
            if isinstance(inside := option.get("additionalProperties"), Mapping):
                found |= {str(key): self._at(inside, each) for key, each in block.items()}
        return found

    def values(self) -> dict[str, str]:
        """The words that may stand here, and what they are: choices where there are few, what
        stands here else."""
        found: dict[str, str] = {}
        for option in self._options():
            choices = list(option.get("enum", ()))
            choices += [True, False] if option.get("type") == "boolean" else []
            abouts = [first_sentence(each) for each in option.get("enumDescriptions", ())]
            abouts += [self.about] * (len(choices) - len(abouts))
            found |= zip(map(value_words, choices), abouts, strict=True)
            found |= {"null": self.about} if "null" in option.get("type", ()) else {}
        if self.value is not None and not isinstance(self.value, Mapping | list):
            found = {value_words(self.value): self.about} | found
        return {word: about for word, about in found.items() if TYPEABLE.fullmatch(word)}

    @property
    def about(self) -> str:
        """The first sentence of what the schema says of it."""
        return first_sentence(str(self.spec.get("description", "")))

    def _at(self, spec: Mapping[str, Any], value: Any) -> Spot:
        return Spot(self._schema, spec, value)

    def _types(self) -> list[Any]:
        return [option.get("type") for option in self._options()]

    def _options(self, spec: Mapping[str, Any] | None = None) -> Iterator[Mapping[str, Any]]:
        """The schemas of which one holds, those of the component that is named included."""
        spec = self.spec if spec is None else spec
        if "$ref" in spec:
            yield from self._options(self._definition(spec["$ref"]))
            return
        yield spec
        for option in spec.get("anyOf", ()):
            yield from self._options(option)
        name = self.value.get("name") if isinstance(self.value, Mapping) else None
        for choice in spec.get("allOf", ()):
            if name in _names(choice):
                yield from self._options(choice["then"])

    def _definition(self, reference: str) -> Mapping[str, Any]:
        node: Any = self._schema
        for part in reference.removeprefix("#/").split("/"):
            node = node[part.replace("~1", "/").replace("~0", "~")]
        return node if isinstance(node, Mapping) else {}


def first_sentence(text: str) -> str:
    """As much of a description as fits beside a word: typer would break longer lines."""
    sentence = re.split(r"(?<=[.:;]) ", text.partition("\n")[0], maxsplit=1)[0].rstrip(".:;")
    return textwrap.shorten(sentence, _LONGEST, placeholder=" ...")


def _names(choice: Mapping[str, Any]) -> Sequence[Any]:
    named: Sequence[Any] = (
        choice.get("if", {}).get("properties", {}).get("name", {}).get("enum", ())
    )
    return named


def complete_path(schema: Mapping[str, Any], tree: Any, incomplete: str) -> list[tuple[str, str]]:
    """(word, what it is) for everything that `PATH=VALUE` of a recipe may go on with."""
    return complete_below(Spot(schema, schema, tree), incomplete)


def complete_component_path(
    schema: Mapping[str, Any], kind: str, name: str, incomplete: str
) -> list[tuple[str, str]]:
    """The same for the block of a component; nothing for one that is not there."""
    block = schema["$defs"].get(kind, {})
    return complete_below(Spot(schema, block, {"name": name}), incomplete)


def complete_below(spot: Spot, incomplete: str) -> list[tuple[str, str]]:
    """The same below any place.

    A word that is the only one goes on by itself, into the block that it names or to the value
    that stands there now: with one word alone a shell would set a space behind it."""
    dotted, equals, _ = incomplete.partition("=")
    *around, last = dotted.split(".")
    top = spot
    for part in around:
        below = spot.fields()
        if part not in below:
            return []
        spot = below[part]
    fields = spot.fields()
    if equals:
        if last not in fields:
            return []
        words = [(f"{dotted}={value}", about) for value, about in fields[last].values().items()]
        return [each for each in words if each[0].startswith(incomplete)]
    base = "".join(f"{part}." for part in around)
    found = {name: each for name, each in fields.items() if name.startswith(last)}
    if len(found) != 1:
        return [(f"{base}{name}{_end(each)}", each.about) for name, each in found.items()]
    ((name, only),) = found.items()
    if only.fields():
        return complete_below(top, f"{base}{name}.")
    word = f"{base}{name}="
    return [(each, only.about) for each in (word, *(f"{word}{v}" for v in [*only.values()][:1]))]


def _end(spot: Spot) -> str:
    return "." if spot.fields() else "="


def overridden(tree: Any, overrides: Sequence[str]) -> Any:
    """The recipe after overrides that stand further left on the line, as far as they are plain."""
    import yaml

    for override in overrides:
        dotted, equals, text = override.partition("=")
        *around, last = dotted.split(".")
        node = tree
        for part in around:
            if isinstance(node, list) and part.isdecimal() and int(part) < len(node):
                node = node[int(part)]
            elif isinstance(node, dict):
                node = node.setdefault(part, {})
        if isinstance(node, dict) and equals:
            value = yaml.safe_load(text)
            if last == "name" and around and node.get("name") != value:
                node.clear()
            node[last] = value
    return tree
