"""Maps and nearest neighbours of the arms of a comparison, by the encoder of each arm's first seed
and by one that was not trained."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from sslkit.engine.display import Display
from sslkit.errors import SSLKitError
from sslkit.host.plugin_errors import describe_failure
from sslkit.report.comparison.gallery import Neighbours, gallery_svg, nearest, same_class
from sslkit.report.comparison.side_by_side import Comparison, RunRecord
from sslkit.report.comparison.svg import Picture, svg_text
from sslkit.report.maps import draw_map
from sslkit.report.projection import LEAST_IMAGES, METHODS, project

from .shown_features import EncoderFeatures, ShownImages, features_of

_SEED = 0


@dataclass(frozen=True)
class PictureOptions:
    """What is to be drawn beside the numbers."""

    maps: Sequence[str] = ("pca", "tsne")
    """Names in `sslkit.report.projection.METHODS`."""
    neighbours: int = 6
    """Shown for each query; 0: none."""


def make_pictures(
    comparison: Comparison, wanted: PictureOptions, display: Display
) -> tuple[list[Picture], list[str]]:
    """The pictures, and a note for what cannot be drawn: numbers are never lost for a picture."""
    if not wanted.maps and not wanted.neighbours:
        return [], []
    drawn = {"maps": wanted.maps, "neighbours": wanted.neighbours}
    display.message(f"drawing {' and '.join(what for what, some in drawn.items() if some)}")
    first = next(arm.records[0] for arm in comparison.arms if arm.records)
    try:
        images = ShownImages(first.recipe)
    except SSLKitError as error:
        return [], [f"No maps and no neighbours: {error}."]
    except Exception as error:  # the data may be gone, and their plugin too
        return [], [f"No maps and no neighbours: {describe_failure(error)}."]
    found, notes = [], []
    for subject, record, trained in _encoders(comparison):
        try:
            found.append(features_of(subject, record, images, trained=trained,
                                     with_gallery=wanted.neighbours > 0))  # fmt: skip
        except Exception as error:  # a plugin's encoder, or a folder without its weights
            notes.append(f"{subject}: no map and no neighbours: {describe_failure(error)}.")
    if not found:
        return [], notes
    if wanted.maps and len(images.map.rows) < LEAST_IMAGES:
        notes.append(f"No maps: they take {LEAST_IMAGES} images, there are {len(images.map.rows)}.")
    return [*_maps(found, images, wanted.maps), *_gallery(found, images, wanted.neighbours)], notes


def _encoders(comparison: Comparison) -> Iterator[tuple[str, RunRecord, bool]]:
    """Subject, run, and whether its trained encoder is meant: every arm by its first seed, then
    the encoder that the baseline began with."""
    arms = [arm for arm in comparison.arms if arm.records]
    for arm in arms:
        yield arm.label, arm.records[0], True
    baseline = next((arm for arm in arms if arm.label == comparison.baseline), arms[0])
    yield f"untrained ({baseline.label})", baseline.records[0], False


def _maps(
    found: Sequence[EncoderFeatures], images: ShownImages, methods: Sequence[str]
) -> Iterator[Picture]:
    if len(images.map.rows) < LEAST_IMAGES:
        return
    for method in methods:
        panels = {each.subject: project(each.map, method, _SEED) for each in found}
        caption = (
            f"{METHODS[method]} of the features of {images.map.sentence(images.split)}, the same "
            "in every panel; encoders of each arm's first seed, at its end. "
            + _READING[method == "pca"]
        )
        name = f"map_{method}"
        yield Picture(name, svg_text(draw_map(panels, images.map, method), name, caption), caption)


_READING = (
    "Only neighbourhoods mean something: distances between groups, their sizes and their "
    "orientation do not, and panels have no common axes.",
    "Features are L2-normalised, and every panel has axes of its own.",
)


def _gallery(found: Sequence[EncoderFeatures], images: ShownImages, k: int) -> Iterator[Picture]:
    k = min(k, len(images.gallery))
    if not k or not len(images.queries):
        return
    neighbours = []
    for each in found:
        similarity, indices = nearest(each.queries, each.gallery, k)
        neighbours.append(Neighbours(each.subject, indices, similarity))
    queries = images.queries_shown()
    places = sorted({place for each in neighbours for place in each.indices.flatten().tolist()})
    gallery = images.gallery_shown(places)
    caption = (
        f"The {k} nearest of {len(images.gallery):,} training images (cosine similarity) to "
        f"{len(queries)} test images, all chosen by a fixed seed, by the encoders of each arm's "
        "first seed."
    )
    if any(query.label is not None for query in queries):
        shares = (f"{each.subject} {same_class(queries, gallery, each)}" for each in neighbours)
        caption += (
            " Frames: solid green for the class of the query, dashed red for another one. Of the "
            f"query's class among {k * len(queries)}: {', '.join(shares)}; too few to rank arms by."
        )
    svg = gallery_svg(queries, gallery, neighbours, caption)
    yield Picture("neighbours", svg, caption)
