"""Full fine-tuning."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import replace
from typing import Any

from pydantic import PositiveInt

from sslkit.api import Evaluation, EvaluatorConfig, ImageEvaluator, ImageInput, RunFacts

from .classification import classified
from .supervised_training import DivergedError, FineTuningConfig, fine_tune


class Finetune(ImageEvaluator):
    """Trains a copy of the encoder and a linear classifier on all labels, and classifies the test
    split after the last epoch; no epoch is picked and nothing is tuned. The encoder of the run is
    left as it was. Its baseline is the untrained encoder after the same fine-tuning: training from
    scratch on the same budget, not the best that supervised training can reach.

    The defaults are those of SimCLR (Chen et al. 2020, arXiv:2002.05709, B.5) at 256 images: SGD
    with Nesterov momentum, learning rate 0.05, a cosine, no weight decay, random resized crops and
    flips. For a ViT see MAE (He et al. 2022, arXiv:2111.06377): AdamW, `layer_decay` 0.75,
    warm-up, label smoothing 0.1. The classifier starts from zero; order, augmentation, drop-out and
    drop path follow from the seed.

    Metrics: `top1`, `mean_per_class`, and `train_loss`, the mean of the last epoch."""

    class Config(FineTuningConfig, EvaluatorConfig):
        epochs: PositiveInt = 30
        """Passes over the labelled training images."""

    @classmethod
    def problems(cls, config: Any, facts: RunFacts) -> Iterable[tuple[str, str]]:
        if not facts.sample.is_image:
            yield "", f"fine-tunes on images, and the samples are {facts.sample}; leave it out"
        yield from config.problems_with_views()

    @classmethod
    def warnings(cls, config: Any, facts: RunFacts) -> Iterable[tuple[str, str]]:
        yield from config.warnings_of_views(facts)
        if config.every_epochs is not None:
            yield (
                "every_epochs",
                f"each time {config.epochs} epochs of fine-tuning; leave it out to fine-tune after "
                "the last epoch only",
            )
        share = 2 * config.epochs * facts.num_labelled / (facts.total_steps * facts.batch_size)
        if share > 1.0:
            yield (
                "epochs",
                f"fine-tuning the trained and the untrained encoder for {config.epochs} epochs "
                f"each sees {share:.1f} times the images of the training itself; lower epochs, or "
                "measure later with sslkit eval",
            )

    @classmethod
    def plan_facts(cls, config: Any, facts: RunFacts) -> Mapping[str, str | int | float]:
        images = config.epochs * facts.num_labelled
        return {"fine-tuning": f"{config.epochs} epochs, {images:,} images, twice (untrained too)"}

    @classmethod
    def facts_inside(cls, config: Any, facts: RunFacts) -> RunFacts:
        inside: RunFacts = config.inner_facts(facts, facts.num_labelled, config.epochs)
        return inside

    def evaluate(self, given: ImageInput) -> Evaluation:
        rows = given.images.labelled("train")
        try:
            found = fine_tune(given, self.config, rows, epochs=self.config.epochs)
        except DivergedError as error:
            return Evaluation(skipped=str(error))
        scored = classified(found.predictions == found.labels, found.labels)
        return replace(scored, metrics={**scored.metrics, "train_loss": found.train_loss})
