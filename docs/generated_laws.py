"""The page of the laws that the conformance kit tries, from the laws themselves."""

from __future__ import annotations

from sslkit.api import INTERFACES
from sslkit.testing import KINDS_OF_LAWS, Law
from sslkit.testing.any_facts import FactsLaws

_START = """# Laws of components

What [`sslkit plugins check`](../../howto/conformance.md) tries, kind by kind. A law that needs
others is not tried while one of them is broken, so that a fault shows in one place.
"""


def laws_page() -> str:
    """A section for what all kinds share, and one for each kind."""
    shared = {law.name for law in FactsLaws.all()}
    parts = [_START, section("Every kind", FactsLaws.all())]
    for interface in INTERFACES:
        laws = KINDS_OF_LAWS.get(interface.kind, FactsLaws).all()
        own = [law for law in laws if law.name not in shared]
        parts.append(section(interface.kind.capitalize(), own))
    return "\n".join(parts)


def section(title: str, laws: list[Law]) -> str:
    """The laws of a kind, as a list."""
    lines = [f"## {title}", ""]
    for law in laws:
        needs = f" Needs {', '.join(f'`{name}`' for name in law.needs)}." if law.needs else ""
        slow = " Slow: left out by `--fast`." if law.slow else ""
        lines.append(f"`{law.name}`\n: {law.statement}. To meet it: {law.remedy}.{needs}{slow}\n")
    return "\n".join(lines)
