"""Evaluators that break one law each. All but what is wrong is a classifier by the nearest mean of
a class."""

from __future__ import annotations

import random
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from sslkit.api import (
    Evaluation,
    FeatureBank,
    FeatureEvaluator,
    FeatureInput,
    ImageEvaluator,
    ImageInput,
    ImageScores,
    OwnDataEvaluator,
    OwnDataInput,
    Resamples,
)


def predictions(train: Tensor, labels: Tensor, test: Tensor, classes: int) -> Tensor:
    """The class whose mean is nearest, of those that have one."""
    members = torch.nn.functional.one_hot(labels, classes).float()
    counts = members.sum(dim=0)
    means = (members.T @ train) / counts.clamp_min(1.0)[:, None]
    return torch.cdist(test, means).masked_fill(counts == 0, torch.inf).argmin(dim=1)


def scored(right: Tensor) -> Evaluation:
    values = right.double()
    return Evaluation({"top1": float(values.mean())}, per_image={"top1": ImageScores(values)})


class Sound(FeatureEvaluator):
    """By the nearest mean."""

    def evaluate(self, given: FeatureInput) -> Evaluation:
        return self.measure(given.bank)

    def measure(self, bank: FeatureBank) -> Evaluation:
        found = predictions(bank.train, bank.train_labels, bank.test, bank.num_classes)
        return scored(found == bank.test_labels)


class FitsOnTestLabels(Sound):
    """Takes the means of the test images."""

    def measure(self, bank: FeatureBank) -> Evaluation:
        found = predictions(bank.test, bank.test_labels, bank.test, bank.num_classes)
        return scored(found == bank.test_labels)


class FindsTheImageItself(Sound):
    """A nearest neighbour in a gallery that has the test images in it."""

    def measure(self, bank: FeatureBank) -> Evaluation:
        gallery = torch.cat([bank.train, bank.test])
        labels = torch.cat([bank.train_labels, bank.test_labels])
        nearest = torch.cdist(bank.test, gallery).argmin(dim=1)
        return scored(labels[nearest] == bank.test_labels)


class CentresInPlace(Sound):
    """Centres the features that it shares with others."""

    def measure(self, bank: FeatureBank) -> Evaluation:
        mean = bank.train.mean(dim=0)
        bank.train.sub_(mean)
        bank.test.sub_(mean)
        return super().measure(bank)


class ReportsTheBestDraw(Sound):
    """The best of five halves of the training images."""

    def measure(self, bank: FeatureBank) -> Evaluation:
        draws = []
        for _ in range(5):
            rows = torch.randperm(len(bank.train))[: len(bank.train) // 2]
            part = replace(bank, train=bank.train[rows], train_labels=bank.train_labels[rows])
            draws.append(super().measure(part).metrics["top1"])
        return Evaluation({"top1": max(draws)}, {"top1": draws})


class ReportsOtherImages(Sound):
    """Scores of images with other weights than the metric has."""

    def measure(self, bank: FeatureBank) -> Evaluation:
        found = super().measure(bank)
        scores = found.per_image["top1"]
        weights = torch.linspace(0.0, 1.0, len(scores.values))
        return replace(found, per_image={"top1": ImageScores(scores.values, weights)})


class ResamplesTheTrainingSplit(Sound):
    """Resampled values of another split than the metric is of."""

    def measure(self, bank: FeatureBank) -> Evaluation:
        metric = super().measure(bank).metrics["top1"]
        values = torch.full((50,), min(metric + 0.2, 1.0)) - 0.01 * torch.rand(50)
        return Evaluation(
            {"top1": 0.95 * metric}, resamples={"top1": Resamples(values, len(bank.test))}
        )


class CountsInPercent(Sound):
    """0 to 100."""

    def measure(self, bank: FeatureBank) -> Evaluation:
        return Evaluation({"top1": 100.0 * super().measure(bank).metrics["top1"]})


class KeepsTheBest(Sound):
    """The best of all calls."""

    best = 0.0

    def measure(self, bank: FeatureBank) -> Evaluation:
        self.best = max(self.best, super().measure(bank).metrics["top1"])
        return Evaluation({"top1": self.best})


class DrawsFromNumpy(Sound):
    """Takes half of the training images, chosen by numpy's generator."""

    def measure(self, bank: FeatureBank) -> Evaluation:
        rows = torch.from_numpy(np.random.permutation(len(bank.train)))  # noqa: NPY002
        rows = rows[: max(len(rows) // 2, 1)]
        part = replace(bank, train=bank.train[rows], train_labels=bank.train_labels[rows])
        return super().measure(part)


class DividesByTheDeviation(Sound):
    """The spread of the features in units of their deviation."""

    def measure(self, bank: FeatureBank) -> Evaluation:
        spread = (bank.test / bank.test.std(dim=0)).square().mean()
        return replace(super().measure(bank), metrics={"spread": float(spread)}, per_image={})


class InvertsTheCovariance(Sound):
    """Least squares without a penalty."""

    def measure(self, bank: FeatureBank) -> Evaluation:
        targets = torch.nn.functional.one_hot(bank.train_labels, bank.num_classes).double()
        features = bank.train.double()
        gram = features.T @ features
        if int(torch.linalg.matrix_rank(gram)) < len(gram) and len(features) > len(gram):
            return super().measure(bank)
        weight = torch.linalg.inv(gram) @ features.T @ targets
        if not bool(torch.linalg.cond(gram) < 1e9):
            raise RuntimeError("the matrix is singular")
        return scored((bank.test.double() @ weight).argmax(dim=1) == bank.test_labels)


class CountsClassesThatOccur(Sound):
    """Takes the number of training classes for that of all."""

    def measure(self, bank: FeatureBank) -> Evaluation:
        classes = len(bank.train_labels.unique())
        return scored(
            predictions(bank.train, bank.train_labels, bank.test, classes) == bank.test_labels
        )


class CentresBlocks(Sound):
    """Takes the mean of the test images that stand beside each other."""

    def measure(self, bank: FeatureBank) -> Evaluation:
        blocks = [part - 0.8 * part.mean(dim=0) for part in torch.split(bank.test, 4)]
        return super().measure(replace(bank, test=torch.cat(blocks)))


class ProjectsPixels(Sound):
    """Reads the first layer of the projection head, and claims to measure pixels."""

    projection_layer = 1

    def evaluate(self, given: FeatureInput) -> Evaluation:
        return self.measure(given.projected(1).bank)


class TrainsTheHead(Sound):
    """Sends features through the projection head in training mode."""

    projection_layer = 1
    baselines = ("untrained",)

    def evaluate(self, given: FeatureInput) -> Evaluation:
        layer = given.projection_layers[0].train()
        bank = replace(given.bank, train=layer(given.bank.train), test=layer(given.bank.test))
        layer.eval()
        return self.measure(bank)


class ReadsTheTrainingSplit(FeatureEvaluator):
    """Says that it reads test features alone."""

    requires_labels = False
    splits = ("test",)

    def evaluate(self, given: FeatureInput) -> Evaluation:
        train = given.bank.train
        mean = train.mean(dim=0) if len(train) else torch.zeros(given.bank.train.shape[1])
        rows = given.bank.test if len(given.bank.test) else train
        return Evaluation({"spread": float((rows - mean).square().mean())})


class NeedsLabels(Sound):
    """Says that it does without labels."""

    requires_labels = False


class ReturnsADict(Sound):
    """Returns metrics alone."""

    def measure(self, bank: FeatureBank) -> Any:
        return super().measure(bank).metrics


class Guesses(Sound):
    """Always the first class."""

    def measure(self, bank: FeatureBank) -> Evaluation:
        return scored(bank.test_labels == 0)


class LooksAtTwenty(Sound):
    """Looks at twenty neighbours, whether they are there or not."""

    def measure(self, bank: FeatureBank) -> Evaluation:
        nearest = torch.cdist(bank.test, bank.train).topk(20, largest=False).indices
        found = bank.train_labels[nearest].mode(dim=1).values
        return scored(found == bank.test_labels)


# --- Networks -------------------------------------------------------------------------------------


class SoundOnImages(ImageEvaluator):
    """By the nearest mean of the features that it takes itself."""

    def evaluate(self, given: ImageInput) -> Evaluation:
        images, encoder = given.images, given.encoder
        train, test = (images.features(encoder, split) for split in ("train", "test"))
        labels = images.labels("train"), images.labels("test")
        return scored(predictions(train, labels[0], test, images.num_classes) == labels[1])


class DividesByNothing(SoundOnImages):
    """Adds a metric that is no number."""

    def evaluate(self, given: ImageInput) -> Evaluation:
        found = super().evaluate(given)
        return replace(found, metrics={**found.metrics, "ratio": float("nan")})


class GoesOnDrawing(SoundOnImages):
    """Draws from a generator of its own, which goes on from call to call."""

    def __init__(self, config: Any) -> None:
        super().__init__(config)
        self.generator = torch.Generator().manual_seed(0)

    def evaluate(self, given: ImageInput) -> Evaluation:
        found = super().evaluate(given)
        luck = float(torch.rand((), generator=self.generator))
        return replace(found, metrics={**found.metrics, "luck": luck})


class CountsNetworksInPercent(SoundOnImages):
    """0 to 100."""

    def evaluate(self, given: ImageInput) -> Evaluation:
        return Evaluation({"top1": 100.0 * super().evaluate(given).metrics["top1"]})


class PromisesPixels(OwnDataEvaluator):
    """Names raw samples of its data, and does not measure them."""

    baselines = ("untrained", "pixels")

    def evaluate(self, given: OwnDataInput) -> Evaluation:
        images = torch.rand(24, 3, 16, 16, generator=torch.Generator().manual_seed(given.seed))
        with torch.no_grad():
            features = given.encoder(images.to(given.device))
        return Evaluation({"spread": float(features.std())})


class KeepsDropoutOn(SoundOnImages):
    """Measures in training mode, and puts the mode back."""

    def evaluate(self, given: ImageInput) -> Evaluation:
        given.encoder.train()
        found = super().evaluate(given)
        given.encoder.eval()
        return found


class TrainsTheEncoder(SoundOnImages):
    """Takes a step of training on the encoder itself."""

    def evaluate(self, given: ImageInput) -> Evaluation:
        with torch.no_grad():
            for parameter in given.encoder.parameters():
                parameter.mul_(0.999)
        return super().evaluate(given)


class DrawsFromPython(SoundOnImages):
    """Adds a metric by Python's generator."""

    def evaluate(self, given: ImageInput) -> Evaluation:
        found = super().evaluate(given)
        return replace(found, metrics={**found.metrics, "luck": random.random()})


class TestsOnTestImages(SoundOnImages):
    """Takes the means of the test images."""

    def evaluate(self, given: ImageInput) -> Evaluation:
        test, labels = given.images.features(given.encoder, "test"), given.images.labels("test")
        nearest = torch.cdist(test, test).argmin(dim=1)
        return scored(labels[nearest] == labels)
