"""Whether the representation uses its dimensions."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Annotated, Literal

import torch
from pydantic import Field
from torch import Tensor

from sslkit.api import Evaluation, EvaluatorConfig, FeatureEvaluator, FeatureInput
from sslkit.builtin.evaluators.branches import Branch, read_branches
from sslkit.nn.representation import alignment, feature_std, rankme, uniformity
from sslkit.randomness import SampleRandom

if TYPE_CHECKING:
    from matplotlib.figure import Figure


class Collapse(FeatureEvaluator):
    """Watches for collapse on the representation of the test split (of the training split where
    there is no test split). Needs no labels.

    Metrics: `collapse/std`, the mean deviation of a dimension of L2-normalised features: about
    1 / sqrt(F) when healthy, 0 when collapsed (Chen and He 2020, arXiv:2011.10566, 4.1);
    `collapse/rankme`, the effective number of dimensions, 1 to F (Garrido et al. 2022,
    arXiv:2210.02885); `collapse/uniformity`, 0 when all features are equal, towards -4 when they
    are spread out; `collapse/alignment`, the squared distance of two views of an image, 0 when
    they agree, 2 when they are unrelated (both Wang and Isola 2020, arXiv:2005.10242).

    During a run also, for what the loss sees: the method's embeddings of the first batch, in
    training mode. `collapse/embedding_spread/<entry>` is the deviation of an entry of
    `Method.embed` in units of 1 / sqrt(width), the least over its views, which have
    `.../<view>` each: near 1 when healthy, and near 0 at once when embeddings collapse, while the
    features below them may look healthy for long. `collapse/embedding_spread` is the least of the
    entries that must not collapse (`Method.must_not_collapse`). For assignments to prototypes the
    spread is their root mean square distance from the mean, and `collapse/prototypes/<entry>` the
    part of the prototypes in use: (n - 1) / (most - 1), with n the exponential of the entropy of
    the mean assignment and `most` the lesser of the prototypes and the images;
    `collapse/prototypes` is the least of the entries that must not collapse. Where the method sees
    one image at a time, embeddings are not judged, and a note says so.

    The policy compares, at every evaluation and for each entry and view that must not collapse:
    the spread with `min_embedding_spread` times what it was before the first step (at most 1), and
    the prototypes in use with `min_prototypes`; then the features' deviation with `min_std` and
    RankMe with `min_rankme`. One below its threshold is a collapse.

    Figures: `spectrum`, the singular values of the centred features; `prototypes`, where a method
    assigns images to some, the part of the images that each has."""

    requires_labels = False
    changes_no_metric = frozenset(
        {
            "every_epochs",
            "policy",
            "min_embedding_spread",
            "min_prototypes",
            "min_std",
            "min_rankme",
        }
    )
    baselines = ()
    splits = ("test",)

    class Config(EvaluatorConfig):
        num_images: Annotated[int, Field(ge=2)] = 2048
        """Images for `std`, `rankme` and `uniformity`, chosen by the seed; all where there are
        fewer. RankMe is at most this number; the paper takes 25,600."""
        num_pairs: Annotated[int, Field(ge=2)] = 512
        """Pairs of augmented views for `alignment`."""
        policy: Literal["warn", "stop", "off"] = "warn"
        """At a collapse: `warn` says so and goes on, `stop` ends the run with a checkpoint, `off`
        only measures. It is found at evaluations, so set `every_epochs`."""
        min_embedding_spread: Annotated[float, Field(ge=0.0, lt=1.0)] = 0.3
        """Least spread of the embeddings, as a part of the untrained method's. Healthy SimCLR, BYOL
        and MoCo stay above 0.95 of it, runs without stop-gradient fall below 0.3."""
        min_prototypes: Annotated[float, Field(ge=0.0, lt=1.0)] = 0.1
        """Least part of the prototypes in use, of those that could be."""
        min_std: Annotated[float, Field(ge=0.0, lt=1.0)] = 0.002
        """Least `std` of the features, in units of 1 / sqrt(F). Low on purpose: features of healthy
        networks fall to 0.02 in the first epochs, while batch statistics settle."""
        min_rankme: Annotated[float, Field(ge=0.0)] = 1.05
        """Least RankMe of the features, in dimensions. 1: one direction is all there is."""

    def evaluate(self, given: FeatureInput) -> Evaluation:
        features = given.bank.test if len(given.bank.test) else given.bank.train
        if len(features) < 2:
            return Evaluation(skipped=f"needs two {given.noun}s, there is {len(features)}")
        features = _subset(features, self.config.num_images, given.seed)
        features = features.to(given.bank.compute_device)
        metrics = {
            "collapse/std": float(feature_std(features)),
            "collapse/rankme": float(rankme(features)),
            "collapse/uniformity": float(uniformity(features)),
            "collapse/alignment": float(alignment(*given.views.pairs(self.config.num_pairs))),
        }
        figures = {"spectrum": _spectrum(features)}
        judged: list[Branch] = []
        embeddings, notes = given.embeddings.now(), []
        if embeddings and max(map(len, embeddings.values())) < 2:  # nothing to compare it with
            notes.append(
                f"the spread of the embeddings is not measured: they are of 1 {given.noun}, and "
                "need 2 at a time: raise train.batch_size, or train.micro_batch_size where it is 1"
            )
        elif embeddings:
            branches, judged = read_branches(embeddings, given.embeddings.must_not_collapse)
            if judged:
                metrics["collapse/embedding_spread"] = min(min(each.spread) for each in judged)
            if in_use := [min(each.in_use) for each in judged if each.in_use]:
                metrics["collapse/prototypes"] = min(in_use)
            metrics |= dict(metric for branch in branches for metric in branch.metrics())
            if shares := {branch.name: branch.shares for branch in branches if branch.shares}:
                figures["prototypes"] = _prototypes(shares, given.noun)
        policy, found = self.config.policy, None
        if policy != "off":
            found = self._collapsed_branch(judged, given)
            found = found or self._collapsed_features(metrics, features.shape[1], given.noun)
        return Evaluation(
            metrics=metrics,
            figures=figures,
            notes=notes,
            warning=found if policy == "warn" else None,
            stop=found if policy == "stop" else None,
        )

    def _collapsed_branch(self, branches: Sequence[Branch], given: FeatureInput) -> str | None:
        """Which entry has collapsed, and at which view, in a line; None if none has."""
        config: Collapse.Config = self.config
        before: dict[str, Branch] = {}
        watched = given.embeddings
        if branches and (first := watched.untrained()):
            untrained, _ = read_branches(first, watched.must_not_collapse)
            before = {branch.name: branch for branch in untrained}
        for branch in branches:
            for position, spread in enumerate(branch.spread):
                where = branch.place(position)
                old = before.get(branch.name)
                was = min(old.spread[position], 1.0) if old is not None else 0.0
                if spread < config.min_embedding_spread * was:
                    return (
                        f"the embeddings of different {given.noun}s are nearly equal ({where}): "
                        f"their spread is {spread:.2g}, was {was:.2g} before training, and must "
                        f"stay above {config.min_embedding_spread:g} of that (min_embedding_spread)"
                    )
            for position, in_use in enumerate(branch.in_use):
                if in_use < config.min_prototypes:
                    return (
                        f"few of {branch.width} prototypes are in use ({branch.place(position)}): "
                        f"{in_use:.2g} of what could be, and must stay above "
                        f"{config.min_prototypes:g} (min_prototypes)"
                    )
        return None

    def _collapsed_features(
        self, metrics: Mapping[str, float], width: int, noun: str
    ) -> str | None:
        """What is wrong with the features, in a line; None if nothing is."""
        config: Collapse.Config = self.config
        std = metrics["collapse/std"] * math.sqrt(width)
        if std < config.min_std:
            return (
                f"the features of different {noun}s are nearly equal: their std is {std:.2g} of "
                f"1 / sqrt({width}), and must stay above {config.min_std:g} (min_std)"
            )
        rank = metrics["collapse/rankme"]
        if rank < config.min_rankme:
            return (
                f"the features lie along one line: RankMe is {rank:.4g} of {width} dimensions, and "
                f"must stay above {config.min_rankme:g} (min_rankme)"
            )
        return None


def _subset(features: Tensor, count: int, seed: int) -> Tensor:
    """`count` rows chosen by the seed, the same at every evaluation."""
    if len(features) <= count:
        return features
    words = SampleRandom(seed, "collapse", 0, torch.arange(len(features))).bits("order", 1)
    rows = words[:, 0].argsort(stable=True)[:count].sort().values
    return features[rows.to(features.device)]


def _spectrum(features: Tensor) -> Figure:
    """Singular values of the centred features, largest first. A tail many orders below the head
    is dimensional collapse (Jing et al. 2021, arXiv:2110.09348)."""
    from matplotlib.figure import Figure

    centred = (features - features.mean(dim=0)).cpu().double()
    gram = centred.T @ centred if len(centred) >= centred.shape[1] else centred @ centred.T
    values = torch.linalg.eigvalsh(gram).clamp_min(0.0).sqrt().flip(0)
    if len(centred) <= centred.shape[1]:
        values = values[: max(len(centred) - 1, 1)]  # centring takes one rank: no cliff of ours
    figure = Figure(figsize=(5, 3.2), layout="constrained")
    axes = figure.add_subplot()
    ranks = range(1, len(values) + 1)
    floor = max(float(values[0]), 1e-12) * 1e-8
    axes.plot(ranks, values.clamp_min(floor).tolist())
    axes.set(yscale="log", xlabel="rank", ylabel="singular value", title="Spectrum of the features")
    axes.grid(alpha=0.3)
    return figure


def _prototypes(entries: Mapping[str, Sequence[float]], noun: str) -> Figure:
    """The part of the images that each prototype has, largest first, for every entry, in units of
    equal parts, and how many prototypes that is in effect: the exponential of the entropy of the
    parts. A curve that falls to 0 early is a collapse to few prototypes."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(5, 3.2), layout="constrained")
    axes = figure.add_subplot()
    for name, parts in entries.items():
        width = len(parts)
        in_effect = math.exp(-sum(part * math.log(part) for part in parts if part > 0.0))
        shown = [part * width for part in sorted(parts, reverse=True)]
        label = f"{name}: {in_effect:.3g} of {width} in effect"
        axes.plot(range(1, width + 1), shown, label=label, drawstyle="steps-mid")
    axes.axhline(1.0, color="0.6", linestyle="--", linewidth=1.0, label="equal parts")
    axes.set(xlabel="prototype, by its part", ylabel=f"{noun}s, in equal parts", title="Prototypes")
    axes.set_ylim(bottom=0.0)
    axes.grid(alpha=0.3)
    axes.legend()
    return figure
