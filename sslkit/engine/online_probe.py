"""A linear classifier on detached features, trained beside the method to watch it learn."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from sslkit.api import (
    Evaluation,
    Evaluator,
    EvaluatorConfig,
    FeatureEvaluator,
    FeatureInput,
    ImageScores,
)
from sslkit.nn.deferred import Deferred
from sslkit.randomness import seeded


class OnlineProbe:
    """Multinomial logistic regression on `h.detach()`, one SGD step per training step.

    Features are standardised by a BatchNorm without parameters, so that one learning rate suits
    every backbone. No gradient reaches the encoder, and library randomness is left as it was.
    """

    def __init__(
        self,
        num_features: int,
        num_classes: int,
        *,
        lr: float,
        weight_decay: float,
        seed: int,
        device: torch.device,
    ) -> None:
        with seeded(seed, "online_probe"):
            self.norm = nn.BatchNorm1d(num_features, affine=False)
            self.linear = nn.Linear(num_features, num_classes)
        self.classifier = nn.Sequential(self.norm, self.linear).to(device)
        self.lr = lr
        self.optimizer = torch.optim.SGD(
            self.linear.parameters(), lr=lr, momentum=0.9, weight_decay=weight_decay
        )

    def step(
        self, features: Tensor, labels: Tensor, lr_factor: float
    ) -> Mapping[str, Tensor | float]:
        """One step. features: (B, F) or (B, V, F); labels: (B,), negative where an image has none:
        it counts for the standardisation alone. Returns loss and top-1 on the labelled images of
        the batch, before the step, as scalars on the device; nothing where there are none."""
        flat = features.detach().reshape(-1, features.shape[-1]).float()
        targets = labels.repeat_interleave(flat.shape[0] // len(labels))
        known = targets >= 0
        count = known.sum()
        device_type = flat.device.type
        with torch.enable_grad(), torch.autocast(device_type, enabled=False):
            logits = self.classifier(flat)
            losses = F.cross_entropy(
                logits, targets.where(known, -1), ignore_index=-1, reduction="sum"
            )
            loss = losses / count.clamp_min(1)  # 0 without labels, where a mean is not a number
            loss.backward()  # type: ignore[no-untyped-call]
        self.optimizer.param_groups[0]["lr"] = self.lr * lr_factor
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        hits = ((logits.detach().argmax(1) == targets) & known).sum()
        found = {"online_probe/loss": loss.detach(), "online_probe/top1": hits / count}
        return Deferred(lambda: found if count > 0 else {})

    @torch.no_grad()
    def correct(self, features: Tensor, labels: Tensor) -> Tensor:
        """Which of (N, F) features are classified right, (M,) bool: those of the M labelled images,
        since those without a label are left out."""
        known = labels >= 0
        self.classifier.eval()
        try:
            predicted = self.classifier(features[known].to(self.linear.weight.device)).argmax(1)
        finally:
            self.classifier.train()
        right: Tensor = predicted.cpu() == labels[known].cpu()
        return right

    def state_dict(self) -> dict[str, Any]:
        """Classifier and optimiser."""
        return {
            "classifier": self.classifier.state_dict(),
            "optimizer": self.optimizer.state_dict(),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restores classifier and momentum; the weight decay is that of the recipe."""
        weight_decay = self.optimizer.param_groups[0]["weight_decay"]
        self.classifier.load_state_dict(state["classifier"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.optimizer.param_groups[0]["weight_decay"] = weight_decay


class ProbeAccuracy(FeatureEvaluator):
    """The online probe as an evaluator, measured whenever another one takes features anyway."""

    baselines = ()
    splits = ("test",)

    def __init__(self, config: EvaluatorConfig, probe: OnlineProbe) -> None:
        super().__init__(config)
        self.probe = probe

    @classmethod
    def beside(cls, others: Sequence[Evaluator], probe: OnlineProbe) -> ProbeAccuracy:
        """Due as often as the most frequent of the other evaluators."""
        periods = [evaluator.config.every_epochs for evaluator in others]
        period = min((p for p in periods if p is not None), default=None)
        return cls(EvaluatorConfig(every_epochs=period), probe)

    def evaluate(self, given: FeatureInput) -> Evaluation:
        right = self.probe.correct(given.bank.test, given.bank.test_labels).double()
        return Evaluation({"top1": float(right.mean())}, per_image={"top1": ImageScores(right)})
