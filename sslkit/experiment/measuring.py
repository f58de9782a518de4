"""The evaluators of a recipe on the images that they measure, and how their numbers come about."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, replace
from functools import partial
from typing import Literal

from torch import nn

from sslkit.api import Backbone, Evaluator, FeatureEvaluator, ImageEvaluator, Method, SampleSpec
from sslkit.data.cached_split import CachedSplit
from sslkit.data.evaluation_images import StoredImages
from sslkit.data.view_base import ViewMaker
from sslkit.engine.embedding_monitor import EmbeddingMonitor
from sslkit.engine.online_probe import OnlineProbe, ProbeAccuracy
from sslkit.errors import RecipeError
from sslkit.evaluation.collector import NamedEvaluator, named_evaluators
from sslkit.evaluation.conditions import Conditions
from sslkit.evaluation.results import SuiteResult
from sslkit.evaluation.suite import EvaluationSuite, EvaluationSuites
from sslkit.nn.batch_norm import has_batch_statistics
from sslkit.nn.compute import Compute
from sslkit.parallel.shared_work import SharedWork
from sslkit.recipe import Recipe

from .stores import Stores


@dataclass(frozen=True)
class Watched:
    """What there is to measure during a run beside the encoder."""

    probe: OnlineProbe | None = None
    maker: ViewMaker | None = None
    """What makes the training views."""
    monitor: EmbeddingMonitor | None = None
    """What the method hands to its loss."""


def make_suites(
    recipe: Recipe,
    compute: Compute,
    stores: Stores,
    method: Method,
    watched: Watched | None = None,
    *,
    calibration: CachedSplit | None = None,
) -> EvaluationSuites:
    """The evaluators of the recipe on its images, those of entries that bring images on these, and
    the accuracy of the online probe. watched: of a run that is under way. calibration: the images
    whose batch statistics every encoder is measured with, where they are not those of `stores`.

    Raises RecipeError where an evaluator asks for a layer that the projection head lacks."""
    watched = watched or Watched()
    evaluators = named_evaluators([(slot.name, slot.build()) for slot in recipe.evaluate])
    check_projection(recipe, evaluators, method)
    places = {f"evaluate.{place}": named for place, named in enumerate(evaluators)}
    own = [named for path, named in places.items() if path not in stores.elsewhere]
    takers = [named for named in own if named.feature_parts_on("trained")]
    if watched.probe is not None and takers:
        accuracy = ProbeAccuracy.beside([named.evaluator for named in takers], watched.probe)
        own += named_evaluators([("online_probe", accuracy)])

    work = SharedWork(compute.world, settle=partial(stores.agree, compute.world))
    images = _images(recipe, compute, stores, method, watched.maker)
    statistics = images
    if calibration is not None and calibration is not stores.train:
        statistics = _images(recipe, compute, Stores(calibration, None), method, None)
    calibrate = partial(statistics.calibrate, work=work)
    suite = EvaluationSuite(
        own,
        images,
        seed=recipe.seed,
        calibrate=calibrate,
        embeddings=watched.monitor,
        work=work,
    )
    brought = [
        EvaluationSuite(
            [named for path, named in places.items() if stores.elsewhere.get(path) is there],
            _images(recipe, compute, there, method, None),
            seed=recipe.seed,
            calibrate=calibrate,
            work=work,
        )
        for there in {id(each): each for each in stores.elsewhere.values()}.values()
    ]
    return EvaluationSuites(suite, brought)


def _images(
    recipe: Recipe, compute: Compute, stores: Stores, method: Method, maker: ViewMaker | None
) -> StoredImages:
    """maker: of the training views, where there is one."""
    return StoredImages(
        stores,
        method.encoder.preparation,
        replace(compute, precision=recipe.evaluation_precision),
        seed=recipe.seed,
        augmentation=recipe.augmentation.build(),
        maker=maker,
    )


def evaluate_calibrated(
    suites: EvaluationSuites,
    method: Method,
    epoch: int,
    final: bool,
    meanwhile: AbstractContextManager[object] | None = None,
) -> SuiteResult:
    """Measures a method with the batch statistics of a run's training images; its own stay.
    meanwhile: entered when it has them."""
    encoder, layers = method.encoder, method.projection_layers
    with suites.calibrated(encoder, layers) as seconds, meanwhile or nullcontext():
        return suites.run(encoder, epoch, final, layers, calibration_seconds=seconds)


def untrained_networks(
    method: Method | None, *, with_projection: bool = True
) -> tuple[Backbone | None, Sequence[nn.Module]]:
    """What `EvaluationSuites.baselines` takes. with_projection: whether projection layers count."""
    if method is None:
        return None, ()
    return method.encoder, method.projection_layers if with_projection else ()


def conditions(
    recipe: Recipe,
    encoder: nn.Module,
    sample: SampleSpec,
    no_untrained: str | None,
    *,
    given: bool = False,
) -> Conditions:
    """How the numbers of an evaluation come about. sample: what it measures on. given: whether the
    encoder is measured with the batch statistics that its weights came with."""
    kind: Literal["calibrated", "given"] = "given" if given else "calibrated"
    statistics = kind if has_batch_statistics(encoder) else None
    return Conditions(recipe.evaluation_precision, statistics, no_untrained, sample.noun)


def check_projection(recipe: Recipe, evaluators: Sequence[NamedEvaluator], method: Method) -> None:
    """Raises RecipeError where an evaluator asks for a layer that the projection head lacks: before
    the first step, since an hour later it could only be skipped."""
    layers = len(method.projection_layers)
    asked = [max(map(_projection_layer, named.parts), default=0) for named in evaluators]
    problems = [
        f"evaluate.{place}: {recipe.evaluate[place].name} asks for layer {layer} of the projection "
        f"head, and method '{recipe.method.name}' gives {layers or 'no'} "
        f"layer{'' if layers == 1 else 's'}; set {f'0 to {layers}' if layers else '0'}"
        for place, layer in enumerate(asked)
        if layer > layers
    ]
    if problems:
        raise RecipeError(*problems)


def _projection_layer(part: Evaluator) -> int:
    return part.projection_layer if isinstance(part, FeatureEvaluator | ImageEvaluator) else 0
