"""Finding images of the same class by the similarity of their features."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Annotated, Any, Literal

import torch
from pydantic import Field, PositiveInt
from torch import Tensor

from sslkit.api import (
    Evaluation,
    EvaluatorConfig,
    FeatureEvaluator,
    FeatureInput,
    ImageScores,
    RunFacts,
)
from sslkit.nn.retrieval import score_retrieval
from sslkit.randomness import random_subset


class Retrieval(FeatureEvaluator):
    """Each test image is a query; a gallery is ranked by cosine similarity to it, and the images of
    its class are the relevant ones. The gallery is the rest of the test split (the query itself is
    left out), or the whole training split. No training and no random part, but for the choice of
    queries where there are more than `num_queries`. Images that are equally similar are in no
    order: metrics are then expected values over all orders. A query whose class does not occur in
    the gallery does not count.

    Metrics: `recall_at_<k>`, the part of the queries that have an image of their class among the k
    nearest (the Recall@K of metric learning, Jegou et al. 2011, not the part of all relevant images
    that is found); `map`, the mean over queries of the average precision over the whole ranking."""

    class Config(EvaluatorConfig):
        gallery: Literal["test", "train"] = "test"
        """What is searched: `test`, the other test images; `train`, the training split."""
        k: Annotated[tuple[PositiveInt, ...], Field(min_length=1)] = (1, 5, 10)
        """Numbers of nearest images for recall."""
        num_queries: PositiveInt = 10_000
        """Test images that are queries, chosen by the seed; all where there are fewer. Time grows
        with queries times gallery; the gallery is never cut."""

    @classmethod
    def problems(cls, config: Any, facts: RunFacts) -> Iterable[tuple[str, str]]:
        if len(set(config.k)) < len(config.k):
            yield "k", f"{list(config.k)} names a number twice; name each once"
        most = sum(facts.class_sizes)
        if config.gallery == "test":
            most = (facts.num_test_images or 0) - 1
        if most > 0 and max(config.k) > most:
            yield (
                "k",
                f"{max(config.k)} is above the gallery of {most} {facts.sample.noun}s of the "
                f"{config.gallery} split; take at most {most}",
            )

    def evaluate(self, given: FeatureInput) -> Evaluation:
        bank, config = given.bank, self.config
        within = config.gallery == "test"
        if within and len(bank.test) < 2:
            return Evaluation(skipped=f"needs two test {given.noun}s, there is {len(bank.test)}")
        rows = random_subset(given.seed, "retrieval", len(bank.test), config.num_queries)
        found = score_retrieval(
            bank.test[rows.to(bank.test.device)],
            bank.test_labels[rows.to(bank.test_labels.device)],
            bank.test if within else bank.train,
            bank.test_labels if within else bank.train_labels,
            ks=config.k,
            own=rows if within else None,
            device=bank.compute_device,
        )
        if not found.queries:
            a_noun = f"{'an' if given.noun == 'image' else 'a'} {given.noun}"
            return Evaluation(
                skipped=f"no query has {a_noun} of its class in the {config.gallery} split"
            )
        scores = {f"recall_at_{k}": values for k, values in found.recalls.items()}
        scores["map"] = found.precisions
        return Evaluation(
            {name: float(values.nanmean()) for name, values in scores.items()},
            per_image={
                name: ImageScores(_at(rows, values, len(bank.test)))
                for name, values in scores.items()
            },
            notes=self._notes(bank.test if within else bank.train, within, given.noun),
        )

    def _notes(self, gallery: Tensor, within: bool, noun: str) -> list[str]:
        size = len(gallery) - within
        above = [k for k in self.config.k if k > size]
        return [f"k {above} is above the {size} {noun}s of the gallery"] if above else []


def _at(rows: Tensor, values: Tensor, total: int) -> Tensor:
    """(total,) the values at these rows, NaN elsewhere."""
    whole = values.new_full((total,), torch.nan)
    whole[rows] = values
    return whole
