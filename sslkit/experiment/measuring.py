"""The protocols of a recipe on the images that they measure, and how their numbers come about."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Literal

from torch import Tensor, nn

from sslkit.api import Backbone, Method
from sslkit.data.cached_split import CachedSplit
from sslkit.data.evaluation_images import (
    EVALUATION_BATCH,
    StoredImages,
    augmented_pairs,
    evaluation_batches,
)
from sslkit.data.view_base import ViewMaker
from sslkit.engine.embedding_monitor import EmbeddingMonitor
from sslkit.engine.online_probe import OnlineProbe, ProbeAccuracy
from sslkit.engine.runtime import Runtime
from sslkit.errors import RecipeError
from sslkit.evaluation.collector import NamedEvaluator, named_evaluators
from sslkit.evaluation.conditions import Conditions
from sslkit.evaluation.joined import EvaluationSuites
from sslkit.evaluation.results import SuiteResult
from sslkit.evaluation.suite import EvaluationSuite
from sslkit.nn.batch_norm import has_batch_statistics
from sslkit.recipe import Recipe

from .stores import Stores


@dataclass(frozen=True)
class Watched:
    """What there is to measure during a run beside the encoder."""

    probe: OnlineProbe | None = None
    maker: ViewMaker | None = None
    """What makes the training views."""
    peek: EmbeddingMonitor | None = None
    """Into the method."""


def make_suites(
    recipe: Recipe,
    runtime: Runtime,
    stores: Stores,
    method: Method,
    watched: Watched | None = None,
) -> EvaluationSuites:
    """The protocols of the recipe on its images, those of entries that bring images on these, and
    the accuracy of the online probe. watched: of a run that is under way.

    Raises RecipeError where a protocol asks for a layer that the projection head lacks."""
    watched = watched or Watched()
    protocols = named_evaluators([(slot.name, slot.build()) for slot in recipe.evaluate])
    check_projection(recipe, protocols, method)
    own = [p for place, p in enumerate(protocols) if f"evaluate.{place}" not in stores.elsewhere]
    takers = [(p.key, p.evaluator) for p in own if p.evaluator.uses_features]
    if watched.probe is not None and takers:
        accuracy = ProbeAccuracy.beside(takers, watched.probe)
        own += named_evaluators([("online_probe", accuracy)])

    images = _images(recipe, runtime, stores, method, watched.maker)
    brought = [
        _suite(
            [
                protocols[place]
                for place in range(len(protocols))
                if stores.elsewhere.get(f"evaluate.{place}") is there
            ],
            recipe, runtime, there, method, images.calibrate, Watched(),
        )
        for there in {id(each): each for each in stores.elsewhere.values()}.values()
    ]  # fmt: skip
    suite = _suite(own, recipe, runtime, stores, method, images.calibrate, watched)
    return EvaluationSuites(suite, brought)


def _images(
    recipe: Recipe, runtime: Runtime, stores: Stores, method: Method, maker: ViewMaker | None
) -> StoredImages:
    return StoredImages(
        stores.train,
        stores.test,
        method.encoder.preparation,
        seed=recipe.seed,
        device=runtime.device,
        precision=recipe.evaluation_precision,
        channels_last=recipe.train.channels_last,
        maker=maker,
    )


def _suite(
    protocols: Sequence[NamedEvaluator],
    recipe: Recipe,
    runtime: Runtime,
    stores: Stores,
    method: Method,
    calibrate: Callable[[nn.Module], None],
    watched: Watched,
) -> EvaluationSuite:
    train, test, peek = stores.train, stores.test, watched.peek
    augmentation = recipe.augmentation.build()

    def batches(store: CachedSplit) -> Callable[[], Iterable[Tensor]]:
        preprocess = method.encoder.preparation
        return lambda: evaluation_batches(store, preprocess, EVALUATION_BATCH, runtime.device)

    return EvaluationSuite(
        protocols,
        train_batches=batches(train),
        test_batches=batches(test) if test is not None else None,
        train_labels=train.labels,
        test_labels=test.labels if test is not None else None,
        num_train=len(train),
        num_test=len(test) if test is not None else 0,
        device=runtime.device,
        class_names=train.class_names or (),
        calibrate=calibrate,
        positive_pairs=lambda num: augmented_pairs(
            train, augmentation, num, recipe.seed, runtime.device, watched.maker
        ),
        embeddings=None if peek is None else (peek.now, peek.untrained),
        must_not_collapse=method.must_not_collapse,
        images=_images(recipe, runtime, stores, method, watched.maker),
        seed=recipe.seed,
        precision=recipe.evaluation_precision,
        channels_last=recipe.train.channels_last,
    )


def evaluate_calibrated(
    suites: EvaluationSuites, method: Method, epoch: int, final: bool
) -> SuiteResult:
    """Measures a method with the batch statistics of a run's training images; its own stay."""
    encoder, layers = method.encoder, method.projection_layers
    with suites.calibrated(encoder, layers) as seconds:
        return suites.run(encoder, epoch, final, layers, calibration_seconds=seconds)


def untrained_networks(
    method: Method | None, *, with_projection: bool = True
) -> tuple[Backbone | None, Sequence[nn.Module]]:
    """What `EvaluationSuites.baselines` takes. with_projection: whether projection layers count."""
    if method is None:
        return None, ()
    return method.encoder, method.projection_layers if with_projection else ()


def conditions(
    recipe: Recipe, encoder: nn.Module, no_untrained: str | None, *, given: bool = False
) -> Conditions:
    """How the numbers of an evaluation come about. given: whether the encoder is measured with the
    batch statistics that its weights came with."""
    kind: Literal["calibrated", "given"] = "given" if given else "calibrated"
    statistics = kind if has_batch_statistics(encoder) else None
    return Conditions(recipe.evaluation_precision, statistics, no_untrained)


def check_projection(recipe: Recipe, protocols: Sequence[NamedEvaluator], method: Method) -> None:
    """Raises RecipeError where a protocol asks for a layer that the projection head lacks: before
    the first step, since an hour later it could only be skipped."""
    layers = len(method.projection_layers)
    problems = [
        f"evaluate.{place}: {recipe.evaluate[place].name} asks for layer "
        f"{protocol.evaluator.projection_layer} of the projection head, and method "
        f"'{recipe.method.name}' gives {layers or 'no'} layer{'' if layers == 1 else 's'}; "
        f"set {f'0 to {layers}' if layers else '0'}"
        for place, protocol in enumerate(protocols)
        if protocol.evaluator.projection_layer > layers
    ]
    if problems:
        raise RecipeError(*problems)
