"""Nearest neighbours as a picture: the same queries for every arm, one row of thumbnails each.

Shapes: Q queries, N images of the gallery, k neighbours, F feature width.
"""

from __future__ import annotations

import base64
import io
import math
import textwrap
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from sslkit.randomness import SampleRandom
from sslkit.report.harmless import in_html

from .svg import described

_QUERY, _THUMBNAIL = 64, 44
"""Sides as they are shown."""
_PIXELS = 64
"""Side of a stored thumbnail, at most."""
_QUALITY = 82
_LABEL, _CELL, _ROW, _GAP = 128, 62, 64, 18
_COLUMNS = 2
_NAME, _LONG_LABEL, _LABEL_LINES = 11, 21, 4
"""Letters of a class and of a line of an arm's name that fit, and how many such lines."""
_SAME, _OTHER, _UNKNOWN = "#2e8b57", "#c0392b", "#808895"
_STYLE = "font-family:system-ui,sans-serif;font-size:10px;fill:#1c2430"


@dataclass(frozen=True)
class Thumbnail:
    """A small picture of an image, and its class."""

    data: str
    """A data URI."""
    label: int | None
    name: str
    """The name of its class; empty where that is not known."""


@dataclass(frozen=True)
class Neighbours:
    """What one encoder finds."""

    subject: str
    indices: Tensor  # (Q, k) int64, rows of the gallery, the nearest first
    similarity: Tensor  # (Q, k) cosine


def choose_queries(labels: Tensor | None, num_images: int, count: int, seed: int) -> Tensor:
    """(Q,) positions of queries, in the order in which they are shown: chosen by the seed, of as
    many classes as there are before a class comes again."""
    words = SampleRandom(seed, "neighbours/queries", 0, torch.arange(num_images)).bits("order", 1)
    order = words[:, 0].argsort(stable=True)
    if labels is None or not bool((labels >= 0).any()):
        return order[:count]
    labels = labels.cpu()[order]
    order, labels = order[labels >= 0], labels[labels >= 0]
    # The turn of an image: how many of its class come before it.
    by_class = labels.argsort(stable=True)
    counts = labels.bincount()
    starts = (counts.cumsum(0) - counts)[labels[by_class]]
    turns = torch.empty_like(labels)
    turns[by_class] = torch.arange(len(labels)) - starts
    return order[turns.argsort(stable=True)[:count]]


def nearest(queries: Tensor, gallery: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """Cosine similarities (Q, k) and rows (Q, k) of the k nearest in the gallery, the nearest
    first and equal ones by row. queries: (Q, F). gallery: (N, F)."""
    similarity = F.normalize(queries, dim=1) @ F.normalize(gallery, dim=1).T
    order = similarity.argsort(dim=1, descending=True, stable=True)[:, :k]
    return similarity.gather(1, order).cpu(), order.cpu()


def thumbnail(image: Tensor, label: int | None, name: str) -> Thumbnail:
    """image: (C, H, W) uint8, of which the middle square is shown; the first channel alone where
    there are not three."""
    from PIL import Image

    channels = image if len(image) == 3 else image[:1].expand(3, -1, -1)
    picture = Image.fromarray(channels.permute(1, 2, 0).contiguous().cpu().numpy())
    side = min(picture.size)
    left, top = (picture.width - side) // 2, (picture.height - side) // 2
    picture = picture.crop((left, top, left + side, top + side))
    if side > _PIXELS:
        picture = picture.resize((_PIXELS, _PIXELS), Image.Resampling.LANCZOS)
    buffer = io.BytesIO()
    picture.save(buffer, format="JPEG", quality=_QUALITY, optimize=True)
    data = f"data:image/jpeg;base64,{base64.b64encode(buffer.getvalue()).decode()}"
    return Thumbnail(data, label, name)


def gallery_svg(
    queries: Sequence[Thumbnail],
    gallery: dict[int, Thumbnail],
    found: Sequence[Neighbours],
    alt: str,
    name: str = "neighbours",
) -> str:
    """The picture as an `<svg>` element. gallery: row -> thumbnail, of all that are found."""
    return "\n".join(_svg(queries, gallery, found, alt, name)) + "\n"


def same_class(
    queries: Sequence[Thumbnail], gallery: dict[int, Thumbnail], each: Neighbours
) -> int:
    """How many of the neighbours have the class of their query."""
    return sum(
        query.label is not None and gallery[row].label == query.label
        for query, rows in zip(queries, each.indices.tolist(), strict=True) for row in rows
    )  # fmt: skip


def _svg(
    queries: Sequence[Thumbnail],
    gallery: dict[int, Thumbnail],
    found: Sequence[Neighbours],
    alt: str,
    name: str,
) -> Iterator[str]:
    k = found[0].indices.shape[1]
    width = _QUERY + 16 + _LABEL + k * _CELL
    height = max(len(found) * _ROW, _QUERY + 20) + _GAP
    lines = math.ceil(len(queries) / _COLUMNS)
    box = f"0 0 {_COLUMNS * (width + _GAP)} {lines * height}"
    yield (
        f'<svg xmlns="http://www.w3.org/2000/svg" {described(alt)} viewBox="{box}" '
        f'width="{_COLUMNS * (width + _GAP)}" height="{lines * height}" style="{_STYLE}">'
    )
    yield "<defs>"
    for row in sorted({row for each in found for row in each.indices.flatten().tolist()}):
        yield _image(gallery[row], 0, 0, _THUMBNAIL, f' id="{name}-{row}"')
    yield "</defs>"
    for place, query in enumerate(queries):
        left, top = (place % _COLUMNS) * (width + _GAP), (place // _COLUMNS) * height
        yield f'<g transform="translate({left + 2} {top + 2})">'
        yield _image(query, 0, 0, _QUERY)
        yield _text(0, _QUERY + 12, _short(query.name, _NAME + 4), 'style="font-weight:600"')
        for line, each in enumerate(found):
            for number, words in enumerate(_wrapped(each.subject)):
                yield _text(_QUERY + 16, line * _ROW + 14 + 13 * number, words)
            pairs = zip(each.indices[place].tolist(), each.similarity[place].tolist(), strict=True)
            for column, (row, similarity) in enumerate(pairs):
                x = _QUERY + 16 + _LABEL + column * _CELL
                at = f'transform="translate({x} {line * _ROW})"'
                yield from _neighbour(query, gallery[row], similarity, f"{name}-{row}", at)
        yield "</g>"
    yield "</svg>"


def _neighbour(
    query: Thumbnail, found: Thumbnail, similarity: float, image: str, at: str
) -> Iterator[str]:
    same = None if query.label is None or found.label is None else query.label == found.label
    colour = {True: _SAME, False: _OTHER, None: _UNKNOWN}[same]
    dashes = ' stroke-dasharray="5 3"' if same is False else ""
    verdict = {True: ", same class", False: ", another class", None: ""}[same]
    yield f"<g {at}>"
    yield f"<title>{in_html(found.name)}{verdict}, similarity {similarity:.3f}</title>"
    yield f'<use href="#{image}"/>'
    yield (
        f'<rect x="-1.5" y="-1.5" width="{_THUMBNAIL + 3}" height="{_THUMBNAIL + 3}" fill="none" '
        f'stroke="{colour}" stroke-width="3"{dashes}/>'
    )
    yield _text(0, _THUMBNAIL + 12, _short(found.name, _NAME), f'style="fill:{colour}"')
    yield "</g>"


def _image(picture: Thumbnail, x: int, y: int, side: int, more: str = "") -> str:
    return f'<image{more} x="{x}" y="{y}" width="{side}" height="{side}" href="{picture.data}"/>'


def _text(x: int, y: int, text: str, more: str = "") -> str:
    return f'<text x="{x}" y="{y}" {more}>{in_html(text)}</text>'


def _wrapped(label: str) -> list[str]:
    lines = textwrap.wrap(label, _LONG_LABEL)
    return [*lines[: _LABEL_LINES - 1], "…"] if len(lines) > _LABEL_LINES else lines


def _short(text: str, letters: int) -> str:
    return text if len(text) <= letters else f"{text[: letters - 1]}…"
