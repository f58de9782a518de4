"""Another evaluator on every stage of the backbone."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Annotated, Any, TypeVar

from pydantic import Field
from torch import Tensor, nn

from sslkit.api import (
    Backbone,
    Evaluation,
    Evaluator,
    EvaluatorConfig,
    FeatureBank,
    FeatureEvaluator,
    FeatureInput,
    ImageEvaluator,
    ImageInput,
    RunFacts,
    Slot,
    slot,
)

T = TypeVar("T")


class Stages(ImageEvaluator):
    """What another evaluator finds in each stage of the backbone: in its feature map, averaged over
    positions. The middle of a network may hold more than its end, which is about the task that it
    was trained on (Gidaris et al. 2018, arXiv:1803.07728, table 1).

    Metrics: those of the evaluator, with `_stage_<number>` after their names, from 0 for the first.
    The last stage of a ResNet is what the evaluator finds by itself. Every stage is a pass over the
    images, as far as the stage."""

    class Config(EvaluatorConfig):
        evaluator: Slot[Evaluator] = slot("knn")
        """What measures a stage: an evaluator of features, such as `knn`, `linear`, `few_label`."""
        stages: Annotated[tuple[int, ...], Field(min_length=1)] | None = None
        """Stages to measure, from the end where negative; null: all. A ResNet has 0, after its
        first convolution, to 4, its last block; a ViT its blocks."""

    @classmethod
    def problems(cls, config: Any, facts: RunFacts) -> Iterable[tuple[str, str]]:
        yield from inner_problems(config.evaluator, "stages", "a stage")

    def evaluate(self, given: ImageInput) -> Evaluation:
        encoder, asked = given.encoder, self.config.stages
        if not isinstance(encoder, Backbone) or not encoder.feature_stages:
            return Evaluation(skipped=f"{type(encoder).__name__} has no stages")
        count = len(encoder.feature_stages)
        chosen = range(count) if asked is None else asked
        if unknown := [stage for stage in chosen if not -count <= stage < count]:
            return Evaluation(
                skipped=f"the backbone has no stage {unknown[0]}; valid: {-count} to {count - 1}"
            )
        evaluator = self.config.evaluator.build()
        found = {}
        for stage in dict.fromkeys(number % count for number in chosen):
            bank = take_bank(_Stage(encoder, stage), given)
            noun = given.images.sample.noun
            found[stage] = evaluator.evaluate(
                FeatureInput(given.subject, bank, given.seed, noun=noun)
            )
        return _joined(found)


class _Stage(nn.Module):
    """(B, C, S, S) to (B, channels): a feature map, averaged over its positions."""

    def __init__(self, encoder: Backbone, stage: int) -> None:
        super().__init__()
        self.train(encoder.training)
        self._encoder = [encoder]  # not its child: modes are the encoder's own
        self._stage = stage

    def forward(self, images: Tensor) -> Tensor:
        (maps,) = self._encoder[0].feature_maps(images, [self._stage])
        return maps.mean(dim=(2, 3))


def inner_problems(inner: Slot[Evaluator], outer: str, part: str) -> Iterable[tuple[str, str]]:
    """What is wrong with an evaluator that is to measure `part` of a network for `outer`."""
    if not issubclass(inner.cls, FeatureEvaluator):
        yield "evaluator", f"{inner.name} measures no features; take knn, linear or few_label"
    elif inner.build().projection_layer:  # type: ignore[attr-defined]
        yield "evaluator.layer", f"{part} has no projection head; set it to 0"
    for field in ("every_epochs", "data", "baselines"):
        if getattr(inner.config, field, None) is not None:
            yield f"evaluator.{field}", f"has no effect here; set {field} of {outer}"


def take_bank(network: nn.Module, given: ImageInput) -> FeatureBank:
    """What `network` makes of the labelled images."""
    images = given.images
    rows = {split: images.labelled(split) for split in ("train", "test")}
    return FeatureBank(
        images.features(network, "train", rows["train"]),
        images.features(network, "test", rows["test"]),
        images.labels("train")[rows["train"]].to(images.device),
        images.labels("test")[rows["test"]].to(images.device),
        images.class_names,
        images.device,
    )


def _joined(found: Mapping[int, Evaluation]) -> Evaluation:
    said = {
        stage: [*one.notes, *filter(None, [one.skipped, one.warning])]
        for stage, one in found.items()
    }
    return Evaluation(
        metrics=_named({stage: one.metrics for stage, one in found.items()}),
        draws=_named({stage: one.draws for stage, one in found.items()}),
        per_image=_named({stage: one.per_image for stage, one in found.items()}),
        resamples=_named({stage: one.resamples for stage, one in found.items()}),
        figures=_named({stage: one.figures for stage, one in found.items()}),
        notes=[f"stage {stage}: {note}" for stage, notes in said.items() for note in notes],
        skipped=None if any(one.metrics for one in found.values()) else "; ".join(said[min(said)]),
    )


def _named(by_stage: Mapping[int, Mapping[str, T]]) -> dict[str, T]:
    return {
        f"{name}_stage_{stage}": value
        for stage, values in by_stage.items()
        for name, value in values.items()
    }
