"""MoCo v1 and v2: contrast a query with a queue of past keys."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Annotated, Any

import torch
from pydantic import PositiveFloat, PositiveInt
from torch import Tensor, nn

from sslkit.api import (
    Backbone,
    Batch,
    Bounds,
    ComponentConfig,
    Head,
    Loss,
    LossInput,
    Method,
    Progress,
    RunFacts,
    ScheduledNumber,
    Slot,
    StepOutput,
    scheduled,
    slot,
)
from sslkit.errors import RecipeError
from sslkit.nn.ema import EMATeacher, odd_momentum
from sslkit.nn.functional import normalize
from sslkit.nn.queue import FeatureQueue
from sslkit.nn.shared_statistics import Network, RowGroups, in_groups, shareable_layers

from .batch_groups import random_order

Momentum = Annotated[ScheduledNumber, Bounds(ge=0.0, le=1.0)]


class QueueConfig(ComponentConfig):
    """What MoCo v1 and v2 share; the defaults are the paper's settings for ImageNet."""

    head: Slot[Head]
    """Projection head, of the query network and of the teacher."""
    loss: Slot[Loss]
    """Loss between queries (first view) and keys (second view), with the queue as negatives."""
    queue_size: PositiveInt = 65536
    """Keys in the queue; any number. 4096 suffices for CIFAR."""
    teacher_momentum: Momentum = scheduled(0.999)
    """Momentum of the teacher. 0.99 suits CIFAR."""
    symmetric: bool = False
    """True: each view is a query and a key, and the loss is the sum of both directions, at twice
    the cost of a step."""
    loss_weight: PositiveFloat = 1.0
    """Multiplies the loss; 0.5 makes the sum of a symmetric loss a mean."""
    bn_groups: PositiveInt = 8
    """Groups of the batch with BatchNorm statistics of their own, drawn by image and anew for
    queries and for keys; the paper's 8 devices. 1: statistics of the whole batch, from which the
    network can read which keys are of this batch. Without effect on networks without BatchNorm."""


class MoCoV1(Method):
    """A query network learns to find the key of the same image among the keys of a queue.

    Keys come from a momentum teacher, which moves before each step towards the query network as
    the previous step left it. The keys of a batch enter the queue after the step, so no image
    meets its own key of the step as a negative. The first view is the query and the second the
    key; with `symmetric` each is both. The teacher has batch statistics of its own.
    Source: He et al. 2020, arXiv 1911.05722; with the defaults of `moco_v2`, Chen et al. 2020,
    arXiv 2003.04297.
    """

    class Config(QueueConfig):
        head: Slot[Head] = slot(
            "mlp", num_layers=1, out_dim=128, output_norm="none", output_bias=True
        )
        """Projection head: a linear layer."""
        loss: Slot[Loss] = slot("info_nce", temperature=0.07)
        """Loss between queries (first view) and keys (second view), with the queue as negatives."""

    @classmethod
    def problems(cls, config: QueueConfig, facts: RunFacts) -> Iterable[tuple[str, str]]:
        views, batch = len(facts.views), facts.batch_size
        if views != 2:
            yield "", f"moco needs 2 views, a query and a key, but the augmentation makes {views}"
        if config.bn_groups > 1 and batch < 2 * config.bn_groups:
            yield (
                "bn_groups",
                f"{config.bn_groups} groups of {batch} images have fewer than 2 each: "
                f"set at most {max(batch // 2, 1)}",
            )
        if ignores_negatives(config.loss.build()):
            yield "loss", f"{config.loss.name} makes no use of the queue: use info_nce"

    @classmethod
    def warnings(cls, config: QueueConfig, facts: RunFacts) -> Iterable[tuple[str, str]]:
        said = odd_momentum(config.teacher_momentum.values(facts), facts.total_steps)
        if said:
            yield "teacher_momentum", said
        directions = 2 if config.symmetric else 1
        keys = facts.num_images * directions
        if config.queue_size < facts.batch_size * directions:
            yield (
                "queue_size",
                f"{config.queue_size} keys are fewer than the {facts.batch_size * directions} of a "
                "step, most of which never serve as negatives; set a multiple of them",
            )
        if config.queue_size >= keys:
            yield (
                "queue_size",
                f"{config.queue_size} keys are those of an epoch ({keys}) or more, so every image "
                f"has older keys of itself among its negatives: set less, such as {keys // 8 or 1}",
            )

    @classmethod
    def plan_facts(cls, config: QueueConfig, facts: RunFacts) -> Mapping[str, str | int | float]:
        stated: dict[str, str | int | float] = {"negatives per anchor": config.queue_size}
        if config.bn_groups > 1:
            images = facts.batch_size / config.bn_groups
            stated["BatchNorm groups"] = f"{config.bn_groups} of {images:g} images"
        return stated

    config: QueueConfig

    def __init__(self, config: QueueConfig, backbone: Backbone, facts: RunFacts) -> None:
        super().__init__(config, backbone, facts)
        self.head = config.head.build(in_dim=backbone.num_features)
        self.loss = config.loss.build()
        self.images_per_group = facts.batch_size / config.bn_groups
        grouped = shareable_layers(self.taught) if config.bn_groups > 1 else []
        self.teacher = EMATeacher(self.taught)
        # A tuple: the layers are registered where they belong, and not here.
        self._grouped = (*grouped, *shareable_layers(self.teacher)) if grouped else ()
        self.queue = FeatureQueue(config.queue_size, self.head.out_dim)

    @property
    def projection_layers(self) -> Sequence[nn.Module]:
        return self.head.as_layers()

    @property
    def taught(self) -> nn.Module:
        """The query network, which the teacher follows."""
        return nn.Sequential(self.backbone, self.head)

    def before_step(self, progress: Progress) -> None:
        self.teacher.update(self.taught, self.config.teacher_momentum.at(progress))

    def embed(self, batch: Batch) -> dict[str, Tensor]:
        """features (B, V, F), query and key (B, V, D), with V = 2 where `symmetric` and else 1:
        entry v holds the query of view v and, as its key, that of the other view."""
        rows: list[tuple[Tensor, ...]] = []
        for view in range(2 if self.config.symmetric else 1):
            for_query = self._groups(batch, "query", view)
            for_key = self._groups(batch, "key", 1 - view)
            rows.append(
                self._passed(self._query, batch.views[view], for_query)
                + self._passed(self._key, batch.views[1 - view], for_key)
            )
        features, query, key = (torch.stack(views, dim=1) for views in zip(*rows, strict=True))
        return {"features": features, "query": query, "key": key}

    def _query(self, images: Tensor) -> tuple[Tensor, Tensor]:
        features = self.backbone(images)
        return features, self.head(features)

    def _key(self, images: Tensor) -> tuple[Tensor]:
        return (self.teacher(images),)

    def _groups(self, batch: Batch, network: str, view: int) -> RowGroups | None:
        """The groups in which a network sees a view: of all images that pass it at this time."""
        if not self._grouped:
            return None
        order = random_order(batch.passing_together.substream(network, view))
        return RowGroups(order, self._num_groups(len(order)), batch.first_passing, len(batch))

    def _num_groups(self, images: int) -> int:
        """Groups of a batch or micro-batch of so many images."""
        count = round(images / self.images_per_group)
        if count < 2:
            raise RecipeError(
                f"method.bn_groups: a group has {self.images_per_group:g} images and a micro-batch "
                f"{images}, but needs 2 groups to tell queries from keys; raise "
                "train.micro_batch_size, or set method.bn_groups to 1"
            )
        return count

    def _passed(
        self, network: Network, images: Tensor, groups: RowGroups | None
    ) -> tuple[Tensor, ...]:
        """What `network` makes of the images, normalised in groups."""
        if groups is None:
            return network(images)
        with in_groups(self._grouped, groups):
            return groups.passed_through(network, images)

    def objective(
        self, embeddings: Mapping[str, Tensor], batch: Batch, progress: Progress
    ) -> StepOutput:
        queries = embeddings["query"].unbind(dim=1)
        keys = normalize(embeddings["key"].detach()).unbind(dim=1)
        negatives = self.queue.features
        given = [
            LossInput((query, key), batch.labels, negatives, progress=progress)
            for query, key in zip(queries, keys, strict=True)
        ]
        directions = [self.loss(each) for each in given]
        return StepOutput(
            self.config.loss_weight * torch.stack(directions).sum(),
            losses=[(self.loss, each) for each in given],
            carry=torch.cat(keys),
        )

    def after_step(self, progress: Progress, carry: Any) -> None:
        self.queue.push(carry)


class MoCoV2(MoCoV1):
    """MoCo with the MLP head and the temperature of v2; its augmentation and its schedule are
    blocks of the recipe. See `moco_v1`. Source: Chen et al. 2020, arXiv 2003.04297."""

    class Config(QueueConfig):
        head: Slot[Head] = slot(
            "mlp",
            num_layers=2,
            out_dim=128,
            hidden_norm="none",
            hidden_bias=True,
            output_norm="none",
            output_bias=True,
        )
        """Projection head: two linear layers with a ReLU, without BatchNorm."""
        loss: Slot[Loss] = slot("info_nce", temperature=0.2)
        """Loss between queries (first view) and keys (second view), with the queue as negatives."""


def ignores_negatives(loss: Loss) -> bool:
    """Whether a loss has one value for any negatives: then a queue would be without effect."""
    rows = torch.eye(4, 8)
    views = (rows, rows + rows.roll(1, dims=1))
    labels, first = torch.arange(4), Progress(0, 1, 1)
    with torch.no_grad():
        near = loss(LossInput(views, labels, rows + rows.roll(2, dims=1), progress=first))
        far = loss(LossInput(views, labels, -rows, progress=first))
    return bool(near == far)
