"""Figures as SVG that needs nothing from elsewhere and says in words what it shows."""

from __future__ import annotations

import io
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from sslkit.report.harmless import in_html

if TYPE_CHECKING:
    from matplotlib.figure import Figure

_STYLE = {"svg.fonttype": "none", "font.size": 9, "axes.titlesize": 10}
_DPI = 160
"""Resolution of what is drawn as pixels inside an SVG, such as the points of a map."""


@dataclass(frozen=True)
class Picture:
    """A figure of a comparison."""

    name: str
    """The name of its file, without the ending."""
    svg: str
    """The `<svg>` element."""
    caption: str


def svg_text(figure: Figure, name: str, alt: str) -> str:
    """The figure as an `<svg>` element: no XML head, no document type, no metadata, and ids that
    start from `name`, so that several may stand in one page. Equal figures give equal text.
    alt: what it shows, for readers who do not see it."""
    from matplotlib import rc_context

    buffer = io.StringIO()
    nothing: Mapping[str, Any] = dict.fromkeys(("Creator", "Date", "Format", "Type"))
    with rc_context({**_STYLE, "svg.hashsalt": name}):
        figure.savefig(buffer, format="svg", dpi=_DPI, bbox_inches="tight", metadata=nothing)
    text = buffer.getvalue()
    text = text[text.index("<svg") :]
    text = re.sub(r"<metadata>.*?</metadata>", "", text, flags=re.DOTALL)
    text = text.replace("<svg ", f"<svg {described(alt)} ", 1)
    # Ids of groups (figure_1, axes_1, ...) are counted anew in every figure, and so are those of
    # images that are drawn as pixels.
    text = re.sub(r'(<g id=")', rf"\g<1>{name}-", text)
    return re.sub(r'(<image [^>]*\bid=")', rf"\g<1>{name}-", text)


def described(alt: str) -> str:
    """The attributes by which an `<svg>` element is a picture with this description."""
    return f'role="img" aria-label="{in_html(alt)}"'
