"""The linear probe on cached features."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import Field, NonNegativeFloat, NonNegativeInt, PositiveFloat, PositiveInt

from sslkit.interfaces import Evaluation, Evaluator, EvaluatorConfig, Subject
from sslkit.nn.classification import mean_class_accuracy, top1_accuracy
from sslkit.randomness import stream_key

from .linear_solvers import LBFGS, SGD, Solver, choose_and_fit, standardised_splits

Fraction = Annotated[float, Field(gt=0.0, lt=1.0)]


def at_layer(name: str, layer: int) -> str:
    """The name of a metric of features that come from a layer of the projection head."""
    return f"{name}_projector_{layer}" if layer else name


class Linear(Evaluator):
    """A linear classifier on frozen features, its settings chosen on a part of the training split
    that is held out for it and then fitted on all of it. Features are standardised by the training
    split. No augmentation; deterministic. Two solvers, each of which fits its whole grid in the
    same passes over the features:

    - `lbfgs`: multinomial logistic regression by full-batch L-BFGS, the penalty chosen: the
      transfer protocol of Chen et al. 2020 (arXiv:2002.05709, B.8). Close to, but not the same as,
      90 epochs of SGD on augmented images.
    - `sgd`: 90 epochs of SGD with Nesterov momentum and a cosine, learning rate and weight decay
      chosen: the linear evaluation of B.6, with a grid as in BYOL (Grill et al. 2020,
      arXiv:2006.07733), on features that are not augmented.

    Metrics: `top1`, `mean_per_class`; what was chosen, `l2` or `lr` and `weight_decay`; and
    `selection_top1`, its accuracy on the held-out part: the test split has no part in the choice.
    At a layer of the projection head the names end in `_projector_<layer>`."""

    class Config(EvaluatorConfig):
        layer: NonNegativeInt = 0
        """0: the features of the encoder; k: the output of layer k of the projection head. Raw
        pixels are then no baseline."""
        solver: Literal["lbfgs", "sgd"] = "lbfgs"
        """How the classifier is fitted."""
        l2: Annotated[tuple[PositiveFloat, ...], Field(min_length=1)] = (
            1.0, 0.1, 0.01, 1e-3, 1e-4, 1e-5,
        )  # fmt: skip
        """`lbfgs`: penalties to choose from: l2 / 2 * squared norm of the weights, beside the mean
        cross entropy. Equal accuracies go to the strongest. All are fitted in the same passes over
        the features."""
        selection_fraction: Fraction = 0.1
        """Part of each class of the training split that is held out to choose on. What is chosen
        is then fitted on the whole training split."""
        max_iterations: PositiveInt = 100
        """`lbfgs`: iterations for each penalty, at most."""
        lr: Annotated[tuple[PositiveFloat, ...], Field(min_length=1)] = (
            1.0, 0.3, 0.1, 0.03, 0.01, 0.003,
        )  # fmt: skip
        """`sgd`: learning rates to choose from, at 256 images; they follow `batch_size` linearly.
        Equal accuracies go to the lowest. All are trained at once."""
        weight_decay: Annotated[tuple[NonNegativeFloat, ...], Field(min_length=1)] = (0.0,)
        """`sgd`: weight decays to choose from, with each learning rate."""
        epochs: PositiveInt = 90
        """`sgd`: passes over the training features."""
        batch_size: PositiveInt = 256
        """`sgd`: images per step."""

    def __init__(self, config: Any) -> None:
        super().__init__(config)
        self.projection_layer = config.layer
        self.pixel_baseline = config.layer == 0

    def evaluate(self, subject: Subject) -> Evaluation:
        bank, config = subject.projected(self.config.layer).bank, self.config
        train, test = standardised_splits(bank)
        chosen = choose_and_fit(
            train,
            bank.num_classes,
            self._solver(subject.seed),
            config.selection_fraction,
            subject.seed,
        )
        if chosen is None:
            return Evaluation(skipped="no class has two labelled images to choose settings with")
        (predictions,) = test.predictions(chosen.classifier)
        metrics = {
            "top1": top1_accuracy(predictions, test.labels),
            "mean_per_class": mean_class_accuracy(predictions, test.labels),
            **chosen.candidate,
            "selection_top1": chosen.selection_top1,
        }
        return Evaluation({at_layer(name, config.layer): value for name, value in metrics.items()})

    def _solver(self, seed: int) -> Solver:
        config = self.config
        if config.solver == "lbfgs":
            return LBFGS(config.l2, config.max_iterations)
        return SGD(
            config.lr,
            config.weight_decay,
            epochs=config.epochs,
            batch_size=config.batch_size,
            seed=stream_key(seed, "linear", "sgd")[0],
        )
