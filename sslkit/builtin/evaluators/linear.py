"""The linear probe on cached features."""

from __future__ import annotations

from dataclasses import replace
from typing import Annotated, Any, Literal

from pydantic import Field, NonNegativeFloat, NonNegativeInt, PositiveFloat, PositiveInt

from sslkit.api import Evaluation, EvaluatorConfig, FeatureEvaluator, FeatureInput
from sslkit.randomness import stream_key

from .classification import at_layer, classified
from .linear_solvers import LBFGS, SGD, Folds, Solver, choose_and_fit, standardised_splits


class Linear(FeatureEvaluator):
    """A linear classifier on frozen features, its settings chosen by cross-validation on the
    training split and then fitted on all of it. Features are standardised by the training split. No
    augmentation; deterministic. Two solvers, each of which fits its whole grid in the same passes
    over the features:

    - `lbfgs`: multinomial logistic regression by full-batch L-BFGS, the penalty chosen: the
      transfer protocol of Chen et al. 2020 (arXiv:2002.05709, B.8). Close to, but not the same as,
      90 epochs of SGD on augmented images.
    - `sgd`: 90 epochs of SGD with Nesterov momentum and a cosine, learning rate and weight decay
      chosen: the linear evaluation of B.6, with a grid as in BYOL (Grill et al. 2020,
      arXiv:2006.07733), on features that are not augmented.

    Metrics: `top1`, `mean_per_class`; what was chosen, `l2` or `lr` and `weight_decay`; its
    accuracy on the held-out images, `selection_top1`, and their number, `selection_images`: the
    test split has no part in the choice.
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
        cross entropy. All are fitted in the same passes over the features."""
        selection_folds: Folds = 10
        """Parts that the training split is cut into, every class evenly. One after the other is
        held out, and the settings judged on it after a fit on the rest: all of them, or as many
        as make 10,000 images. The most accurate is chosen, or, of those that are less
        accurate by a standard error at most, the one of the lowest held-out cross entropy, and
        fitted on the whole training split."""
        max_iterations: PositiveInt = 500
        """`lbfgs`: iterations for each penalty, at most. A fit ends earlier, at its optimum; the
        report says so where it does not."""
        lr: Annotated[tuple[PositiveFloat, ...], Field(min_length=1)] = (
            1.0, 0.3, 0.1, 0.03, 0.01, 0.003,
        )  # fmt: skip
        """`sgd`: learning rates to choose from, at 256 images; they follow `batch_size` linearly.
        All are trained at once."""
        weight_decay: Annotated[tuple[NonNegativeFloat, ...], Field(min_length=1)] = (0.0,)
        """`sgd`: weight decays to choose from, with each learning rate."""
        epochs: PositiveInt = 90
        """`sgd`: passes over the training features."""
        batch_size: PositiveInt = 256
        """`sgd`: images per step."""

    def __init__(self, config: Any) -> None:
        super().__init__(config)
        self.projection_layer = config.layer
        if config.layer:
            self.baselines = ("untrained",)

    def evaluate(self, given: FeatureInput) -> Evaluation:
        bank, config = given.projected(self.config.layer).bank, self.config
        train, test = standardised_splits(bank)
        chosen = choose_and_fit(
            train,
            bank.num_classes,
            self._solver(given.seed),
            config.selection_folds,
            given.seed,
        )
        if chosen is None:
            return Evaluation(
                skipped=f"no class has two labelled {given.noun}s to choose settings with"
            )
        found = classified(chosen.predictions(test) == test.labels, test.labels, config.layer)
        extra = {
            **chosen.candidate,
            "selection_top1": chosen.selection_top1,
            "selection_images": chosen.judged,
        }
        named = {at_layer(name, config.layer): value for name, value in extra.items()}
        return replace(found, metrics={**found.metrics, **named}, notes=chosen.notes)

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
