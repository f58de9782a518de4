"""Training a copy of an encoder with a linear classifier on top.

Shapes: B images of a batch, n labelled images, M test images, C classes.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Annotated

import torch
import torch.nn.functional as F
from pydantic import Field, PositiveFloat, PositiveInt
from torch import Tensor, nn

from sslkit.api import (
    Augmentation,
    Backbone,
    Batch,
    ComponentConfig,
    EvaluationImages,
    ImageInput,
    Optimizer,
    OptimizerConfig,
    ParamGroup,
    Progress,
    RunFacts,
    Schedule,
    Slot,
    optimizer_groups,
    set_group_rules,
    slot,
)
from sslkit.builtin.crop_flip import CropFlip
from sslkit.nn.layer_groups import Named, decayed_scales, groups_by_module_order
from sslkit.nn.supervised import SupervisedTraining


class FineTuningConfig(ComponentConfig):
    """How a copy of the encoder is trained with labels."""

    batch_size: PositiveInt = 256
    """Images per step. Fewer labelled images make one batch of all."""
    optimizer: Slot[Optimizer] = slot("sgd", lr=0.05, lr_scaling="linear", nesterov=True)
    """Optimiser; the default is that of SimCLR (Chen et al. 2020, B.5): no weight decay."""
    schedule: Slot[Schedule] = slot("cosine")
    """The learning rate over the fine-tuning; `{name: cosine, warmup_epochs: 5}` warms up."""
    layer_decay: Annotated[float, Field(gt=0.0, le=1.0)] = 1.0
    """Factor of the learning rate from each layer to the one below it, where a layer is a stage of
    a ResNet or a block of a ViT; the classifier has 1. MAE and BEiT: 0.65 to 0.75."""
    head_lr_scale: PositiveFloat = 1.0
    """Factor of the learning rate of the classifier, which starts from zero."""
    label_smoothing: Annotated[float, Field(ge=0.0, lt=1.0)] = 0.0
    """Part of the target that is spread over all classes."""
    augmentation: Slot[Augmentation] | None = None
    """What training images go through; one view. null: random resized crop and flip (`crop_flip`)
    at the size that the encoder is evaluated at."""

    def problems_with_views(self) -> Iterator[tuple[str, str]]:
        """What `Component.problems` yields where the augmentation does not suit."""
        views = self.augmentation.build().views if self.augmentation else ()
        if len(views) > 1:
            yield "augmentation", f"fine-tuning takes 1 view, and it makes {len(views)}: use 1"

    def warnings_of_views(self, facts: RunFacts) -> Iterator[tuple[str, str]]:
        """What `Component.warnings` yields where the augmentation makes views of another size."""
        views = self.augmentation.build().views if self.augmentation else ()
        size = max((view.size for view in facts.views), default=0)
        if views and size and views[0].size != size:
            yield (
                "augmentation",
                f"fine-tunes on views of {views[0].size} px, and the encoder is evaluated at "
                f"{size} px, which most ViTs cannot take; set size: {size}",
            )

    def inner_facts(self, facts: RunFacts, num_images: int, epochs: int) -> RunFacts:
        """`Component.facts_inside` for this training."""
        batch = max(1, min(self.batch_size, num_images))
        steps = max(1, num_images // batch)
        return replace(
            facts, num_images=num_images, batch_size=batch, steps_per_epoch=steps,
            total_steps=epochs * steps, views=(),
        )  # fmt: skip


class DivergedError(Exception):
    """The loss is not finite; the message says since when and what to do."""


class Classifier(nn.Module):
    """An encoder, some layers of its projection head and a linear layer that starts from zero."""

    def __init__(self, given: ImageInput, layer: int) -> None:
        """A copy of the networks. layer: how many projection layers are kept."""
        super().__init__()
        self.encoder = copy.deepcopy(given.encoder)
        self.projection = nn.Sequential(*map(copy.deepcopy, given.projection_layers[:layer]))
        for parameter in self.parameters():
            parameter.requires_grad_(True)  # a momentum teacher has none
        head = nn.Linear(_width(self, given.images), given.images.num_classes)
        nn.init.zeros_(head.weight)
        nn.init.zeros_(head.bias)
        self.head = head.to(given.images.device)

    def represent(self, images: Tensor) -> Tensor:
        """What the linear layer classifies."""
        features: Tensor = self.projection(self.encoder(images))
        return features

    def forward(self, images: Tensor) -> Tensor:
        logits: Tensor = self.head(self.represent(images))
        return logits

    def param_groups(self, layer_decay: float, head_lr_scale: float) -> list[ParamGroup]:
        """One group for each layer of the encoder and of the projection, and the classifier."""
        layers = [*_depth_groups(self.encoder)]
        layers += [list(layer.named_parameters()) for layer in self.projection]
        scales = decayed_scales(len(layers), layer_decay)
        groups = [ParamGroup(params, scale) for params, scale in zip(layers, scales, strict=True)]
        return [*groups, ParamGroup(list(self.head.named_parameters()), head_lr_scale)]


def _depth_groups(encoder: nn.Module) -> Sequence[Sequence[Named]]:
    if isinstance(encoder, Backbone):
        return encoder.depth_groups()
    return groups_by_module_order(encoder)


def _width(classifier: Classifier, images: EvaluationImages) -> int:
    side = images.preprocess.size
    with torch.no_grad():
        example = torch.zeros(1, images.channels, side, side, device=images.device)
        return classifier.eval().represent(example).shape[1]


@dataclass(frozen=True)
class FineTuned:
    """What fine-tuning came to, after its last epoch."""

    predictions: Tensor
    """(M,) classes of the labelled test images, on the CPU."""
    labels: Tensor
    """(M,) their true classes."""
    train_loss: float
    """Mean loss of the last epoch, on augmented images and with label smoothing."""


def fine_tune(
    given: ImageInput, config: FineTuningConfig, rows: Tensor, *, epochs: int, layer: int = 0
) -> FineTuned:
    """Trains a copy of the encoder on these training images and classifies the test
    split once, after the last epoch: no epoch is chosen.

    rows: (n,) positions of labelled images. layer: of the projection head, from which the
    classifier takes its input. The copy is trained in training mode, in the precision of
    evaluation, and measured with the batch statistics of training images, as every encoder is.
    Raises DivergedError."""
    images = given.images
    network = Classifier(given, layer)
    loss = _train(network, images, config, rows, epochs)
    images.calibrate(network)
    return FineTuned(*_predict(network, images), loss)


def _train(
    network: Classifier,
    images: EvaluationImages,
    config: FineTuningConfig,
    rows: Tensor,
    epochs: int,
) -> float:
    """Trains the network; returns the mean loss of the last epoch."""
    augmentation = config.augmentation.build() if config.augmentation else _crop_flip(images)
    batches = images.augmented(augmentation, batch_size=config.batch_size, rows=rows)
    steps = batches.steps_per_epoch
    rules = config.optimizer.config
    assert isinstance(rules, OptimizerConfig)
    peak = rules.peak_lr(min(config.batch_size, len(rows)))
    groups = network.param_groups(config.layer_decay, config.head_lr_scale)
    optimizer = config.optimizer.build().create(optimizer_groups(rules, groups, peak))
    schedule = config.schedule.build()

    def loss(batch: Batch) -> Tensor:
        with images.autocast():
            logits = network(batch.views[0])
        assert batch.labels is not None
        return F.cross_entropy(
            logits.float(),
            batch.labels,
            ignore_index=-1,  # what stands in for an unreadable image may have no label
            label_smoothing=config.label_smoothing,
        )

    def set_rules(step: int) -> None:
        progress = Progress(step, epochs * steps, steps)
        set_group_rules(optimizer, rules, peak * schedule.factor(progress), peak, progress)

    training = SupervisedTraining(optimizer, loss, set_rules)
    network.train()
    mean = math.nan
    for epoch in range(epochs):
        mean = training.epoch(batches.epoch(epoch))
        if not math.isfinite(mean):
            raise DivergedError(f"the loss is {mean} in epoch {epoch + 1}; lower optimizer.lr")
    return mean


def _crop_flip(images: EvaluationImages) -> Augmentation:
    preprocess = images.preprocess
    return CropFlip(CropFlip.Config(size=preprocess.size, interpolation=preprocess.interpolation))


@torch.no_grad()
def _predict(network: Classifier, images: EvaluationImages) -> tuple[Tensor, Tensor]:
    """Predicted and true classes of the labelled test images, on the CPU."""
    network.eval()
    rows, predictions = images.labelled("test"), []
    for part in images.preprocessed("test", rows):
        with images.autocast():
            predictions.append(network(part).argmax(dim=1))
    return torch.cat(predictions).cpu(), images.labels("test")[rows]
